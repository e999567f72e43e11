"""Stock `tritonclient`, all of its clients, against our two doors, unchanged."""

from __future__ import annotations

import io
import queue
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from PIL import Image
from tritonclient.utils import InferenceServerException

from alexnet_client import Client
from tests.processes import ServerProcess, server_process

CLASSES = 10


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("triton") / "log", "--grpc-compression") as running:
        yield running


def photo(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 280), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def images(*values: int) -> np.ndarray:
    return np.stack([np.full((256, 256, 3), value, np.uint8) for value in values])


def tensor(module, name, array, datatype, **binary):
    given = module.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, **binary)
    return given


def images_input(module, *values):
    return tensor(module, "images", images(*values), "UINT8")


def photos_input(module, *values):
    return tensor(module, "image", np.array([[photo(value)] for value in values], np.object_), "BYTES")


def described(entries):
    return [(each["name"], each["datatype"], [int(n) for n in each["shape"]]) for each in entries]


def test_health_and_metadata(triton):
    module, client = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("alexnet")
    assert client.is_model_ready("classify", "1")
    assert not client.is_model_ready("vgg")
    as_json = {} if module is triton_http else {"as_json": True}
    server = client.get_server_metadata(**as_json)
    assert server["name"] == "alexnet"
    assert {"classification", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("alexnet", **as_json)
    assert model["platform"] == "onnxruntime_onnx"
    assert [
        (each["name"], each["datatype"], [int(n) for n in each["shape"]]) for each in model["inputs"]
    ] == [("images", "UINT8", [-1, 256, 256, 3])]
    assert [
        (each["name"], each["datatype"], [int(n) for n in each["shape"]]) for each in model["outputs"]
    ] == [
        ("probabilities", "FP32", [-1, CLASSES]),
        ("features", "FP32", [-1, 4096]),
    ]
    photos = client.get_model_metadata("classify", **as_json)
    assert photos["inputs"][0]["datatype"] == "BYTES"


def test_configuration_and_repository_index(triton):
    module, client = triton
    as_json = {} if module is triton_http else {"as_json": True}
    config = client.get_model_config("alexnet", **as_json)
    config = config.get("config", config)
    assert config["max_batch_size"] == 32
    assert config["input"][0]["data_type"] == "TYPE_UINT8"
    assert [int(n) for n in config["input"][0]["dims"]] == [256, 256, 3]
    assert config["input"][0]["format"] == "FORMAT_NHWC"
    assert config["output"][0]["label_filename"] == "labels.txt"
    photos = client.get_model_config("classify", **as_json)
    photos = photos.get("config", photos)
    assert photos["platform"] != "ensemble", "whose steps a client would look for"
    assert photos["input"][0].get("format", "FORMAT_NONE") == "FORMAT_NONE"
    index = client.get_model_repository_index(**as_json)
    index = index["models"] if isinstance(index, dict) else index
    assert {(each["name"], each["state"]) for each in index} == {("alexnet", "READY"), ("classify", "READY")}


def test_inference_equals_the_native_answer(triton, server):
    module, client = triton
    outputs = [module.InferRequestedOutput("probabilities"), module.InferRequestedOutput("features")]
    result = client.infer("alexnet", [images_input(module, 3, 14)], outputs=outputs, request_id="mine")
    probabilities, features = result.as_numpy("probabilities"), result.as_numpy("features")
    assert probabilities.shape == (2, CLASSES)
    assert probabilities.dtype == np.float32
    assert features.shape == (2, 4096)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "mine"
    with Client(server.target) as native:
        for value, row, hidden in zip((3, 14), probabilities, features, strict=True):
            answer = native.classify(images(value)[0], top_k=CLASSES)
            assert [each.score for each in answer.predictions] == sorted(map(float, row), reverse=True)
            assert answer.top.index == int(row.argmax())
            assert native.features(images(value)[0]).values == tuple(map(float, hidden))


def test_photos_equal_the_native_answer(triton, server):
    module, client = triton
    probabilities = client.infer("classify", [photos_input(module, 5, 6, 7)]).as_numpy("probabilities")
    assert probabilities.shape == (3, CLASSES)
    with Client(server.target) as native:
        for value, row in zip((5, 6, 7), probabilities, strict=True):
            best = native.classify(photo(value)).top
            assert (best.index, best.score) == (int(row.argmax()), float(row.max()))


def test_without_named_outputs_all_come(triton):
    module, client = triton
    result = client.infer("alexnet", [images_input(module, 1)])
    assert result.as_numpy("probabilities").shape == (1, CLASSES)
    assert result.as_numpy("features").shape == (1, 4096)


def test_class_count(triton):
    module, client = triton
    outputs = [module.InferRequestedOutput("probabilities", class_count=2)]
    strings = client.infer("classify", [photos_input(module, 4, 9)], outputs=outputs).as_numpy(
        "probabilities"
    )
    assert strings.shape == (2, 2)
    assert [each.decode() for each in strings[:, 0]] == [
        "0.910000:4:n00000004\tclass 4",
        "0.910000:9:n00000009\tclass 9",
    ]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(triton, algorithm):
    module, client = triton
    if module is triton_http:
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    else:
        options = {"compression_algorithm": algorithm}
    result = client.infer("alexnet", [images_input(module, 8)], **options)
    assert result.as_numpy("probabilities").argmax() == 8
    assert result.as_numpy("features")[0, 0] == 8


def test_statistics_count(triton):
    module, client = triton
    as_json = {} if module is triton_http else {"as_json": True}

    def inferences():
        stats = client.get_inference_statistics("alexnet", **as_json)["model_stats"]
        assert [each["name"] for each in stats] == ["alexnet"]
        success = stats[0]["inference_stats"]["success"]
        assert int(success["ns"]) > 0
        return int(stats[0]["inference_count"]), int(success["count"])

    client.infer("alexnet", [images_input(module, 1)])
    rows, requests = inferences()
    client.infer("alexnet", [images_input(module, 1, 2)])
    assert inferences() == (rows + 2, requests + 1)
    every = client.get_inference_statistics(**as_json)["model_stats"]
    assert {each["name"] for each in every} == {"alexnet", "classify"}


def test_asynchronous_calls(triton):
    module, client = triton
    if module is triton_http:
        pending = [client.async_infer("alexnet", [images_input(module, value)]) for value in range(4)]
        found = [request.get_result() for request in pending]
    else:
        done: queue.Queue = queue.Queue()
        for value in range(4):
            client.async_infer(
                "alexnet",
                [images_input(module, value)],
                callback=lambda result, error: done.put((result, error)),
            )
        answers = [done.get(timeout=60) for _ in range(4)]
        assert [error for _, error in answers] == [None] * 4
        found = [result for result, _ in answers]
    assert sorted(int(result.as_numpy("probabilities").argmax()) for result in found) == [0, 1, 2, 3]


def test_a_grpc_stream(server):
    done: queue.Queue = queue.Queue()
    with triton_grpc.InferenceServerClient(server.target) as client:
        client.start_stream(lambda result, error: done.put((result, error)))
        for value in (2, 3):
            client.async_stream_infer("alexnet", [images_input(triton_grpc, value)], request_id=str(value))
        client.async_stream_infer("vgg", [images_input(triton_grpc, 1)])
        answers = [done.get(timeout=60) for _ in range(3)]
        client.stop_stream()
    assert [answer.as_numpy("probabilities").argmax() for answer, _ in answers[:2]] == [2, 3]
    assert "no model 'vgg'" in str(answers[2][1])


async def test_grpc_aio(server):
    async with triton_grpc_aio.InferenceServerClient(server.target) as client:
        assert await client.is_server_ready()
        result = await client.infer("alexnet", [images_input(triton_grpc_aio, 6)], client_timeout=60)
        assert result.as_numpy("probabilities").argmax() == 6
        with pytest.raises(InferenceServerException, match="no model 'vgg'"):
            await client.infer("vgg", [images_input(triton_grpc_aio, 6)])


async def test_http_aio(server):
    async with triton_http_aio.InferenceServerClient(server.http_target) as client:
        assert await client.is_server_ready()
        result = await client.infer("classify", [photos_input(triton_http_aio, 6)])
        assert result.as_numpy("probabilities").argmax() == 6


def test_tensors_as_json(server):
    with triton_http.InferenceServerClient(server.http_target, network_timeout=60) as client:
        given = tensor(triton_http, "images", images(7), "UINT8", binary_data=False)
        output = triton_http.InferRequestedOutput("probabilities", binary_data=False)
        result = client.infer("alexnet", [given], outputs=[output])
        assert result.as_numpy("probabilities").argmax() == 7
        assert "data" in result.get_output("probabilities")


def test_typed_contents(server):
    """What clients other than tritonclient send: numbers in `contents`, not raw bytes."""
    pb, stubs = triton_grpc.service_pb2, triton_grpc.service_pb2_grpc
    request = pb.ModelInferRequest(model_name="alexnet")
    entry = request.inputs.add(name="images", datatype="UINT8", shape=[1, 256, 256, 3])
    entry.contents.uint_contents.extend([5] * (256 * 256 * 3))
    with triton_grpc.grpc.insecure_channel(server.target) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request, timeout=60)
        assert np.frombuffer(answer.raw_output_contents[0], np.float32).argmax() == 5
        request = pb.ModelInferRequest(model_name="classify")
        entry = request.inputs.add(name="image", datatype="BYTES", shape=[2, 1])
        entry.contents.bytes_contents.extend([photo(1), photo(2)])
        answer = stub.ModelInfer(request, timeout=60)
        found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, CLASSES)
        assert found.argmax(axis=1).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("model", "made", "says"),
    [
        ("vgg", lambda m: images_input(m, 1), "no model 'vgg'; there are: alexnet, classify"),
        ("alexnet", lambda m: tensor(m, "image", images(1), "UINT8"), "takes one input, 'images'"),
        (
            "alexnet",
            lambda m: tensor(m, "images", images(1).astype(np.float32), "FP32"),
            "expected datatype UINT8",
        ),
        ("alexnet", lambda m: tensor(m, "images", images(1)[:, :255], "UINT8"), "expected shape"),
        ("alexnet", lambda m: images_input(m, *range(33)), "1 to 32 rows per request, got 33"),
        ("classify", lambda m: tensor(m, "image", np.array([[b"text"]], np.object_), "BYTES"), "JPEG"),
    ],
)
def test_bad_requests(triton, model, made, says):
    module, client = triton
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [made(module)])
    assert says in caught.value.message()
    assert "Traceback" not in str(caught.value)
    assert client.infer("alexnet", [images_input(module, 1)]).as_numpy("probabilities").argmax() == 1


def test_an_unknown_output(triton):
    module, client = triton
    with pytest.raises(
        InferenceServerException, match="unknown output 'logits'; alexnet has: probabilities, features"
    ):
        client.infer("alexnet", [images_input(module, 1)], outputs=[module.InferRequestedOutput("logits")])


def test_what_is_not_offered(triton):
    _, client = triton
    with pytest.raises(InferenceServerException, match="nothing is loaded or unloaded"):
        client.unload_model("alexnet")
    with pytest.raises(InferenceServerException):
        client.get_system_shared_memory_status()
    with pytest.raises(InferenceServerException):
        client.get_trace_settings()


def test_the_timeout_parameter(triton):
    module, client = triton
    result = client.infer("alexnet", [images_input(module, 1)], timeout=30_000_000, priority=1)
    assert result.as_numpy("probabilities").argmax() == 1
    with pytest.raises(InferenceServerException, match="time"):
        client.infer("alexnet", [images_input(module, 1)], timeout=1)
