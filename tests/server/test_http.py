"""The HTTP door over a real socket."""

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.server.fakes import (
    CLASSES,
    FakeEngine,
    eventually,
    fake_model,
    photo,
    read_reply,
    request_bytes,
    running,
)

CAT = Path(__file__).parents[1] / "data" / "cc0" / "cat.jpg"


@pytest.fixture
async def server():
    engine = FakeEngine(fake_model(), fake_model("alexnet_10crop", "ten", 10))
    async with running(engine) as subject:
        yield subject


@pytest.fixture
async def client(server):
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        yield client


async def test_a_form_is_classified(client):
    reply = await client.post("/classify", files={"image": photo(7)})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    answer = reply.json()
    assert list(answer) == ["model", "version", "predictions"]
    assert (answer["model"], answer["version"]) == ("alexnet", "1")
    assert [p["rank"] for p in answer["predictions"]] == [1, 2, 3, 4, 5]
    best = answer["predictions"][0]
    assert best == {"rank": 1, "index": 7, "wnid": "n00000007", "label": "class 7", "score": 0.91}


@pytest.mark.parametrize(
    "kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""]
)
async def test_any_other_body_is_a_photo(client, kind):
    reply = await client.post("/classify", content=photo(3), headers={"content-type": kind} if kind else {})
    assert reply.status_code == 200
    assert reply.json()["predictions"][0]["index"] == 3


async def test_chunked_bodies_are_read(client):
    data = photo(4)

    async def pieces():
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    reply = await client.post("/classify", content=pieces())
    assert reply.json()["predictions"][0]["index"] == 4


async def test_a_real_photo(client):
    reply = await client.post("/classify", files={"image": ("cat.jpg", CAT.read_bytes(), "image/jpeg")})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("query", "model"),
    [("", "alexnet"), ("?views=ten", "alexnet_10crop"), ("?model=alexnet_10crop", "alexnet_10crop")],
)
async def test_views_are_models(client, query, model):
    assert (await client.post(f"/classify{query}", content=photo())).json()["model"] == model


@pytest.mark.parametrize("top_k", [1, CLASSES])
async def test_top_k(client, top_k):
    answer = (await client.post(f"/classify?top_k={top_k}", content=photo())).json()
    assert len(answer["predictions"]) == top_k
    scores = [p["score"] for p in answer["predictions"]]
    assert scores == sorted(scores, reverse=True)


async def test_features(client):
    answer = (await client.post("/features", content=photo(9))).json()
    assert answer["features"] == [9.0] * 4096


async def test_other_fields_of_a_form_are_skipped(client):
    reply = await client.post("/classify", files={"image": photo(2)}, data={"note": "x" * 1000})
    assert reply.json()["predictions"][0]["index"] == 2


async def test_a_batch_keeps_order_and_errors_to_themselves(client):
    photos = [photo(value) for value in range(32)]
    photos[20] = photos[20][:60]
    reply = await client.post("/classify/batch?top_k=1", files=[("image", data) for data in photos])
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert len(results) == 32
    assert results[20]["code"] == "undecodable"
    assert results[20]["status"] == 422
    for value, result in enumerate(results):
        if value != 20:
            assert result["predictions"][0]["index"] == value % 10


async def test_a_part_that_is_too_large_fails_alone():
    async with running(FakeEngine(), max_photo_bytes=20_000) as server, httpx.AsyncClient() as client:
        parts = [("image", photo(1)), ("image", b"\xff\xd8" + bytes(30_000)), ("image", photo(3))]
        results = (await client.post(f"{server.url}/classify/batch", files=parts)).json()["results"]
    assert [result.get("code") for result in results] == [None, "too_large", None]


