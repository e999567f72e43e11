"""The paper's published figures, and tables that put ours beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published result: top-1 and top-5 error in per cent on a data set, and where it is said."""

    network: str
    data: str
    top1: float
    top5: float
    source: str


PUBLISHED = (
    Published("one CNN, ten views", "ILSVRC-2010 test", 37.5, 17.0, "Table 1"),
    Published("one CNN, centre view", "ILSVRC-2010 test", 39.0, 18.3, "section 4.1"),
    Published("one CNN, ten views", "ILSVRC-2012 validation", 40.7, 18.2, "Table 2"),
    Published("five CNNs", "ILSVRC-2012 validation", 38.1, 16.4, "Table 2"),
    Published(
        "one CNN, six convolutions, pretrained on 2011", "ILSVRC-2012 validation", 39.0, 16.6, "Table 2"
    ),
    Published("seven CNNs, two of them pretrained", "ILSVRC-2012 validation", 36.7, 15.4, "Table 2"),
    Published("BVLC AlexNet (Caffe), centre view", "ILSVRC-2012 validation", 42.9, 19.8, "its readme"),
    Published(
        "torchvision's AlexNet, centre view", "ILSVRC-2012 validation", 43.5, 20.9, "its documentation"
    ),
    Published(
        "AlexNet-like, ten views, 64-pixel images", "Tiny ImageNet validation", 57, 32, "gchaperon/alexnet"
    ),
)


def results_table(ours: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: errors of ``Evaluation.summary`` by name, then the published ones."""
    rows = ["| network | images | top-1 error | top-5 error | |", "|---|---|---|---|---|"]
    for name, result in ours.items():
        low, high = (100 - 100 * result["top1_interval"][i] for i in (1, 0))
        top5 = f"{100 - 100 * result['top5']:.1f} %" if "top5" in result else "–"
        rows.append(
            f"| {name} | {result['images']:,} | {100 - 100 * result['top1']:.1f} % "
            f"| {top5} | 95 %: {low:.1f}-{high:.1f} |"
        )
    for p in PUBLISHED:
        rows.append(f"| {p.network} | {p.data} | {p.top1:.1f} % | {p.top5:.1f} % | {p.source} |")
    return "\n".join(rows)
