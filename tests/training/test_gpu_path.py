"""What a GPU would meet, looked at without one: mocks of CUDA, and tensors that have no data."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from alexnet_train.config import RECIPES
from alexnet_train.data.dataset import Split, Statistics
from alexnet_train.network import towers
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.towers import SEGMENTS, Tower
from alexnet_train.run.augment import Augmenter, Colour
from alexnet_train.run.batches import ranks_on_card
from alexnet_train.run.parallel import Mode, Workers
from alexnet_train.run.schedule import Rates
from alexnet_train.run.step import Stepper, set_numerics
from alexnet_train.run.update import optimizer_for

CONFIG = replace(RECIPES["modern-tiny"], window=99, hidden=8, batch_size=2)


def test_ranks_that_share_a_card_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert ranks_on_card() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks_on_card() == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ranks_on_card() == 1


def test_draws_of_a_plain_step_stay_on_their_device() -> None:
    drawn = Draws(1, 7, torch.arange(4, device="meta")).uniform("crop", 2)
    assert drawn.is_meta
    on_cpu = Draws(1, torch.tensor(7), torch.arange(4)).uniform("crop", 2)
    assert torch.equal(on_cpu, Draws(1, 7, torch.arange(4)).uniform("crop", 2))


def stepper(monkeypatch: pytest.MonkeyPatch) -> Stepper:
    """What a run would step with on a GPU, the compiler mocked."""
    monkeypatch.setattr(torch, "compile", lambda network: network)
    network = AlexNet.of(CONFIG, 4)
    group = Workers("none", 0, 1, torch.device("cuda", 0))
    optimizer = optimizer_for(network, CONFIG)
    return Stepper.of(network, optimizer, None, CONFIG, torch.arange(2), group)  # type: ignore[arg-type]


def test_a_capture_leaves_other_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, **more: asked.append(more) or nullcontext())
    made = stepper(monkeypatch)
    monkeypatch.setattr(made, "_update", lambda *_: torch.zeros(()))
    made._capture(torch.zeros(2), torch.zeros(2), True, False)
    assert asked == [{"capture_error_mode": "thread_local"}]


def test_without_a_c_compiler_the_step_is_eager_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stepper(monkeypatch).graphs
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.warns(UserWarning, match="no C compiler here, so the step runs uncompiled"):
        assert not stepper(monkeypatch).graphs


def test_tf32_is_a_switch_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for config in (RECIPES["2012"], replace(RECIPES["2012"], tf32=True), RECIPES["modern"]):
        set_numerics(config, torch.device("cuda", 0))
    assert chosen == ["highest", "high", "high"]


def test_data_parallel_ranks_compile_what_they_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped: list[tuple[object, dict[str, object]]] = []
    compiled = AlexNet.of(CONFIG, 4)
    monkeypatch.setattr(torch, "compile", lambda _network: compiled)
    monkeypatch.setattr(
        torch.nn.parallel,
        "DistributedDataParallel",
        lambda network, **more: wrapped.append((network, more)) or network,
    )
    network = AlexNet.of(CONFIG, 4)
    group = Workers("data", 0, 2, torch.device("cuda", 0))
    made = Stepper.of(network, optimizer_for(network, CONFIG), None, CONFIG, torch.arange(1), group)  # type: ignore[arg-type]
    assert wrapped[0][0] is compiled
    assert wrapped[0][1]["gradient_as_bucket_view"]
    assert not made.graphs


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own look at what crossed
@pytest.mark.parametrize("recipe", ["2012", "modern"])
@pytest.mark.parametrize(("mode", "pieces"), [("none", 1), ("data", 1), ("towers", len(SEGMENTS))])
def test_what_is_compiled_serves_every_update(
    mode: Mode, pieces: int, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work: compiler(work, backend=counted, fullgraph=True))
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda network, **_: network)
    monkeypatch.setattr(towers, "swap", lambda x, _rank: x.clone())
    monkeypatch.setattr(towers, "receive", lambda space, _source: torch.zeros_like(space))
    monkeypatch.setattr(towers, "send", lambda _x, _to: None)
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: None)
    config = replace(RECIPES[recipe], window=99, hidden=8, batch_size=2)
    network = Tower.of(config, 4).split(0) if mode == "towers" else AlexNet.of(config, 4)
    network.initialise(torch.Generator().manual_seed(0))
    augmenter = Augmenter(64, 99, Statistics([0.0] * 3, np.eye(3).tolist()), Colour(0.1), torch.device("cpu"))
    group = Workers(mode, 0, 2, torch.device("cuda", 0))
    made = Stepper.of(network, optimizer_for(network, config), augmenter, config, torch.arange(2), group)
    images, labels = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.tensor([0, 3])
    before = network.get_parameter("conv1.weight").clone()
    for update in range(3):
        made(update, images, labels, Rates(0.01, 0.01, 0.01, 0.01), False)
    assert len(graphs) == pieces
    assert not torch.equal(network.get_parameter("conv1.weight"), before)


@pytest.mark.parametrize("recipe", ["2012", "modern"])
def test_an_update_never_waits_for_the_device(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data refuse whatever would bring a number to the host."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    meta = torch.device("meta")
    config = replace(RECIPES[recipe], window=99, hidden=8, batch_size=32, bfloat16=False)
    statistics = Statistics([0.0] * 3, np.eye(3).tolist())
    split = Split(np.zeros((1, 256, 256, 3), np.uint8), np.zeros(1, np.int64), [], statistics)
    network = AlexNet.of(config, 4).to(meta)
    made = Stepper(
        network,
        optimizer_for(network, config),
        Augmenter.of(config, split, meta),
        config,
        torch.arange(32),
    )
    images = torch.empty(32, 256, 256, 3, dtype=torch.uint8, device=meta)
    labels = torch.empty(32, dtype=torch.int64, device=meta)
    for colour, mix in ((True, recipe == "modern"), (False, False)):
        assert made(7, images, labels, Rates(0.01, 0.01, 0.01, 0.01, colour), mix).is_meta
