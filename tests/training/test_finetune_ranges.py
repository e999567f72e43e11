"""The ranges of int8 that `alexnet-train finetune` takes from the photos it is given."""

import io
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from alexnet_server.models.export.calibrate import calibrate, observed_ranges
from alexnet_server.models.export.graph import (
    MODEL_NAMES,
    VIEWS,
    Architecture,
    calibration_graph,
    serving_graph,
)
from alexnet_server.models.export.layers import Range
from alexnet_server.models.export.weights import scaled
from alexnet_server.models.repository import read_repository
from alexnet_server.models.unpack import default_repository, ensure_unpacked
from alexnet_server.models.variants import VARIANTS
from alexnet_server.models.weights import stored_arrays
from alexnet_server.preprocess import prepare
from alexnet_train import cli
from alexnet_train.evaluate.repository import EngineInfer
from alexnet_train.finetune import calibrate as finetune_calibrate
from alexnet_train.finetune.base import Base
from alexnet_train.finetune.calibrate import FEWEST
from alexnet_train.finetune.photos import read_folders
from alexnet_train.finetune.ranges import calibration_points, with_ranges
from tests.outside import outside
from tests.repositories import write_repository

PER_CLASS = FEWEST // 2
FACTORS = {"narrow": 0.05, "wide": 20.0}
"""What the bases' ranges are of those of the photos."""
LAST_ANIMAL = "n0266"
"""WordNet ids below it are animals'."""
SMALL = {"fc6": 40, "fc7": 24}
"""Ranks of a network whose fully connected layers are products."""


