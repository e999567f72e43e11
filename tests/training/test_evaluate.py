import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from alexnet_server.models.export.card import accuracy_table
from alexnet_train.data.dataset import DatasetError, Split, Statistics, open_split, with_labels_of
from alexnet_train.data.enlarge import enlarge
from alexnet_train.evaluate.accuracy import Evaluation, draw_confusion, evaluate
from alexnet_train.evaluate.calibration import calibration_error, fit_temperature, softmax
from alexnet_train.evaluate.repository import _record, _write_tables
from alexnet_train.paper.published import results_table
from alexnet_train.run.augment import Augmenter, Colour
from alexnet_train.run.held_out import error_rates

ROOT = Path(__file__).parents[2]


def test_enlargement_is_the_loaders() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    statistics = Statistics([0.0] * 3, np.eye(3).tolist())
    whole = torch.zeros(3, dtype=torch.long)
    loader = Augmenter(64, 256, statistics, Colour(), torch.device("cpu")).cut(
        torch.from_numpy(images), whole, whole
    )
    difference = np.abs(enlarge(images).astype(int) - loader.numpy().astype(int))
    assert difference.max() <= 1  # a sum that falls on a half may round either way
    assert (difference > 0).mean() < 1e-4


def test_temperature_is_found() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 2, (20_000, 1, 10))
    labels = np.array([draw.choice(10, p=p) for p in softmax(logits[:, 0])])
    assert abs(fit_temperature(logits * 1.7, labels) - 1.7) < 0.05


def test_calibration_error_of_a_calibrated_model_is_near_zero() -> None:
    draw = np.random.default_rng(2)
    errors = []
    for _ in range(20):
        confidence = draw.uniform(0.1, 0.9, 5000)
        errors.append(calibration_error(confidence, draw.uniform(size=5000) < confidence))
    assert np.mean(errors) < 0.012  # uncorrected it is 0.02: fifteen bins of 333 images are that noisy


def test_calibration_error_of_an_overconfident_model_is_its_overconfidence() -> None:
    draw = np.random.default_rng(3)
    confidence = draw.uniform(0.1, 0.8, 5000)
    right = draw.uniform(size=5000) < confidence
    assert abs(calibration_error(confidence + 0.1, right) - 0.1) < 0.02


def test_evaluation_counts_by_hand(dataset: Path, tmp_path: Path) -> None:
    split = open_split(dataset / "validation")

    def by_colour(images: np.ndarray) -> np.ndarray:
        colours = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 60]])
        mean = images.reshape(len(images), -1, 3).mean(1)
        return softmax(-np.abs(mean[:, None] - colours).sum(2) / 10).astype(np.float32)

    result = evaluate(by_colour, split)
    assert result.summary()["top1"] == 1.0
    assert np.array_equal(result.confusion(), np.diag(np.bincount(split.labels, minlength=4)))
    assert [row["images"] for row in result.per_class(split.classes)].count(0) == 0
    draw_confusion(result.confusion(), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 5000


@pytest.mark.parametrize(("classes", "cell"), [(5, "–"), (6, "16.7 %")])
def test_top_5_is_told_of_more_than_five_classes_alone(classes: int, cell: str, tmp_path: Path) -> None:
    """Every label is among the five best of five: an error of 0.0 % would tell nothing."""
    labels = np.tile(np.arange(classes), 20)
    ordered = np.tile(np.linspace(0.4, 0.1, classes, dtype=np.float32), (len(labels), 1))
    evaluation = Evaluation(ordered, labels, 1.0)
    summary = evaluation.summary()
    assert ("top5" in summary) == ("top5_interval" in summary) == (classes > 5)
    assert results_table({"ours": summary}).splitlines()[2].split(" | ")[3] == cell
    row = {"set": "ours", "views": "center", **summary}
    assert ("| – |" in accuracy_table([row])) == (classes == 5)
    rates = error_rates(torch.tensor([classes - 1.0, classes - 5.0]), classes, classes)
    assert rates["top1_error"] == round((classes - 1) / classes, 4)
    assert rates.get("top5_error") == (None if classes == 5 else round(1 / 6, 4))
    split = Split(np.zeros((0,)), labels, [(f"n{i}", f"class {i}") for i in range(classes)], None)
    _write_tables(evaluation, split, None, tmp_path / "table")  # type: ignore[arg-type]
    header, *rows = (tmp_path / "table.tsv").read_text().splitlines()
    assert header.split("\t") == ["wnid", "words", "images", "top1"] + ["top5"] * (classes > 5)
    assert [len(row.split("\t")) for row in rows] == [len(header.split("\t"))] * classes


def test_top_k_by_hand() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.4, 0.35, 0.25]], np.float32)
    result = Evaluation(probabilities, np.array([0, 1, 2]), 1.0)
    assert result.hits(1).tolist() == [True, False, False]
    assert result.hits(2).tolist() == [True, True, False]


def test_a_measurement_replaces_its_own_row_of_the_card_alone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "model_repository" / "card.json", tmp_path)
    before = json.loads((tmp_path / "card.json").read_text())["accuracy"]
    assert len(before) > 2
    row = {**before[1], "top1": 0.123}
    _record(tmp_path, [row])
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["accuracy"] == [before[0], row, *before[2:]]
    models = [model["accuracy"] for model in card["models"].values() if model["views"] == row["views"]]
    assert row in models[0]
    assert "12.3 %" in (tmp_path / "README.md").read_text()


def test_classes_are_matched_by_id_or_words_and_unknown_ones_named() -> None:
    labels = [("n1", "cat"), ("n2", "dog"), ("n3", "fox")]
    images = np.zeros((3, 1, 1, 3), np.uint8)
    split = Split(images, np.array([0, 1, 1]), [("n3", "?"), ("dog", "dog")], None)
    own = with_labels_of(split, labels, "the model")
    assert own.labels.tolist() == [2, 1, 1]
    assert own.classes == labels
    with pytest.raises(DatasetError, match="the model has no class n9; its classes begin with n1, n2, n3"):
        with_labels_of(Split(images, split.labels, [("n9", "emu"), ("n1", "cat")], None), labels, "the model")
