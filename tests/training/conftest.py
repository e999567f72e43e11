"""What training's tests share: a small prepared dataset, photos with structure, a way to run a graph."""

from pathlib import Path

import importing
import numpy as np
import onnxruntime
import pytest
from staged import run_stages

from alexnet_train.data.dataset import write_meta
from alexnet_train.data.prepare import measure

CLASSES = [(f"n0000000{i}", f"colour {i}") for i in range(4)]


def write_split(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` noisy images whose colour tells their label."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, len(CLASSES), count)
    colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 60]])
    noise = draw.normal(0, 40, (count, 64, 64, 3))
    images = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    write_meta(folder, CLASSES, count, 64, measure(images))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the splits ``train`` (96 images) and ``validation`` (32)."""
    folder = tmp_path_factory.mktemp("dataset")
    write_split(folder / "train", 96, 1)
    write_split(folder / "validation", 32, 2)
    return folder


@pytest.fixture(scope="session")
def stages(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with both stages' small checkpoints; nothing may be written there."""
    out = tmp_path_factory.mktemp("runs")
    run_stages(dataset, out)
    return out


@pytest.fixture(scope="session")
def run_onnx():
    """Run a model (ModelProto) on images; returns the outputs asked for, all of them by default."""

    def run(model, images, outputs=None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(outputs, {"images": images})

    return run


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A labels file for the importers' small networks."""
    path = tmp_path / "classes.txt"
    path.write_text("".join(f"n{i:08d}\tthing {i}\n" for i in range(importing.CLASSES)))
    return path
