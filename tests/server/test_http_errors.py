"""Each row of the error table, through a real server on a real socket."""

import asyncio
import base64
import json
import re
import shutil
import subprocess

import httpx
import pytest

from alexnet_server.errors import TABLE
from tests import hostile
from tests.server.fakes import FakeEngine, Reply, eventually, photo, read_reply, request_bytes, running

BOUNDARY = "----b"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return body + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def check(reply: Reply, code: str) -> dict[str, object]:
    row = TABLE[code]
    assert reply.status == row.http_status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    document = json.loads(reply.body)
    assert document["code"] == code
    assert document["status"] == row.http_status
    assert document["title"] == row.title
    assert document["error"] == document["detail"]
    assert document["request_id"] == reply.headers["x-request-id"]
    assert ("retry-after" in reply.headers) == (code in ("overloaded", "unavailable"))
    for secret in ("Traceback", ".py", "site-packages", "alexnet_server"):
        assert secret not in reply.body.decode()
    return document


@pytest.fixture
async def server():
    async with running(FakeEngine()) as subject:
        yield subject


PHOTO = photo()
CASES = {
    "no image part": (form(("file", PHOTO)), FORM, "", "invalid_request"),
    "an empty form": (form(), FORM, "", "invalid_request"),
    "two images": (form(("image", PHOTO), ("image", PHOTO)), FORM, "", "invalid_request"),
    "33 images": (form(*[("image", PHOTO)] * 33), FORM, "", "invalid_request"),
    "empty body": (b"", {}, "", "invalid_request"),
    "form without end": (form(("image", PHOTO), end=False), FORM, "", "invalid_request"),
    "not a form": (b"hello", FORM, "", "invalid_request"),
    "no boundary": (b"hello", {"content-type": "multipart/form-data"}, "", "invalid_request"),
    "top_k 0": (PHOTO, {}, "?top_k=0", "invalid_request"),
    "top_k 11": (PHOTO, {}, "?top_k=11", "invalid_request"),
    "top_k words": (PHOTO, {}, "?top_k=five", "invalid_request"),
    "bad views": (PHOTO, {}, "?views=eleven", "invalid_request"),
    "model and views": (PHOTO, {}, "?model=alexnet&views=center", "invalid_request"),
    "bad timeout": (PHOTO, {"x-request-timeout-ms": "soon"}, "", "invalid_request"),
    "timeout 0": (PHOTO, {"x-request-timeout-ms": "0"}, "", "invalid_request"),
    "unknown model": (PHOTO, {}, "?model=resnet", "unknown_model"),
    "views not loaded": (PHOTO, {}, "?views=dense", "unknown_model"),
    "12 MiB": (b"\xff\xd8\xff" + bytes(12 * 2**20), {}, "", "too_large"),
    "12 MiB in a form": (form(("image", b"\xff\xd8\xff" + bytes(12 * 2**20))), FORM, "", "too_large"),
    "text": (b"I am a photo, honestly.", {}, "", "unsupported_format"),
    "gzip": (PHOTO, {"content-encoding": "gzip"}, "", "unsupported_format"),
    "an empty part": (form(("image", b"")), FORM, "", "undecodable"),
    "truncated png": (PHOTO[:70], {}, "", "undecodable"),
}


@pytest.mark.parametrize("name", CASES)
async def test_bad_requests(server, name):
    body, headers, query, code = CASES[name]
    check(await server.send(f"/classify{query}", body, headers), code)
    # and the server serves on
    assert (await server.send("/classify", PHOTO)).status == 200
    assert server.waiting_views == 0


@pytest.mark.parametrize("name", hostile.CASES)
async def test_hostile_photos(server, name):
    case = hostile.CASES[name]
    reply = await server.send("/classify", form(("image", case.make())), FORM)
    if case.code is None:
        assert reply.status == 200
    else:
        check(reply, case.code)
    assert server.waiting_views == 0


@pytest.mark.parametrize(
    ("path", "name", "words"),
    [
        ("/classify", "topk", ("did you mean `top_k`?", "`model`, `views`, `top_k`")),
        ("/classify/batch", "Views", ("did you mean `views`?", "`model`, `views`, `top_k`")),
        ("/features", "top_k", ("Allowed here: `model`, `views`.",)),
        ("/classify", "x" * 5000, ("Allowed here: `model`, `views`, `top_k`.",)),
    ],
)
async def test_unknown_parameters_are_named(server, path, name, words):
    document = check(await server.send(f"{path}?{name}=3", PHOTO), "invalid_request")
    assert f"`{name[:100]}`" in document["detail"]
    assert all(word in document["detail"] for word in words)
    assert len(document["detail"]) < 250
    assert [item["field"] for item in document["errors"]] == [name[:100]]


async def test_unknown_parameters_of_labels(server):
    async with httpx.AsyncClient(base_url=server.url) as client:
        reply = await client.get("/labels?modle=alexnet")
        assert (await client.get("/labels?model=alexnet")).status_code == 200
    assert reply.status_code == 400
    assert "did you mean `model`?" in reply.json()["detail"]