async def test_labels_and_models(client):
    labels = (await client.get("/labels")).json()
    assert labels["labels"][3] == {"index": 3, "wnid": "n00000003", "label": "class 3"}
    models = (await client.get("/models")).json()["models"]
    assert [model["name"] for model in models] == ["alexnet", "alexnet_10crop"]
    assert models[0]["device"] == "cpu"
    assert models[0]["precision"] == "fp32"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/page/app.js",
        "/docs",
        "/openapi.json",
        "/livez",
        "/readyz",
        "/metrics",
        "/models",
        "/labels",
        "/v2",
        "/v2/health/ready",
    ],
)
async def test_head_is_get_without_a_body(client, path):
    got, head = await client.get(path), await client.head(path)
    assert (got.status_code, head.status_code) == (200, 200)
    assert got.content
    assert head.content == b""
    differing = {"x-request-id", "server-timing", "date", *(["content-length"] if path == "/metrics" else ())}
    for name in set(got.headers) - differing:
        assert head.headers[name] == got.headers[name], name


async def test_what_a_path_takes_is_told(client):
    for method, path, allowed in (
        ("GET", "/classify", "POST"),
        ("HEAD", "/classify", "POST"),
        ("PUT", "/classify", "POST"),
        ("POST", "/labels", "GET, HEAD"),
        ("DELETE", "/", "GET, HEAD"),
        ("POST", "/page/app.js", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ):
        reply = await client.request(method, path)
        assert reply.status_code == 405, (method, path)
        assert reply.headers["allow"] == allowed, (method, path)
        if method != "HEAD":
            assert reply.json()["detail"] == f"{path} takes {allowed}, not {method}."


@pytest.mark.parametrize("path", ["/", "/docs", "/page/app.js", "/page/cat.jpg", "/favicon.ico"])
async def test_pages_allow_nothing_but_their_own_files(client, path):
    headers = (await client.get(path)).headers
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/", "/page/app.js"])
async def test_pages_are_not_sent_twice(client, path):
    etag = (await client.get(path)).headers["etag"]
    again = await client.get(path, headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"
    assert (await client.get(path, headers={"if-none-match": '"older"'})).status_code == 200


async def test_not_ready_before_the_model():
    async with running(FakeEngine(), load=False) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "loading" in ready.json()["detail"]
        refusal = await client.post("/classify", content=photo())
        assert refusal.status_code == 503
        assert refusal.json()["code"] == "unavailable"
        assert int(refusal.headers["retry-after"]) >= 1


async def test_not_ready_when_the_golden_photo_is_not_recognised():
    engine = FakeEngine(fake_model(golden=(3, 0.5)))  # no flat image: the fake says another class or score
    async with running(engine) as server, httpx.AsyncClient(base_url=server.url) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "golden photo" in ready.json()["detail"]
        assert (await client.post("/classify", content=photo())).status_code == 503


async def test_each_answer_has_an_id_and_its_times(client):
    reply = await client.post("/classify", content=photo(), headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    names = [part.split(";")[0].strip() for part in reply.headers["server-timing"].split(",")]
    assert names == ["decode", "queue", "engine", "total"]
    other = await client.get("/nothing", headers={"x-request-id": "a b"})
    assert other.headers["x-request-id"] not in ("", "a b")
    assert other.json()["request_id"] == other.headers["x-request-id"]


async def test_metrics_count_what_happened(client):
    await client.post("/classify", content=photo())
    await client.post("/classify?views=ten", content=photo())
    await client.post("/classify", content=b"no photo")
    await client.get("/readyz")
    text = (await client.get("/metrics")).text
    assert 'alexnet_requests_total{code="ok",door="http",model="alexnet"} 1.0' in text
    assert 'alexnet_requests_total{code="ok",door="http",model="alexnet_10crop"} 1.0' in text
    assert 'alexnet_requests_total{code="unsupported_format",door="http",model="alexnet"} 1.0' in text
    for stage in ("decode", "queue", "engine"):
        assert f'alexnet_stage_seconds_count{{model="alexnet",stage="{stage}"}}' in text
    assert 'alexnet_batch_size_count{model="alexnet"}' in text
    assert "alexnet_queue_views 0.0" in text
    assert "alexnet_ready 1.0" in text
    assert "process_resident_memory_bytes" in text


async def tasks(client):
    text = (await client.get("/metrics")).text
    return float(re.search(r"^alexnet_tasks (.+)$", text, re.MULTILINE)[1])


async def test_tasks_are_counted_while_they_last():
    async with running(FakeEngine()) as server, httpx.AsyncClient(base_url=server.url) as client:
        before = await tasks(client)
        server.engine.gate.clear()
        waiting = [asyncio.create_task(server.send("/classify", photo())) for _ in range(5)]
        await eventually(lambda: server.waiting_views == 4)
        assert await tasks(client) >= before + 10, "the test's own five are on the same loop"
        server.engine.gate.set()
        await asyncio.gather(*waiting)
        async with asyncio.timeout(10):
            while await tasks(client) != before:
                await asyncio.sleep(0.01)


async def test_the_documentation_needs_no_network(client):
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "/classify/batch" in page.text
    assert 'id="overloaded"' in page.text
    assert not re.search(r"https?://", page.text)
    assert "`" not in page.text
    assert "<code>top_k</code>" in page.text
    links = re.findall(r'(?:href|src)="?([^">]*)', page.text)
    assert not [link for link in links if link.startswith("/")], "relative, for a path prefix in front"
    assert {"page/icon.svg", "page/docs.css", "openapi.json", "./"} <= set(links)
    for link in links:
        assert (await client.get(urljoin("/docs", link))).status_code == 200, link
    assert "localhost:8080/features" in page.text
    document = (await client.get("/openapi.json")).json()
    assert {"/classify", "/classify/batch", "/features", "/labels", "/models"} <= set(document["paths"])
    assert document["servers"] == [{"url": "."}]
    content = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert "multipart/form-data" in content


async def test_cors_for_those_who_are_named():
    engine = FakeEngine()
    async with (
        running(engine, cors_origins="https://a.example") as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        headers = {"origin": "https://a.example"}
        reply = await client.post("/classify", content=photo(), headers=headers)
        assert reply.headers["access-control-allow-origin"] == "https://a.example"
        reply = await client.post("/classify", content=photo(), headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in reply.headers


async def test_cors_for_traces_and_tensors():
    asked = "traceparent, tracestate, baggage, inference-header-content-length"
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    async with (
        running(FakeEngine(), cors_origins="https://a.example/") as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        reply = await client.options("/classify", headers=headers | {"access-control-request-headers": asked})
        assert reply.status_code == 200, reply.text
        reply = await client.post("/classify", content=photo(), headers=headers)
        assert "inference-header-content-length" in reply.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "path",
    ["/livez/", "/readyz/", "/healthz", "/ping", "/healthz/", "/labels/", "/models/", "/docs/", "/v2/"],
)
async def test_paths_as_people_write_them(client, path):
    assert (await client.get(path)).status_code == 200


async def test_a_slash_behind_a_path_that_takes_photos(client):
    for path in ("/classify/", "/classify/batch/", "/v2/models/classify/infer/"):
        assert (await client.post(path, content=b"")).status_code == 400


async def test_metrics_may_ask_for_a_key():
    async with (
        running(FakeEngine(), api_keys="first-key", metrics_key=True) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        for path in ("/metrics", "/metrics/"):
            assert (await client.get(path)).status_code == 401
        assert (await client.get("/metrics", headers={"x-api-key": "first-key"})).status_code == 200
        for path in ("/livez", "/healthz", "/ping", "/readyz/"):
            assert (await client.get(path)).status_code == 200


async def test_two_requests_on_one_connection_in_a_row(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    # Pipelined: the second is sent before the first is answered.
    writer.write(request_bytes("/classify", photo(1)) + request_bytes("/classify", photo(2)))
    answers = [json.loads((await read_reply(reader)).body) for _ in range(2)]
    writer.close()
    assert [answer["predictions"][0]["index"] for answer in answers] == [1, 2]
