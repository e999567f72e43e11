"""What answers look like to those who read them."""

import json

from alexnet_client import Classification, Features, Model, Prediction, Progress

ANSWER = Classification(
    "alexnet",
    "1",
    (Prediction(1, 37, "n02124075", "Egyptian cat", 0.5), Prediction(2, 3, "n1", "tabby <b>", 0.25)),
)


def test_an_answer_iterates_over_its_labels():
    assert [each.label for each in ANSWER] == ["Egyptian cat", "tabby <b>"]
    assert len(ANSWER) == 2


def test_an_answer_as_text():
    assert repr(ANSWER) == "<Classification by alexnet 1: Egyptian cat 50.0%, tabby <b> 25.0%>"
    assert str(ANSWER) == " 50.0%  Egyptian cat\n 25.0%  tabby <b>"
    assert repr(Features("alexnet", "1", (0.0,) * 4096)) == "<Features by alexnet 1: 4096 numbers>"


def test_an_answer_in_a_notebook():
    html = ANSWER._repr_html_()
    assert "width:50.0%" in html
    assert "tabby &lt;b&gt;" in html
    assert "<b>" not in html


def test_answers_as_json():
    assert json.loads(json.dumps(ANSWER.to_dict())) == {
        "model": "alexnet",
        "version": "1",
        "predictions": [
            {"rank": 1, "index": 37, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.5},
            {"rank": 2, "index": 3, "wnid": "n1", "label": "tabby <b>", "score": 0.25},
        ],
    }
    model = Model("alexnet", "1", "center", 200, 32, "cpu", {"precision": "int8"})
    assert model.to_dict()["about"] == {"precision": "int8"}
    assert hash(model)


def test_progress_tells_the_time_left():
    assert str(Progress(10, 1, 40, 20.0)) == "10/40 photos, 0/s, 1 failed, 1:00 left"
    assert str(Progress(100, 0, 200, 4.0)) == "100/200 photos, 25/s, 4 s left"
    assert str(Progress(100, 0, 1_000_000, 1.0)) == "100/1000000 photos, 100/s, 2:46:39 left"
    assert str(Progress(40, 0, 40, 20.0)) == "40/40 photos, 2/s"
    assert Progress(0, 0, 40, 1.0).left_s is None
