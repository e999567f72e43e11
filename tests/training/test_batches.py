from dataclasses import replace

import numpy as np
import torch

from alexnet_train.config import Config
from alexnet_train.data.dataset import Split
from alexnet_train.run.batches import Batches, batch_indices

CONFIG = Config("x", batch_size=4, held_out=2)


def test_shuffled_epochs_see_every_image_once_but_the_remainder() -> None:
    epochs = [torch.cat([batch_indices(CONFIG, 10, e * 2 + i) for i in range(2)]) for e in range(3)]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_the_fixed_order_is_the_files_without_a_gap() -> None:
    config = replace(CONFIG, fixed_order=True)
    stream = torch.cat([batch_indices(config, 10, step) for step in range(5)])
    assert stream.tolist() == [*range(10), *range(10)]


def test_ranks_take_their_part_of_the_joined_batch_and_never_a_held_out_image() -> None:
    images = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    split = Split(images, np.arange(12), [("n", "n")] * 12, None)
    cpu = torch.device("cpu")
    whole = Batches(split, CONFIG, torch.arange(4), cpu, 10)
    parts = [Batches(split, CONFIG, torch.arange(2) + 2 * rank, cpu, 10) for rank in (0, 1)]
    for step in range(6):
        images_seen, labels = whole(step)
        joined = [torch.cat(pieces) for pieces in zip(*(part(step) for part in parts), strict=True)]
        assert torch.equal(images_seen, joined[0])
        assert torch.equal(labels, joined[1])
        assert labels.max() < 10
        assert torch.equal(images_seen[:, 0, 0, 0].long(), labels)
