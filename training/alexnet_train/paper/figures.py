"""The paper's figures drawn from our runs: kernels, predictions and neighbours, and training curves.

alexnet-train figures --checkpoint runs/2012/last.pt --data data/tiny --out figures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet_train import checkpoint
from alexnet_train.data.dataset import Split
from alexnet_train.evaluate.checkpoints import Served, batches
from alexnet_train.run import log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KERNELS_A_ROW = 16
"""shownet.py:110-197: 16 filters a row, so that each tower's 48 fill three."""
TRUE_COLOUR, OTHER_COLOUR = "#b2182b", "#9ecae1"
SHOWN, BARS, QUERIES, NEIGHBOURS = 8, 5, 5, 6


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def kernels(weight: NDArray[np.float32], towers: bool = True) -> NDArray[np.float32]:
    """Figure 3's picture of conv1: (96, 3, 11, 11) to (height, width, 3) in 0-1, a pixel between kernels.

    One range for all kernels (shownet.py:110-197). With ``towers`` a wider gap parts a's from b's.
    """
    levels = (weight - weight.min()) / (weight.max() - weight.min())
    count, side = len(levels), levels.shape[-1]
    rows, cell = -(-count // KERNELS_A_ROW), side + 1
    gap = 3 * cell // 4 if towers else 0
    picture = np.ones((rows * cell + 1 + gap, KERNELS_A_ROW * cell + 1, 3), np.float32)
    for i, kernel in enumerate(levels):
        row, column = divmod(i, KERNELS_A_ROW)
        top = 1 + row * cell + (gap if towers and i >= count // 2 else 0)
        left = 1 + column * cell
        picture[top : top + side, left : left + side] = kernel.transpose(1, 2, 0)
    return picture


def draw_kernels(weight: NDArray[np.float32], path: Path, towers: bool = True) -> None:
    """Write Figure 3: tower a's kernels above tower b's."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.imshow(kernels(weight, towers), interpolation="nearest")
    axes.set_axis_off()
    _save(figure, path)


def draw_predictions(served: Served, split: Split, path: Path, chosen: Sequence[int] | None = None) -> None:
    """Write Figure 4's left half: eight images with their five best labels as bars, the true one red."""
    pyplot = _pyplot()
    index = np.arange(SHOWN) if chosen is None else np.array(chosen)
    images, labels = split.images[index], split.labels[index]
    probabilities = served.probabilities(images)
    figure, axes = pyplot.subplots(4, 4, figsize=(12, 9), height_ratios=[3, 2, 3, 2])
    for i, (image, label, p) in enumerate(zip(images, labels, probabilities, strict=True)):
        row, column = divmod(i, 4)
        axes[2 * row, column].imshow(image)
        axes[2 * row, column].set_title(_name(split, label), fontsize=9)
        axes[2 * row, column].set_axis_off()
        _bars(axes[2 * row + 1, column], split, p, int(label))
    figure.tight_layout()
    _save(figure, path)


def _bars(axes: Axes, split: Split, p: NDArray[np.float32], label: int) -> None:
    """Five bars, the best on top (shownet.py:199-260)."""
    best = np.argsort(-p)[:BARS][::-1]
    colours = [TRUE_COLOUR if k == label else OTHER_COLOUR for k in best]
    axes.barh(range(len(best)), p[best], color=colours)
    for place, k in enumerate(best):
        axes.text(0.02, place, _name(split, k), va="center", fontsize=8)
    axes.set(xlim=(0, 1), xticks=[], yticks=[])


def _name(split: Split, label: int) -> str:
    """The class' words before the first comma, as in the paper."""
    return split.classes[label][1].split(",")[0]


def nearest(queries: NDArray[np.float32], pool: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """(Q, count): the rows of ``pool`` (N, D) nearest to each of (Q, D) by Euclidean distance."""
    distances = (queries**2).sum(1)[:, None] - 2 * queries @ pool.T + (pool**2).sum(1)
    order: NDArray[np.int64] = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return order


def draw_neighbours(served: Served, test: Split, training: Split, path: Path, pool: int = 5000) -> None:
    """Write Figure 4's right half: five test images, each with the six nearest of ``pool`` training images.

    Near means a small Euclidean distance between fc7's activations (section 6.1; findsimilar.py).
    """
    pyplot = _pyplot()
    queries = _spread(test, QUERIES)
    images = training.images[: min(pool, len(training.labels))]
    whole = Split(images, training.labels[: len(images)], training.classes, None)
    features = np.concatenate([served.features(part) for part in batches(whole)])
    found = nearest(served.features(test.images[queries]), features, NEIGHBOURS)
    figure, axes = pyplot.subplots(QUERIES, NEIGHBOURS + 1, figsize=(9, 7))
    for row, query in enumerate(queries):
        for column, image in enumerate([test.images[query], *images[found[row]]]):
            axes[row, column].imshow(image)
            axes[row, column].set_axis_off()
        axes[row, 0].set_title(_name(test, int(test.labels[query])), fontsize=7)
    figure.tight_layout()
    _save(figure, path)


def _spread(split: Split, count: int) -> NDArray[np.int64]:
    """Indices of ``count`` images of as many different classes as there are, spread over the classes."""
    _, first = np.unique(split.labels, return_index=True)
    return first[np.linspace(0, len(first) - 1, count).astype(np.int64)]


def draw_curves(logs: Sequence[Path], path: Path) -> None:
    """Write training loss and held-out error over updates, from the JSONL logs of one or more runs.

    Raises:
        LogError: a log is missing or holds no loss yet.
    """
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for file in logs:
        records = log.read(file)
        losses = [(r["step"], r["loss"]) for r in records if "loss" in r]
        if not losses:
            raise log.LogError(f"{file}: no loss in it yet; let the run continue")
        left.plot(*zip(*losses, strict=True), label=file.parent.name)
        _plot_errors(right, file.parent.name, [r for r in records if "top1_error" in r])
    left.set(xlabel="update", ylabel="training loss (nats)")
    right.set(xlabel="update", ylabel="error on held-out images", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    _save(figure, path)


def _plot_errors(axes: Axes, run: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Top-1 error and, where there are more than five classes, top-5 error of one run's evaluations."""
    if not records:
        return
    steps = [r["step"] for r in records]
    (line,) = axes.plot(steps, [r["top1_error"] for r in records], marker=".", label=f"{run}, top-1")
    top5 = [(r["step"], r["top5_error"]) for r in records if "top5_error" in r]
    if top5:
        color = line.get_color()
        axes.plot(*zip(*top5, strict=True), marker=".", ls="--", color=color, label="top-5")


def draw_all(path: Path, test: Split, training: Split, out: Path) -> list[Path]:
    """Figures 3 and 4 and the curves of one run's checkpoint; returns the files written."""
    out.mkdir(parents=True, exist_ok=True)
    state = checkpoint.load(path)
    served = Served.load(path, test.size)
    names = ["figure-3-kernels", "figure-4-predictions", "figure-4-neighbours", "curves"]
    files = [out / f"{name}.png" for name in names]
    draw_kernels(checkpoint.serving_state(state)["conv1.weight"].float().numpy(), files[0])
    draw_predictions(served, test, files[1], list(_spread(test, SHOWN)))
    draw_neighbours(served, test, training, files[2])
    if not (path.parent / "log.jsonl").exists():
        return files[:3]
    draw_curves([path.parent / "log.jsonl"], files[3])
    return files


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    _pyplot().close(figure)
