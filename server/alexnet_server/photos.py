"""The three photos that travel with the server: for its page, and to try models on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet_server.preprocess import prepare

FOLDER = Path(__file__).parent / "http" / "page"
"""``cat.jpg``, ``coffee.jpg`` and ``rocket.jpg``, CC0."""
PHOTO = FOLDER / "cat.jpg"
"""The golden photo: Chelsea, photographed by Stéfan van der Walt (CC0)."""


def golden_image() -> NDArray[np.uint8]:
    """It as an image, without this server's own limits: an operator may set them lower than it is."""
    return prepare(PHOTO.read_bytes())
