"""The OpenAPI document: types that the real answers have, names for generators, and keys."""

import httpx
import pytest

from alexnet_server.http import schemas
from tests.server.fakes import FakeEngine, photo, running

ANSWERS = {
    ("POST", "/classify"): schemas.Classification,
    ("POST", "/classify/batch"): schemas.Batch,
    ("POST", "/features"): schemas.Features,
    ("POST", "/explain"): schemas.Explanation,
    ("GET", "/labels"): schemas.Labels,
    ("GET", "/models"): schemas.Models,
    ("GET", "/livez"): schemas.Status,
    ("GET", "/readyz"): schemas.Status,
    ("POST", "/features?views=dense"): schemas.Problem,
    ("POST", "/classify?topk=3"): schemas.Problem,
}


async def document_of(**settings):
    async with (
        running(FakeEngine(), **settings) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        return (await client.get("/openapi.json")).json()


@pytest.mark.parametrize(("method", "path"), ANSWERS)
async def test_answers_are_what_the_document_says(method, path):
    kind = ANSWERS[method, path]
    files = {"files": {"image": ("photo.png", photo())}} if method == "POST" else {}
    async with running(FakeEngine()) as server, httpx.AsyncClient(base_url=server.url) as client:
        answer = (await client.request(method, path, **files)).json()
    assert kind.model_validate(answer, strict=True).model_dump(exclude_unset=True) == answer


async def test_every_answer_has_a_type():
    document = await document_of()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "default" in operation["responses"] or path in ("/livez", "/readyz")
            for content in operation["responses"]["200"].get("content", {}).items():
                if content[0] == "application/json":
                    assert content[1]["schema"]["$ref"].startswith("#/components/schemas/"), path
    problem = document["paths"]["/readyz"]["get"]["responses"]["503"]["content"]["application/problem+json"]
    assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert "Problem" in document["components"]["schemas"]


async def test_names_and_bounds_for_generators():
    document = await document_of()
    names = [
        operation["operationId"] for methods in document["paths"].values() for operation in methods.values()
    ]
    assert {"classify", "classify_batch", "features", "explain", "labels", "models"} <= set(names)
    assert len(names) == len(set(names))
    batch = document["paths"]["/classify/batch"]["post"]
    (timeout,) = [each["schema"] for each in batch["parameters"] if each["in"] == "header"]
    assert timeout["minimum"] == 1
    form = batch["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert (form["properties"]["image"]["minItems"], form["properties"]["image"]["maxItems"]) == (1, 32)


@pytest.mark.parametrize(
    ("settings", "optional"), [({}, True), ({"api_keys": "correct-horse-battery"}, False)]
)
async def test_keys_are_told(settings, optional):
    document = await document_of(**settings)
    assert set(document["components"]["securitySchemes"]) == {"bearer", "key"}
    assert ({} in document["security"]) is optional
    assert {"bearer": []} in document["security"]
