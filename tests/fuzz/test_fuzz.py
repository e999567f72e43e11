"""A slice of `make fuzz`, and a proof that its judge sees what it is there for."""

import sys
import time

import pytest

from alexnet_server.preprocess import PhotoError
from tests.fuzz import bodies, photos
from tests.fuzz.mutations import FORMATS


@pytest.mark.parametrize("kind", FORMATS)
def test_files_are_put_together_as_they_were(kind):
    apart, together = FORMATS[kind]
    for photo in photos.photos()[kind]:
        if kind != "JPEG" or b"motion" not in photo:
            again = together(apart(photo))
            assert again == photo or kind in ("PNG", "WebP", "AVIF")  # whose lengths are written anew
            assert photos.judge(again)[0] == photos.judge(photo)[0]


def test_a_slice_of_mutated_photos(figure):
    start = time.monotonic()
    result = photos.run(seed=2, count=600)
    figure(f"600 mutated photos in {time.monotonic() - start:.0f} s: {dict(result.verdicts)}")
    assert result.failures == []
    assert result.verdicts["ok"] > 100
    assert result.verdicts["undecodable"] > 100


@pytest.mark.parametrize(
    ("fault", "words"), [("raise", "raised"), ("memory", "MiB over"), ("cpu", "2."), ("code", "too_large")]
)
def test_the_judge_notices(monkeypatch, fault, words):
    def finish(photo):
        if fault == "raise":
            raise RuntimeError("a bug")
        if fault == "memory":
            bytearray(b"x") * 100_000_000
        if fault == "cpu":
            while time.process_time() < end:
                pass
        raise PhotoError("too_large", "as it should be")

    end = time.process_time() + 2.1
    monkeypatch.setattr(photos, "finish", finish)
    result = photos.Result(photos.Counter(), [])
    result.take(0, *photos.judge(photos.photos()["PNG"][0]))
    if fault == "code":
        assert result.failures == []
        assert result.verdicts == {words: 1}
    else:
        assert words in result.failures[0]


def test_a_process_that_ends_is_started_again_behind_it(monkeypatch):
    dies = "import os, sys; print(sys.argv[2], flush=True); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(photos, "CHILD", [sys.executable, "-c", dies])
    result = photos.run(seed=1, count=2)
    assert [failure.split(",")[0] for failure in result.failures] == [
        "0: the process ended with -11",
        "1: the process ended with -11",
    ]


NO_NETWORKS = {"caffemodel", "binaryproto", "onnx"}
"""Whose whole files would be large: what is mutated is refused, sooner or later."""


@pytest.mark.parametrize("kind", bodies.READERS)
def test_a_slice_of_mutated_bodies(kind):
    verdicts = [bodies.judge(kind, seed=2, index=index) for index in range(150)]
    assert set(verdicts) == ({"refused"} if kind in NO_NETWORKS else {"read", "refused"})