def write_photos(folder, per_class, contrast):
    """Two classes, light above dark and light beside dark, ``contrast`` grey levels around 128."""
    for turned, name in enumerate(("above", "beside")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            draw = np.random.default_rng([turned, number])
            field = np.outer(np.sign(32.5 - np.arange(64)), np.ones(64)) * draw.uniform(0.5, 1)
            field = (field.T if turned else field) + draw.normal(0, 0.3, (64, 64))
            pixels = np.clip(128 + contrast * field, 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).convert("RGB").save(file, "PNG")
            (folder / name / f"{number}.png").write_bytes(file.getvalue())
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Bases whose ranges are far too narrow and far too wide, and what became of them; one that fits."""
    folder = tmp_path_factory.mktemp("ranges")
    weights = write_repository(folder / "fitting")
    photos = write_photos(folder / "photos", PER_CLASS, 100)
    ranges = calibrate(weights, [prepare(path.read_bytes()) for path in sorted(photos.rglob("*.png"))])
    for name, factor in FACTORS.items():
        own = {point: Range(factor * one.low, factor * one.high) for point, one in ranges.items()}
        write_repository(folder / name, ranges=own)
        finetune(photos, folder / f"from-{name}", folder / name)
    return folder


def finetune(photos, repository, base, *more):
    command = ["finetune", str(photos), "--repository", str(repository), "--from", str(base), *more]
    assert cli.main(command) == 0


def steps(repository, model="alexnet"):
    """The step of every grid of the int8 graph, by name."""
    graph = onnx.load(repository / model / "graph.int8.onnx", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    grids = [node.name.removesuffix(".codes") for node in graph.node if node.op_type == "QuantizeLinear"]
    return {name: float(numpy_helper.to_array(tensors[f"{name}.scale"])) for name in grids}


def infer(repository, precision, model="alexnet"):
    found = read_repository(repository)
    entry = found.models[model]
    return EngineInfer(found, entry, ensure_unpacked(found, (precision,), repository / precision)[model])


@pytest.mark.parametrize("base", ["narrow", "wide"])
@pytest.mark.parametrize("model", MODEL_NAMES.values())
def test_ranges_are_the_photos_own(model, base, served):
    was, now, fitting = (steps(served / name, model) for name in (base, f"from-{base}", "fitting"))
    assert was.keys() == now.keys()
    for name, step in now.items():
        assert abs(np.log(step / fitting[name])) < 0.5 * abs(np.log(FACTORS[base])), name
    recipe = read_repository(served / f"from-{base}").card["recipe"]
    assert "Int8 has the ranges of the photos: on 13 photos, int8's features differ from fp32's by " in recipe


@pytest.mark.numerics
@pytest.mark.parametrize("base", ["narrow", "wide"])
def test_what_is_served_in_int8_agrees_with_fp32(base, served):
    files = sorted((served / "photos").rglob("*.png"))
    images = np.stack([prepare(path.read_bytes()) for path in files])
    for model in MODEL_NAMES.values():
        exact, rough = (infer(served / f"from-{base}", precision, model) for precision in ("fp32", "int8"))
        assert (exact(images).argmax(1) == rough(images).argmax(1)).mean() > 0.95
        features = [one.features(images).ravel() for one in (exact, rough)]
        assert np.corrcoef(*features)[0, 1] > 0.99
    spoilt = infer(served / base, "int8").features(images).ravel()
    assert np.corrcoef(features[0], spoilt)[0, 1] < np.corrcoef(*features)[0, 1]


def test_stored_tensors_stay_the_bases(served):
    files = (served / name / "alexnet.weights" for name in ("narrow", "from-narrow"))
    was, now = (stored_arrays(file.read_bytes()) for file in files)
    for name in was.keys() - {name for name in was if name.startswith("fc8.")}:
        np.testing.assert_array_equal(was[name], now[name])


def test_ranges_that_suit_the_photos_better_stay(served, monkeypatch):
    def far_too_narrow(*arguments):
        ranges = observed_ranges(*arguments)
        return {name: Range(one.low / 20, one.high / 20) for name, one in ranges.items()}

    monkeypatch.setattr(finetune_calibrate, "observed_ranges", far_too_narrow)
    photos = read_folders(served / "photos", print).photos
    found = finetune_calibrate.calibrate(Base(str(served / "fitting")), photos, 1)
    assert not found.ranges
    assert found.told.startswith("int8 keeps the ranges of random-2012: on 13 photos, ")


def test_too_few_photos_leave_the_bases_ranges(tiny_repository, tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", PER_CLASS - 1, 100)
    for number in range(2):  # with these there would be enough
        (photos / "above" / f"{number}.txt").write_text(f"no photo {number}")
    finetune(photos, tmp_path / "mine", tiny_repository)
    told = f"{FEWEST - 2} photos are too few to calibrate int8 on ({FEWEST} are needed)"
    assert told in capsys.readouterr().out
    assert told in read_repository(tmp_path / "mine").card["recipe"]
    assert steps(tmp_path / "mine") == steps(tiny_repository)


@pytest.mark.parametrize("ranks", [{}, SMALL], ids=["whole", "products"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_graph_is_the_one_that_would_be_exported(variant, ranks):
    """Also with the ranges alone that are looked at, and those are where an export looks."""
    own = Architecture(scaled(VARIANTS[variant], 8, 96), 5, ranks=ranks)
    _, points = calibration_graph(own)
    before, after = (
        {name: Range(0.0, first + index) for index, name in enumerate(points)} for first in (1.0, 50.0)
    )
    graphs = (serving_graph(own, "center", precision, ranges=before) for precision in ("fp32", "int8"))
    looked_at = calibration_points(*(graph.graph for graph in graphs))
    assert looked_at == {name: points[name] for name in looked_at}
    for view in VIEWS:
        was, wanted = (serving_graph(own, view, "int8", ranges=ranges) for ranges in (before, after))
        found = with_ranges(was, {name: after[name] for name in looked_at})
        assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_full_size_photos_with_the_shipped_model(tmp_path, capsys):
    """Animals and things; with whichever ranges, int8 gives fp32's labels."""
    for file in sorted(outside("photos").glob("*.JPEG")):
        folder = tmp_path / "photos" / ("animals" if file.name < LAST_ANIMAL else "things")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    finetune(tmp_path / "photos", tmp_path / "mine", default_repository(), "--layers", "fc7")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("fc7 ")
    assert out[1].startswith("int8 ")
    now, was = steps(tmp_path / "mine"), steps(default_repository())
    assert ("has the ranges of the photos" in out[1]) == (now["conv3.out"] != was["conv3.out"])
    images = np.stack([prepare(path.read_bytes()) for path in sorted((tmp_path / "photos").rglob("*.JPEG"))])
    exact, rough = (infer(tmp_path / "mine", precision)(images).argmax(1) for precision in ("fp32", "int8"))
    assert (exact == rough).mean() > 0.9
