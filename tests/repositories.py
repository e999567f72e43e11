"""Model repositories for tests: the 2012 network with random weights, an eighth as wide."""

import numpy as np

from alexnet_server.models.export.calibrate import calibrate
from alexnet_server.models.export.card import Card
from alexnet_server.models.export.graph import VIEWS
from alexnet_server.models.export.quantize import fit
from alexnet_server.models.export.weights import random_weights, scaled
from alexnet_server.models.export.write import Plan, export, packed_weights
from alexnet_server.models.variants import VARIANTS

CARD = Card(
    title="AlexNet for tests",
    summary="Random weights, good for nothing else.",
    data="none",
    recipe="none",
    licence="CC0",
    limits=("It knows nothing.",),
    accuracy=({"set": "noise", "views": "ten", "images": 10, "top1": 0.1, "top5": 0.5},),
)


def structured_photos(count=3):
    """(count, 256, 256, 3) uint8 with structure at every scale, so that shifted or mirrored crops differ."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (count, 16, 16, 3)).repeat(16, 1).repeat(16, 2)
    return np.clip(coarse + rng.integers(-60, 61, (count, 256, 256, 3)), 0, 255).astype(np.uint8)


def write_repository(folder, *, classes=10, hidden=96, seed=0, views=VIEWS, budget=100_000, **changes):
    """Export a tiny repository and return the weights it serves. ``changes`` are of ``export.Plan``."""
    weights = random_weights(scaled(VARIANTS["2012"], 8, hidden), classes, seed=seed, mean="pixel")
    quantised = fit(weights.served(), budget=budget)
    served = packed_weights(weights, quantised)
    photos = structured_photos()
    plan = {
        "weights": weights,
        "card": CARD,
        "quantised": quantised,
        "views": views,
        "ranges": calibrate(served, photos),
        "golden": ("noise.png", photos[0]),
    }
    export(Plan(**plan | changes), folder)
    return served
