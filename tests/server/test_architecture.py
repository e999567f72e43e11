"""The path of a photo is the one that `docs/architecture.md` draws, and at most eight files long."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

import alexnet_server
from alexnet_client.pb import classifier_pb2 as pb
from tests.server.doors import doors
from tests.server.fakes import FakeEngine, photo
from tests.server.rpc.test_classifier import request

HOUSE = Path(alexnet_server.__file__).parent
DRAWING = (HOUSE.parents[1] / "docs" / "architecture.md").read_text()
BESIDE = {
    "bodies.py",
    "access/keys.py",
    "batching/admission.py",
    "batching/scheduler.py",
    "errors.py",
    "threads.py",
    "http/pieces.py",
    "http/protocol.py",
    "http/refusal.py",
    "http/schemas.py",
    "http/server.py",
    "rpc/arrivals.py",
}
"""Asked for a key, room or a thread; types, the table; the wire. No photo passes them, nor `telemetry/`."""


def drawn(column: int) -> set[str]:
    """The numbered files of a protocol, from the drawing's left (0) or right column (1) and its trunk."""
    section = DRAWING.split("## The path of a photo")[1]
    lines = [re.findall(r"[1-8]  ([\w/]+\.py)", line) for line in section.splitlines()]
    return {found[column] if len(found) == 2 else found[0] for found in lines if found}


@contextmanager
def recorded() -> Iterator[set[str]]:
    """The server's files whose functions are called meanwhile, in this thread and in those that begin."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(HOUSE)):
            files.add(str(Path(name).relative_to(HOUSE)))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_the_way_of_a_photo(door):
    seen: set[str] = set()
    engine = FakeEngine()
    with recorded() as files:
        async with doors(engine) as served:

            def reached(_: object) -> None:
                seen.update(files)

            engine.fail = reached
            files.clear()
            if door == "http":
                assert (await served.http.send("/classify", photo())).status == 200
            else:
                await served.stub.Classify(request())
    passed = {name for name in seen - BESIDE if not name.startswith("telemetry/")}
    assert passed == drawn(0 if door == "http" else 1)
    assert len(passed) <= 8


@pytest.mark.parametrize("door", ["http", "grpc", "stream"])
async def test_a_photo_asks_for_its_model_and_for_room_once(door, monkeypatch):
    async with doors() as served:
        classifier = served.http.classifier
        asked: list[str] = []

        def counted(owner: object, name: str) -> None:
            inner = getattr(owner, name)
            monkeypatch.setattr(
                owner, name, lambda *given, **more: (asked.append(name), inner(*given, **more))[1]
            )

        counted(classifier, "model")
        counted(classifier._scheduler.admission, "check")
        if door == "http":
            assert (await served.http.send("/classify", photo())).status == 200
        elif door == "grpc":
            assert (await served.stub.Classify(request())).predictions
        else:
            items = iter([pb.ClassifyStreamRequest(id="1", request=request())])
            async for answer in served.stub.ClassifyStream(items):
                assert answer.response.predictions
        # Over HTTP also before the body is read, so that what will be refused need not be sent.
        assert asked == ["model", "check", *(["check"] if door == "http" else [])]