async def test_a_parameter_given_twice(server):
    document = check(await server.send("/classify?top_k=3&top_k=5", PHOTO), "invalid_request")
    assert "`top_k` is given more than once" in document["detail"]


def text_form(value: bytes) -> bytes:
    return form(("image", value)).replace(b'; filename="f"', b"")


@pytest.mark.parametrize(
    ("body", "headers", "code", "words"),
    [
        (text_form(b"photo.jpg"), FORM, "invalid_request", ("'photo.jpg'", "put an @")),
        (b' {"image": "/9j/"}', {"content-type": "application/json"}, "invalid_request", ("JSON", "curl -F")),
        (base64.b64encode(PHOTO), {}, "unsupported_format", ("Base64", "own bytes")),
        (b"data:image/png;base64,aGk=", {}, "unsupported_format", ("Base64", "own bytes")),
        (b" https://example.com/cat.jpg", {}, "unsupported_format", ("an address", "download the photo")),
        (b'{"image": "cat.jpg"}', {}, "unsupported_format", ("This is JSON", "own bytes")),
        (
            b"--x\r\n\r\nhello\r\n--x--",
            {"content-type": "multipart/related; boundary=x"},
            "invalid_request",
            ("multipart/related", "multipart/form-data"),
        ),
    ],
)
async def test_what_people_send_instead_of_a_photo(server, body, headers, code, words):
    document = check(await server.send("/classify", body, headers), code)
    assert all(word in document["detail"] for word in words)


async def test_photos_are_taken_whatever_their_part_or_type_is_called(server):
    assert (await server.send("/classify", text_form(PHOTO), FORM)).status == 200
    assert (await server.send("/classify", PHOTO, {"content-type": "application/json"})).status == 200


@pytest.mark.parametrize(("path", "near"), [("/Classify", "/classify"), ("/Label", "/labels"), ("/x", None)])
async def test_a_path_nearby_is_named(server, path, near):
    detail = check(await server.send(path), "not_found")["detail"]
    assert detail.endswith("/docs lists all paths.")
    assert (f"did you mean {near}?" in detail) if near else ("did you mean" not in detail)


FORM_TYPE = {"content-type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "body", [b"image=%FF%D8%FF%E0", b"image=@photo.jpg", re.sub(rb"[\r\n\0]", b"", PHOTO)]
)
async def test_a_form_or_a_stripped_photo_is_told_what_curl_did(server, body):
    document = check(await server.send("/classify", body, FORM_TYPE), "invalid_request")
    for word in ("curl -d", "-F image=@photo.jpg", "--data-binary @photo.jpg"):
        assert word in document["detail"]
    assert (await server.send("/classify", PHOTO, FORM_TYPE)).status == 200  # as --data-binary sends it


@pytest.mark.parametrize("name", hostile.GOOD)
def test_no_photo_is_without_what_curl_strips(name):
    assert re.search(rb"[\r\n\0]", hostile.photo(name))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "avif"])
async def test_curl_d(server, tmp_path, name):
    (tmp_path / "photo").write_bytes(hostile.photo(name))
    command = ["curl", "-sS", "-d", f"@{tmp_path / 'photo'}", f"{server.url}/classify"]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert "--data-binary @photo.jpg" in json.loads(result.stdout)["detail"]


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (bytes(30_000), {}, ("photo is larger than 20,000 bytes", "scale it down", "--max-photo-bytes")),
        (form(("image", bytes(30_000))), FORM, ("photo is larger", "scale it down", "--max-photo-bytes")),
        (form(("image", bytes(2**18))), FORM, ("request is larger", "0.25 MiB", "--max-body-bytes")),
        (photo(size=(400, 300)), {}, ("120,000 pixels", "90,000 allowed", "scale it down", "--max-pixels")),
    ],
)
async def test_413_says_the_limit_and_how_to_mend(body, headers, words):
    limits = {"max_photo_bytes": 20_000, "max_body_bytes": 2**18, "max_pixels": 90_000}
    async with running(FakeEngine(), **limits) as server:
        document = check(await server.send("/classify", body, headers), "too_large")
    assert all(word in document["detail"] for word in words), document["detail"]


async def test_not_found_and_method_not_allowed(server):
    check(await server.send("/nothing"), "not_found")
    async with httpx.AsyncClient(base_url=server.url) as client:
        reply = await client.get("/classify")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    check(Reply(405, dict(reply.headers), reply.content), "method_not_allowed")


async def test_internal_says_nothing_but_an_id(server):
    def fail(images):
        raise RuntimeError("secret /path/of/engine.py")

    server.engine.fail = fail
    document = check(await server.send("/classify", PHOTO), "internal")
    assert "secret" not in json.dumps(document)


