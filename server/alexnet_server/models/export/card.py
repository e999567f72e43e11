"""The model card: what people need to know before they use the weights, as data and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """The part of a card that comes from people or measurements; ``export`` adds the rest.

    ``accuracy`` has a row for each measurement: ``set`` (which images), ``views``, ``precision``, ``images``,
    ``top1`` (shares, 0..1), and where known ``top5`` (of more than five classes) and ``calibration_error``.
    """

    title: str
    summary: str
    data: str
    recipe: str
    licence: str
    limits: Sequence[str] = ()
    accuracy: Sequence[Mapping[str, Any]] = ()
    source: str | None = None
    """Where weights that were not trained here come from."""
    picture: str | None = None
    """A picture of the first layer's kernels: its path as seen from the repository."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More for card.json, which is kept but not shown."""

    def told(self) -> dict[str, Any]:
        """The card's own entries for card.json."""
        entries = {
            "title": self.title,
            "summary": self.summary,
            "data": self.data,
            "recipe": self.recipe,
            "licence": self.licence,
            "limits": list(self.limits),
            "accuracy": [dict(row) for row in self.accuracy],
            "source": self.source,
            "picture": self.picture,
        }
        return {**entries, **self.extra}


def readme(card: Mapping[str, Any]) -> str:
    """The card of a repository (card.json's contents) as Markdown."""
    parts = [f"# {card['title']}", card["summary"]]
    parts += [f"![{_KERNELS}]({card['picture']})"] if card.get("picture") else []
    parts += ["## Accuracy", accuracy_table(card["accuracy"])] if card["accuracy"] else []
    parts += [card["details"]] if card.get("details") else []
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in card["limits"])] if card["limits"] else []
    parts += ["## Data", card["data"], "## Recipe", card["recipe"], "## Licence", card["licence"]]
    parts += [f"Source: {card['source']}"] if card.get("source") else []
    if "weights" in card:
        parts += ["## Files", _LAYOUT.format(**card["weights"], precisions=", ".join(card["precisions"]))]
    parts += [_models(card["models"])]
    return "\n\n".join(parts) + "\n"


_KERNELS = "The kernels of the first layer, those of the first tower above those of the second"
_SHARES = ("top1", "top5", "calibration_error")


def accuracy_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``Card.accuracy`` in Markdown; a share that is unknown or meaningless is a dash."""
    lines = [
        "| images | views | precision | top-1 | top-5 | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = (f"{100 * row[key]:.1f} %" if key in row else "–" for key in _SHARES)
        lines.append(
            f"| {row['set']} ({row['images']:,}) | {row['views']} | {row.get('precision', 'fp32')} "
            f"| {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def _models(models: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| model | views | largest batch | temperature |", "|---|---|---|---|"]
    for name, model in models.items():
        lines.append(
            f"| `{name}` | {model['views']} | {model['max_batch_size']} | {model['temperature']:g} |"
        )
    return "\n".join(lines)


_LAYOUT = """This is a model repository in Triton's layout. All weights are stored once, compressed, in
`{file}` ({bytes:,} bytes, sha256 `{sha256}`).
`alexnet-server unpack` completes the graphs from it (`--precision` {precisions}); the server does so by
itself if `1/model.onnx` is missing.

```
card.json                     this page as data
{file}               every tensor once: a NumPy archive of int8 codes and scales
<model>/config.pbtxt          for Triton and alexnet-server (configs/: variants for --model-config-name)
<model>/labels.txt            one class per line, in output order: WordNet id, tab, words
<model>/graph.<precision>.onnx   the graph without weights
<model>/1/model.onnx          the complete graph, unpacked, and model.json, its sha256; not in git
```"""
