"""Every model of a real repository, through both protocols and both doors: one answer."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import tritonclient.http as triton_http

from alexnet_client import Client
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import unpack
from alexnet_server.models.variants import VARIANTS
from alexnet_server.preprocess import prepare
from tests.numerics import probability_rounding, rounding, terms
from tests.processes import ROOT, server_process

PHOTOS = [path.read_bytes() for path in sorted((ROOT / "tests" / "data" / "cc0").glob("*.jpg"))]
TERMS = terms(random_weights(scaled(VARIANTS["2012"], 8, 96), 10).tensors)
MODELS = {"alexnet": "center", "alexnet_10crop": "ten", "alexnet_dense": "dense"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory, exported_repository):
    """In fp32: a batch may be summed in another order than one photo, and in int8 a tie is a whole step."""
    folder = tmp_path_factory.mktemp("views") / "model_repository"
    shutil.copytree(exported_repository, folder)
    unpack(read_repository(folder), "fp32")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory, repository):
    log = tmp_path_factory.mktemp("views") / "log"
    flag = f"--model-repository={repository}"
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


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=probability_rounding(TERMS, expected))


@pytest.mark.numerics
@pytest.mark.parametrize("model", MODELS)
def test_tensors_and_photos_agree(triton, server, model):
    module, client = triton
    images = np.stack([prepare(photo) for photo in PHOTOS])
    given = module.InferInput("images", list(images.shape), "UINT8")
    given.set_data_from_numpy(images)
    result = client.infer(model, [given])
    for row, photo in enumerate(PHOTOS):
        probabilities, features = native(server, photo, MODELS[model])
        assert_same(result.as_numpy("probabilities")[row], probabilities)
        np.testing.assert_allclose(
            result.as_numpy("features")[row], features, rtol=0, atol=rounding(TERMS, features)
        )


def test_whole_photos_agree(triton, server):
    module, client = triton
    given = module.InferInput("image", [len(PHOTOS), 1], "BYTES")
    given.set_data_from_numpy(np.array([[photo] for photo in PHOTOS], np.object_))
    found = client.infer("classify", [given]).as_numpy("probabilities")
    for row, photo in enumerate(PHOTOS):
        assert_same(found[row], native(server, photo, "center")[0])


def test_the_configuration_tells_what_the_repository_says(triton):
    module, client = triton
    as_json = {} if module is triton_http else {"as_json": True}
    for model, views in MODELS.items():
        config = client.get_model_config(model, **as_json)
        config = config.get("config", config)
        assert config["parameters"]["views"]["string_value"] == views
        assert config["platform"] == ("openvino" if find_spec("openvino") else "onnxruntime_onnx")
