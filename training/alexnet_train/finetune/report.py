"""What held-out photos say of a new head: accuracy and interval, classes, confusions, the worst photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_train.evaluate.accuracy import Evaluation
from alexnet_train.evaluate.calibration import softmax
from alexnet_train.finetune.learn import HeldOut
from alexnet_train.finetune.photos import Photo

WORST = 12
"""Photos that the card names."""


@dataclass(frozen=True)
class Report:
    """The centre view's answers for held-out photos, as the chosen penalty gave them before the last fit."""

    classes: Sequence[tuple[str, str]]
    photos: Sequence[Photo]
    evaluation: Evaluation

    @classmethod
    def of(
        cls, classes: Sequence[tuple[str, str]], photos: Sequence[Photo], held: HeldOut, temperature: float
    ) -> Report:
        """From the held-out logits; ``photos`` are those that ``held.photos`` counts."""
        probabilities = softmax(held.logits[:, 0] / np.float32(temperature))
        return cls(classes, [photos[i] for i in held.photos], Evaluation(probabilities, held.labels, 0.0))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): rows are labels."""
        return self.evaluation.confusion()

    def row(self, precision: str) -> dict[str, Any]:
        """A row of the card's accuracies."""
        right = self.evaluation.hits(1)
        row: dict[str, Any] = {
            "set": "held-out photos",
            "views": "center",
            "precision": precision,
            "images": len(right),
            "top1": round(float(right.mean()), 4),
            "top1_interval": [round(bound, 4) for bound in wilson(int(right.sum()), len(right))],
        }
        if self.evaluation.tells_top5:
            row["top5"] = round(float(self.evaluation.hits(5).mean()), 4)
        return row

    def accuracy_line(self) -> str:
        """Accuracy and its interval."""
        right = self.evaluation.hits(1)
        low, high = wilson(int(right.sum()), len(right))
        return (
            f"accuracy on {len(right)} held-out photos: {right.mean():.1%} "
            f"(95 % interval {low:.1%} to {high:.1%})"
        )

    def confusion_line(self) -> str:
        """The pair of classes confused most."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        label, guess = divmod(int(wrong.argmax()), len(wrong))
        if not wrong.any():
            return "worst confusion: none, all held-out photos are right"
        total = int(self.confusion[label].sum())
        of, taken = self.classes[label][0], self.classes[guess][0]
        return f"worst confusion: {int(wrong[label, guess])} of {total} {of!r} are taken for {taken!r}"

    def worst(self) -> list[tuple[Photo, int, float]]:
        """Photo, guess and its score: the wrong ones, the most certain first."""
        guesses, scores = self.evaluation.probabilities.argmax(1), self.evaluation.probabilities.max(1)
        wrong = np.flatnonzero(guesses != self.evaluation.labels)
        order = wrong[np.argsort(-scores[wrong], kind="stable")][:WORST]
        return [(self.photos[i], int(guesses[i]), float(scores[i])) for i in order]

    def markdown(self) -> str:
        """For the model card: a table of classes, the confusion picture, the worst photos."""
        lines = [
            "## Held-out photos",
            "",
            "| class | photos | right | most often taken for |",
            "|---|---|---|---|",
        ]
        for index, counts in enumerate(self.confusion):
            others = counts.copy()
            others[index] = 0
            taken = (
                f"{_cell(self.classes[int(others.argmax())][0])} ({others.max()})" if others.any() else "–"
            )
            share = f"{counts[index] / counts.sum():.0%}" if counts.any() else "–"
            lines.append(f"| {_cell(self.classes[index][0])} | {counts.sum()} | {share} | {taken} |")
        lines += ["", "![Rows are labels, columns the best guesses](confusion.png)", ""]
        if worst := self.worst():
            lines += ["| photo it gets most wrong | is | taken for | score |", "|---|---|---|---|"]
        for photo, guess, score in worst:
            file = _cell(f"{photo.path.parent.name}/{photo.path.name}")
            names = _cell(self.classes[photo.label][0]), _cell(self.classes[guess][0])
            lines.append(f"| {file} | {names[0]} | {names[1]} | {score:.2f} |")
        return "\n".join(lines).rstrip()


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927), which stays sensible when all or few are right."""
    z = 1.959964
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / count + spread / (4 * count)))
    return max(0.0, middle - half), min(1.0, middle + half)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
