"""The shipped default against PyTorch, on the validation images: slow."""

from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import ensure_unpacked
from alexnet_server.models.variants import VARIANTS
from alexnet_server.models.weights import read_weights, tensor
from alexnet_train.data.dataset import Statistics, open_split
from alexnet_train.data.enlarge import enlarge
from alexnet_train.data.prepare import prepare
from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.network.alexnet import AlexNet
from alexnet_train.run.augment import Augmenter, Colour
from tests.outside import outside

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_served_top1_is_pytorchs_wherever_its_margin_tells(tmp_path: Path) -> None:
    prepare(outside("tiny-imagenet-200"), tmp_path, "validation")
    split = open_split(tmp_path / "validation")
    repository = read_repository(ROOT / "model_repository")
    entry = repository.models["alexnet"]
    weights = read_weights(ROOT / "model_repository" / "alexnet.weights")
    network = AlexNet(VARIANTS["2012"], len(entry.labels), dropout=0.0).eval()
    network.load_state_dict(
        {name: torch.from_numpy(tensor(weights, name).copy()) for name in network.state_dict()}
    )
    mean = weights["mean"].reshape(3).tolist()
    crops = Augmenter(256, 224, Statistics(mean, np.eye(3).tolist()), Colour(), torch.device("cpu"))
    served = EngineInfer(repository, entry, ensure_unpacked(repository, ("fp32",))["alexnet"])
    told = 0
    for start in range(0, len(split.labels), 32):
        images = enlarge(split.images[start : start + 32])
        with torch.inference_mode():
            expected = network(crops.centre(torch.from_numpy(images))).softmax(1).numpy()
        best = np.sort(expected, axis=1)[:, -2:]
        clear = best[:, 1] - best[:, 0] > 1e-4
        found = served(images)
        assert (found.argmax(1) == expected.argmax(1))[clear].all()
        told += int(clear.sum())
    assert told > 0.99 * len(split.labels)
