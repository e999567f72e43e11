"""The paper's ablations: what each part of net #145 is worth, beside what the authors found.

alexnet-train ablate 2012-tiny --data data/tiny --out runs/ablate --seeds 3 --set epochs=30

Every row is a run of the recipe with one thing taken away, so the recipe should be one without batch norm
(behind it, the LRN is close to a constant factor). Runs that are finished are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from alexnet_train.config import Config, ConfigError
from alexnet_train.run import log
from alexnet_train.run.loop import run


@dataclass(frozen=True)
class Ablation:
    """One row: what is changed in the recipe, and what the change cost the authors in points of error."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    """Top-1/top-5 points lost, and where it is said."""


# Differences to the whole net. "log" is the authors' parameter files: error of that net less that of #145.
ABLATIONS = (
    Ablation("whole"),
    Ablation("without LRN", {"variant": "2012-no-lrn"}, "1.4/1.2 (3.3); 1.4/1.2 (log 148)"),
    Ablation("pools do not overlap", {"variant": "2012-no-overlap"}, "0.4/0.3 (3.4); 0.4/0.3 (log 147)"),
    Ablation("no links between towers at conv3", {"variant": "2012-no-links"}, "1.2/1.1 (log 150)"),
    Ablation("half the kernels, one GPU", {"variant": "2012-half"}, "1.7/1.2 (3.2)"),
    Ablation("without conv4", {"variant": "2012-no-conv4"}, "about 2 top-1 (7)"),
    Ablation("no PCA colour", {"colour_pca": 0.0, "colour_divisor": 1.0}, "over 1 top-1 (4.1)"),
    Ablation("no dropout", {"dropout": 0.0}, "substantial overfitting (4.2)"),
    Ablation("tanh", {"activation": "tanh"}, "6 times slower to 25 % (3.1)"),
)
KINDS = ("top1_error", "top5_error")


def ablate(config: Config, data: Path, out: Path, seeds: int) -> Path:
    """Run every ablation of ``config`` with ``seeds`` seeds; writes and returns ``out/ablations.md``.

    Raises:
        ConfigError: the recipe uses batch norm or is not of variant 2012.
    """
    if config.batch_norm or config.variant != "2012":
        raise ConfigError(
            f"recipe {config.recipe}: ablations need variant 2012 without batch norm; use 2012 or 2012-tiny"
        )
    for ablation in ABLATIONS:
        for seed in range(config.seed, config.seed + seeds):
            folder = out / ablation.name.replace(" ", "-").replace(",", "") / str(seed)
            if "top1_error" not in _last(folder):
                run(replace(config, seed=seed, **ablation.changes), data, folder)
    table = out / "ablations.md"
    table.write_text(render(out))
    return table


def _last(folder: Path) -> dict[str, Any]:
    """The last line of a finished run's log: empty for one that is not."""
    path = folder / "log.jsonl"
    if not path.exists():
        return {}
    records = log.read(path)
    return records[-1] if records and records[-1].get("finished") else {}


def render(out: Path) -> str:
    """The table in Markdown: ours with the spread over seeds, the paper's beside it."""
    rows = ["| | top-1 error | top-5 error | points lost | the authors' |", "|---|---|---|---|---|"]
    whole: dict[str, float] = {}
    for ablation in ABLATIONS:
        folder = out / ablation.name.replace(" ", "-").replace(",", "")
        ends = [end for end in map(_last, sorted(folder.glob("*"))) if end]
        if not ends:
            continue
        errors = {kind: [100 * end[kind] for end in ends if kind in end] for kind in KINDS}
        whole = whole or {kind: mean(values) for kind, values in errors.items() if values}
        spread = " | ".join(_spread(values) for values in errors.values())
        lost = "/".join(_lost(values, whole.get(kind)) for kind, values in errors.items())
        rows.append(f"| {ablation.name} | {spread} | {lost} | {ablation.paper} |")
    return "\n".join(rows) + "\n"


def _lost(values: Sequence[float], whole: float | None) -> str:
    """Points of error more than ``whole``; a dash where one of them was not measured."""
    return "–" if whole is None or not values else f"{mean(values) - whole:.1f}"


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds, per cent; a dash for what was not measured."""
    if not values:
        return "–"
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
