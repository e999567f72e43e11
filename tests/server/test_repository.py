import hashlib
import json
import shutil

import pytest

from alexnet_server.models.repository import RepositoryError, read_repository
from alexnet_server.preprocess import PREPROCESS_VERSION


@pytest.fixture
def repository(exported_repository, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(exported_repository, tmp_path / "model_repository")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_entries_tell_what_serving_needs(exported_repository):
    repository = read_repository(exported_repository)
    assert {name: entry.view for name, entry in repository.models.items()} == {
        "alexnet": "center",
        "alexnet_10crop": "ten",
        "alexnet_dense": "dense",
    }
    entry = repository.models["alexnet_10crop"]
    assert entry.labels[3] == ("n00000003", "class 3")
    assert (entry.max_batch_size, entry.features, entry.weights) == (8, 96, "random-2012")
    assert entry.golden is not None
    assert entry.golden[0] == "noise.png"
    assert entry.card["accuracy"][0]["top5"] == 0.5
    assert repository.weight_file is not None
    assert hashlib.sha256(repository.weight_file.read_bytes()).hexdigest() == entry.weights_sha256


def test_other_peoples_models_are_left_alone(repository):
    ensemble = repository / "somebody_elses"
    ensemble.mkdir()
    (ensemble / "config.pbtxt").write_text('platform: "ensemble"\nmax_batch_size: 8\n')
    (repository / "notes").mkdir()
    assert len(read_repository(repository).models) == 3


def test_no_repository(tmp_path):
    with pytest.raises(RepositoryError, match="no such folder"):
        read_repository(tmp_path / "nowhere")
    with pytest.raises(RepositoryError, match="contains no model"):
        read_repository(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("config.pbtxt", "max_batch_size: 32", "max_batch_size: many", r"config.pbtxt: .*max_batch_size"),
        ("config.pbtxt", "max_batch_size: 32", "max_batch_size: 0", "max_batch_size of at least 1"),
        ("config.pbtxt", 'name: "alexnet"', 'name: "vgg"', "must name the model as its folder, not 'vgg'"),
        (
            "config.pbtxt",
            f'key: "preprocess_version" value: {{ string_value: "{PREPROCESS_VERSION}" }}',
            'key: "preprocess_version" value: { string_value: "0" }',
            "pixels of preprocessing 0",
        ),
        ("config.pbtxt", 'string_value: "center"', 'string_value: "left"', "views 'left' is not one of"),
        ("config.pbtxt", '"weights_sha256"', '"weight_sha"', "lacks the parameters weights_sha256"),
        ("config.pbtxt", "dims: [ 10 ]", "dims: [ 1000 ]", r"expected probabilities \[10\]"),
        ("labels.txt", "class 3", "class 4", "labels.txt is not the one"),
    ],
)
def test_contradictions_are_refused(repository, file, old, new, message):
    edit(repository / "alexnet" / file, old, new)
    with pytest.raises(RepositoryError, match=message):
        read_repository(repository)


def test_malformed_labels_are_named_by_line(repository):
    path = repository / "alexnet" / "labels.txt"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(path, "n00000004\t", "n00000004 ")
    edit(repository / "alexnet" / "config.pbtxt", old, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(RepositoryError, match="line 5: expected WordNet id, tab, words"):
        read_repository(repository)


def test_a_missing_labels_file_and_a_broken_card(repository):
    (repository / "card.json").write_text("{")
    with pytest.raises(RepositoryError, match="model card"):
        read_repository(repository)
    (repository / "card.json").write_text(json.dumps({}))
    assert read_repository(repository).weight_file is None
    (repository / "alexnet" / "labels.txt").unlink()
    with pytest.raises(RepositoryError, match=r"there is no .*labels.txt: restore it"):
        read_repository(repository)
