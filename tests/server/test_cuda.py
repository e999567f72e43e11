"""CUDA in ONNX Runtime, on machines without it: what is asked of the library, and what is said."""

import logging

import onnxruntime
import pytest

from alexnet_server import loading
from alexnet_server.engines import cuda
from alexnet_server.errors import StartError
from alexnet_server.loading import open_scheduler
from alexnet_server.settings import load_settings
from alexnet_server.telemetry.metrics import Metrics


@pytest.fixture
def gpu_build(monkeypatch):
    """An ONNX Runtime that was built for CUDA: what it was asked to do, in order."""
    asked = []
    offered = [cuda.PROVIDER, "CPUExecutionProvider"]
    opened = onnxruntime.InferenceSession

    def preload_dlls():
        asked.append("preload")
        print("Failed to load libcublasLt.so.12")  # noqa: T201 - as the library does

    def session(path, options, providers):
        asked.append(providers[0])
        return opened(
            path, options, providers=["CPUExecutionProvider"]
        )  # what CUDA that fails to load ends in

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload_dlls)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    cuda.offered.cache_clear()
    yield asked
    cuda.offered.cache_clear()


def settings(repository, *flags):
    return load_settings(
        ["--engine", "onnx", "--model-repository", str(repository), "--engine-threads=1", *flags]
    )


def test_its_libraries_are_loaded_once_before_the_first_session(gpu_build, tiny_repository, caplog, capsys):
    loading.open_engine(settings(tiny_repository, "--precision=fp16", "--device=auto")).close()
    assert gpu_build[0] == "preload"
    assert gpu_build.count("preload") == 1
    names, options = zip(*gpu_build[1:], strict=True)
    assert set(names) == {cuda.PROVIDER}
    assert {(each["device_id"], each.get("prefer_nhwc")) for each in options} == {(0, "1")}
    assert "Failed to load libcublasLt.so.12" in caplog.text
    assert not capsys.readouterr().out


def test_a_second_card(gpu_build, tiny_repository):
    with pytest.raises(StartError, match="--device cuda:1: ONNX Runtime could not load CUDA"):
        loading.open_engine(settings(tiny_repository, "--device=cuda:1"))
    assert gpu_build[1][1]["device_id"] == 1


@pytest.mark.parametrize(("precision", "preferred"), [("fp16", "1"), ("fp32", None), ("int8", None)])
def test_channels_last_in_half_precision(precision, preferred):
    assert cuda.provider("auto", precision)[1].get("prefer_nhwc") == preferred


def test_nothing_is_loaded_for_the_cpu(gpu_build, tiny_repository):
    loading.open_engine(settings(tiny_repository, "--device=cpu")).close()
    assert set(gpu_build) == {"CPUExecutionProvider"}


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:x", "cuda1", "CUDA"])
def test_devices_there_are_not(word):
    with pytest.raises(StartError, match=r"--device.*cuda:N"):
        load_settings(["--device", word])


@pytest.mark.parametrize(("flags", "warned"), [((), True), (("--device=cpu",), False)])
async def test_a_card_that_nobody_uses(flags, warned, tiny_repository, monkeypatch, caplog):
    monkeypatch.setattr(loading, "has_card", lambda: True)
    with caplog.at_level(logging.WARNING):
        scheduler = await open_scheduler(settings(tiny_repository, *flags), Metrics())
    await scheduler.close()
    assert ("there is a GPU" in caplog.text) is warned
