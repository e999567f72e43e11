"""Two processes, one tower each, equal one process; so do two data-parallel ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from ranks import Case, narrow, spawn, trained
from torch import Tensor

from alexnet_server.models.variants import VARIANTS
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.network.draws import Draws
from alexnet_train.network.towers import OF_RANK_0, SEGMENTS, Tower, TowerError, own_rows
from alexnet_train.run.parallel import ParallelError, Workers, workers

ALONE = Workers("none", 0, 1, torch.device("cpu"))
Results = dict[str, dict[str, Tensor]]


def furthest(one: Results, other: Results) -> float:
    """The largest difference of all tensors, relative to each tensor's maximum."""
    assert {kind: set(values) for kind, values in one.items()} == {k: set(v) for k, v in other.items()}
    return max(
        ((other[kind][name] - value).abs().max() / value.abs().max()).item()
        for kind, values in one.items()
        for name, value in values.items()
    )


def by_ranks(case: Case, mode: str, folder: Path) -> Results:
    spawn(ranks.trained_by_ranks, case, mode, folder / "results.pt")
    results: Results = torch.load(folder / "results.pt")
    return results


@pytest.mark.numerics
@pytest.mark.parallel
@pytest.mark.parametrize("name", ["2012", "paper"])
def test_two_towers_equal_one_process(name: str, tmp_path: Path) -> None:
    case = Case(narrow(name), window=99)
    alone, together = trained(case, ALONE), by_ranks(case, "towers", tmp_path)
    assert furthest(alone, together) <= 1e-9
    for tensor in together["gradients"].values():
        halves = tensor.chunk(2, 0) if len(tensor) > ranks.CLASSES else (tensor,)
        assert all(half.abs().max() > 0 for half in halves)


@pytest.mark.numerics
@pytest.mark.parallel
def test_compiled_towers_equal_one_process(tmp_path: Path) -> None:
    case = Case(narrow("2012"), window=99, compiled=True)
    assert furthest(trained(case, ALONE), by_ranks(case, "towers", tmp_path)) <= 1e-9


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own look at what crossed
@pytest.mark.parametrize("name", ["2012", "paper"])
def test_a_tower_is_compiled_once_in_one_graph_for_each_segment(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(Tower, "join", lambda _tower, x: torch.cat((x, x), 1))
    tower = Tower(narrow(name), 10, window=99).split(0)
    tower.initialise(torch.Generator().manual_seed(1))
    compiled, x = tower.compiled(backend=counted, fullgraph=True), torch.randn(8, 3, 99, 99)
    for step in range(3):
        draws = Draws(7, torch.tensor(step), torch.arange(8))
        with torch.autocast("cpu", torch.bfloat16):
            units = compiled.hidden_units(compiled.pool5(x), draws)
        units.sum().backward()
    assert len(graphs) == len(SEGMENTS)
    without = {name for name, parameter in tower.named_parameters() if parameter.grad is None}
    assert without == set(OF_RANK_0), "fc8 comes behind the last crossing"


@pytest.mark.parallel
@pytest.mark.parametrize(
    "fault", ["the remote gradient is dropped", "masks are redrawn", "the LRN spans the towers"]
)
def test_the_equality_test_notices_when(fault: str, tmp_path: Path) -> None:
    case = Case(narrow("2012"), window=99)
    alone, broken = trained(case, ALONE), by_ranks(replace(case, fault=fault), "towers", tmp_path)
    assert furthest(alone, broken) > 1e-6


@pytest.mark.numerics
@pytest.mark.parallel
def test_data_parallel_equals_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    case = Case(narrow("2012"), window=99)
    assert furthest(trained(case, ALONE), by_ranks(case, "data", tmp_path)) <= 1e-9


@pytest.mark.parallel
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["towers", "data"])
def test_full_width_equals_one_process(mode: str, tmp_path: Path) -> None:
    case = Case(VARIANTS["2012"], window=224, batch_size=4)
    assert furthest(trained(case, ALONE), by_ranks(case, mode, tmp_path)) <= 1e-9


def test_each_rank_owns_the_parameters_the_issue_counts() -> None:
    with torch.device("meta"):
        whole = AlexNet(VARIANTS["2012"], 1000)
        halves = [Tower(VARIANTS["2012"], 1000).split(rank) for rank in (0, 1)]
    counts = [sum(p.numel() for p in half.parameters()) for half in halves]
    assert counts == [32_531_112, 28_434_112]
    for rank, half in enumerate(halves):
        share = own_rows(whole.state_dict(), rank)
        assert {n: t.shape for n, t in half.state_dict().items()} == {n: t.shape for n, t in share.items()}


@pytest.mark.parametrize(
    ("name", "reason"), [("caffe", "response norm spans"), ("caffenet", "spans"), ("owt", "no two towers")]
)
def test_variants_that_do_not_split_are_refused(name: str, reason: str) -> None:
    with pytest.raises(TowerError, match=reason), torch.device("meta"):
        Tower(VARIANTS[name], 10).split(0)


@pytest.mark.parametrize(
    ("mode", "world", "mend"),
    [("towers", "1", "--nproc-per-node 2"), ("towers", "3", "here are 3"), ("none", "2", "add --parallel")],
)
def test_a_wrong_number_of_processes_is_named(
    mode: str, world: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ParallelError, match=mend), workers(mode, ""):  # type: ignore[arg-type]
        pass
