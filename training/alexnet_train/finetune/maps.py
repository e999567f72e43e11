"""What conv4 reads of random crops and of held-out views, computed once by the frozen layers before it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alexnet_server.models.export.run import runner
from alexnet_server.preprocess import SIDE, prepare
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.errors import FinetuneError
from alexnet_train.finetune.graph import up_to
from alexnet_train.finetune.learn import Indices
from alexnet_train.finetune.photos import Photo
from alexnet_train.finetune.views import six_views

CROPS = 10
"""Random crops of a photo, about half of them mirrored."""

Maps = NDArray[np.float16]
"""(photos, views, channels, 13, 13), 130 kB a view; they lie in a file, which memory keeps as it has room."""
_LARGEST = float(np.finfo(np.float16).max)
_Images = NDArray[np.uint8]


class Front:
    """The layers before conv4, in fp32 and as the base's centre view serves them.

    Args:
        base: the network.
        photos: those that maps are asked for, by index.
        crop: side of the crops that the network takes.
        seed: of crops and zooms.
    """

    def __init__(self, base: Base, photos: Sequence[Photo], crop: int, seed: int) -> None:
        model = up_to(base.model("fp32"), "conv4")
        self._run, self._output = runner(model), model.graph.output[0].name
        self._photos, self._crop, self._seed = photos, crop, seed

    def crops(self, rows: Indices) -> Maps:
        """Of 10 random crops of each photo, the same whichever others are asked for."""
        return self._maps(rows, partial(random_crops, side=self._crop), "crops")

    def views(self, rows: Indices) -> Maps:
        """Of the 6 views that features are made of, the photo as it is served first."""
        return self._maps(rows, six_views, "held-out views")

    def _maps(
        self, rows: Indices, seen: Callable[[_Images, np.random.Generator], _Images], what: str
    ) -> Maps:
        # The file has no name and ends with the array.
        with tempfile.TemporaryFile() as file:
            for row in tqdm(rows, desc=what, unit="photo", mininterval=1):
                image = prepare(self._photos[row].path.read_bytes())
                found = self._run([self._output], seen(image, np.random.default_rng([self._seed, row])))[0]
                try:
                    file.write(found.clip(max=_LARGEST).astype(np.float16).tobytes())
                    file.flush()
                except OSError as error:
                    raise FinetuneError(
                        f"{what} of {len(rows)} photos take {found.size * len(rows) * 2 >> 20} MiB in "
                        f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with more room"
                    ) from error
            return np.memmap(file, np.float16, "r", shape=(len(rows), *found.shape))


def random_crops(image: _Images, draw: np.random.Generator, side: int) -> _Images:
    """Random crops and mirrors, each in the middle of an image, where the centre view finds it.

    Args:
        image: (256, 256, 3) uint8.
        draw: what is random about them.
        side: theirs in pixels.

    Returns:
        (10, 256, 256, 3) uint8, black around the crops.
    """
    first = (SIDE - side) // 2
    middle = slice(first, first + side)
    crops = np.zeros((CROPS, *image.shape), np.uint8)
    for place in crops:
        top, left = draw.integers(SIDE - side + 1, size=2)
        cut = image[top : top + side, left : left + side]
        place[middle, middle] = cut[:, ::-1] if draw.random() < 0.5 else cut
    return crops
