"""The golden photo: one photo whose answer is known, classified before the server calls itself ready."""

from __future__ import annotations

import numpy as np

from alexnet_server.batching.scheduler import Row
from alexnet_server.engines import Model

TOLERANCE = 0.05
"""Largest difference of the best score from the card's, which was computed in fp32."""


def mismatch(model: Model, row: Row) -> str | None:
    """What is wrong with a model's answer to the photo; None when it is as the model card says."""
    best = int(np.argmax(row.probabilities))
    found = float(row.probabilities[best])
    if not np.isfinite(row.probabilities).all():
        return f"{model.name} answers the golden photo with scores that are not numbers: its file is damaged"
    if model.golden is None:
        return None
    index, score = model.golden
    if best == index and abs(found - score) <= TOLERANCE:
        return None
    return (
        f"{model.name} calls the golden photo {model.labels[best].words!r} ({found:.3f}), "
        f"its card {model.labels[index].words!r} ({score:.3f}): the model file, its labels or "
        "this machine's arithmetic are wrong"
    )