async def test_a_bug_in_the_service_is_internal_too(server, monkeypatch):
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(server.classifier, "classify", broken)
    assert b"secret" not in (await server.send("/classify", PHOTO)).body
    check(await server.send("/classify", PHOTO), "internal")


async def test_deadline_exceeded_in_the_queue(server):
    server.engine.gate.clear()
    blocking = asyncio.create_task(server.send("/classify", PHOTO))
    await eventually(server.engine.entered.is_set)
    reply = await server.send("/classify", PHOTO, {"x-request-timeout-ms": "50"})
    check(reply, "deadline_exceeded")
    assert server.waiting_views == 0
    server.engine.gate.set()
    assert (await blocking).status == 200


async def test_deadline_exceeded_while_the_body_arrives(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = request_bytes("/classify", PHOTO, {"x-request-timeout-ms": "80"})
    writer.write(head[:-10])
    reply = await read_reply(reader)
    check(reply, "deadline_exceeded")
    assert reply.headers["connection"] == "close"
    assert await reader.read() == b""
    writer.close()


async def test_overloaded(server_with_little_room):
    server = server_with_little_room
    server.engine.gate.clear()
    tasks = [asyncio.create_task(server.send("/classify", PHOTO)) for _ in range(1)]
    await eventually(server.engine.entered.is_set)
    tasks += [asyncio.create_task(server.send("/classify", PHOTO)) for _ in range(2)]
    await eventually(lambda: server.waiting_views == 2)
    check(await server.send("/classify", PHOTO), "overloaded")
    server.engine.gate.set()
    assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}


@pytest.fixture
async def server_with_little_room():
    async with running(FakeEngine(), queue_size=2) as subject:
        yield subject


async def test_of_a_batch_what_does_not_fit_is_overloaded(server_with_little_room):
    server = server_with_little_room
    server.engine.gate.clear()
    blocking = asyncio.create_task(server.send("/classify", PHOTO))
    await eventually(server.engine.entered.is_set)
    batch = asyncio.create_task(server.send("/classify/batch", form(*[("image", PHOTO)] * 5), FORM))
    await eventually(lambda: server.waiting_views == 2)
    server.engine.gate.set()
    reply = await batch
    assert reply.status == 200
    codes = [result.get("code") for result in json.loads(reply.body)["results"]]
    assert codes == [None, None, "overloaded", "overloaded", "overloaded"]
    assert int(reply.headers["retry-after"]) >= 1
    assert (await blocking).status == 200


async def test_unauthenticated_but_for_probes():
    async with running(FakeEngine(), api_keys="first-key,second-key") as server:
        check(await server.send("/classify", PHOTO), "unauthenticated")
        refusal = await server.send("/classify", PHOTO, {"authorization": "Bearer wrong-key"})
        assert refusal.headers["www-authenticate"] == "Bearer"
        for headers in ({"authorization": "Bearer second-key"}, {"x-api-key": "first-key"}):
            assert (await server.send("/classify", PHOTO, headers)).status == 200
        async with httpx.AsyncClient(base_url=server.url) as client:
            for path in ("/livez", "/readyz", "/metrics", "/docs"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.get("/models")).status_code == 401
            assert (await client.get("/labels")).status_code == 401


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    "way", [["-F", "image=@{}"], ["--data-binary", "@{}"], ["-H", "Expect:", "-F", "image=@{}"]]
)
async def test_curl_sees_the_413(server, tmp_path, way):
    large = tmp_path / "large.jpg"
    large.write_bytes(b"\xff\xd8\xff" + bytes(12 * 2**20))
    command = ["curl", "-sS", "-o", "-", "-w", "\n%{http_code}", *(word.format(large) for word in way)]
    result = await asyncio.to_thread(
        subprocess.run, [*command, f"{server.url}/classify"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    body, status = result.stdout.rsplit("\n", 1)
    assert status == "413"
    assert json.loads(body)["code"] == "too_large"


async def test_a_chunked_body_over_the_limit_is_read_and_refused():
    async with running(FakeEngine(), max_photo_bytes=2**20, max_body_bytes=2**20) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /classify HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"%x\r\n" % 2**16 + bytes(2**16) + b"\r\n"
        for _ in range(24):
            writer.write(piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        check(await read_reply(reader), "too_large")
        # the rest was read: the connection is still of use
        writer.write(request_bytes("/classify", PHOTO))
        assert (await read_reply(reader)).status == 200
        writer.close()


async def test_a_client_that_never_stops_sending_is_cut_off():
    async with running(FakeEngine(), max_photo_bytes=2**18, max_body_bytes=2**18) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /classify HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")

        async def send_on() -> None:
            for _ in range(1000):
                writer.write(b"%x\r\n" % 2**16 + bytes(2**16) + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0)

        with pytest.raises(ConnectionError):
            await send_on()
        writer.close()
        assert (await server.send("/classify", PHOTO)).status == 200


async def test_garbage_on_the_port(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    assert b"400" in await reader.read()
    writer.close()
    assert (await server.send("/classify", PHOTO)).status == 200
