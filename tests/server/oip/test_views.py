"""Every model of a real repository, through both protocols and both doors: one answer."""

import numpy as np
import pytest
import tritonclient.http as triton_http

from alexnet_client import Client
from alexnet_server.preprocess import prepare
from tests.processes import ROOT, server_process

PHOTOS = [path.read_bytes() for path in sorted((ROOT / "tests" / "data" / "cc0").glob("*.jpg"))]
MODELS = {"alexnet": "center", "alexnet_10crop": "ten", "alexnet_dense": "dense"}


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_repository):
    log = tmp_path_factory.mktemp("views") / "log"
    flag = f"--model-repository={tiny_repository}"
    with server_process(log, flag, module="alexnet_server") as running:
        yield running


def native(server, photo, views):
    """(probabilities by output index, features) as alexnet.v1 gives them."""
    with Client(server.target) as client:
        labels = client.labels()
        answer = client.classify(photo, top_k=len(labels), views=views)
        probabilities = np.zeros(len(labels), np.float32)
        for each in answer.predictions:
            probabilities[each.index] = each.score
            assert (each.wnid, each.label) == (labels[each.index].wnid, labels[each.index].label)
        return probabilities, np.array(client.features(photo, model=answer.model).values, np.float32)


@pytest.mark.parametrize("model", MODELS)
def test_tensors_and_photos_agree(triton, server, model):
    module, client = triton
    images = np.stack([prepare(photo) for photo in PHOTOS])
    given = module.InferInput("images", list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    result = client.infer(model, [given])
    for row, photo in enumerate(PHOTOS):
        probabilities, features = native(server, photo, MODELS[model])
        assert np.allclose(result.as_numpy("probabilities")[row], probabilities, atol=1e-5)
        assert np.allclose(result.as_numpy("features")[row], features, atol=1e-3)


def test_whole_photos_agree(triton, server):
    module, client = triton
    given = module.InferInput("image", [len(PHOTOS), 1], "BYTES")
    given.set_data_from_numpy(np.array([[photo] for photo in PHOTOS], np.object_))
    found = client.infer("classify", [given]).as_numpy("probabilities")
    for row, photo in enumerate(PHOTOS):
        assert np.allclose(found[row], native(server, photo, "center")[0], atol=1e-5)


def test_the_configuration_tells_what_the_repository_says(triton):
    module, client = triton
    as_json = {} if module is triton_http else {"as_json": True}
    for model, views in MODELS.items():
        config = client.get_model_config(model, **as_json)
        config = config.get("config", config)
        assert config["parameters"]["views"]["string_value"] == views
        assert config["platform"] == "onnxruntime_onnx"
