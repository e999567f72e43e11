"""`alexnet-server` with a fake engine, as a process of its own: flags as the real one.

FAKE_SECONDS: how long a batch takes. FAKE_KILL: the engine's thread ends when a file of this name exists.
FAKE_DECODE_S: how long a photo is decoded. FAKE_ABSENT: loading fails. FAKE_VERSION: of its model.
FAKE_VIEWS: ten-crop and dense models are there too.
"""

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alexnet_server import preprocess
from alexnet_server.batching.batcher import Batcher
from alexnet_server.errors import StartError
from alexnet_server.loading import batch
from alexnet_server.main import run
from alexnet_server.settings import Settings, load_settings
from alexnet_server.telemetry.metrics import Metrics
from tests.server.fakes import FakeEngine, fake_model


async def open_scheduler(settings: Settings, metrics: Metrics) -> Batcher:
    if "FAKE_ABSENT" in os.environ:
        raise StartError("no model in /nowhere; run `alexnet-server unpack`")
    models = [fake_model(version=os.environ.get("FAKE_VERSION", "1"))]
    if "FAKE_VIEWS" in os.environ:
        models += [fake_model("alexnet_10crop", "ten", 10), fake_model("alexnet_dense", "dense", 10)]
    engine = FakeEngine(*models, seconds=float(os.environ.get("FAKE_SECONDS", "0")))

    def fail(_images: object) -> None:
        if Path(os.environ.get("FAKE_KILL", "/nonexistent")).exists():
            sys.exit("the engine's thread ends here")

    engine.fail = fail
    if "FAKE_DECODE_S" in os.environ:
        seconds, finish = float(os.environ["FAKE_DECODE_S"]), preprocess.finish

        def slowly(opened: preprocess.OpenPhoto) -> NDArray[np.uint8]:
            if threading.current_thread().name.startswith("alexnet-decode"):  # not the golden photo
                time.sleep(seconds)
            return finish(opened)

        preprocess.finish = slowly
    return await batch(engine, settings, metrics)


if __name__ == "__main__":
    sys.exit(run(load_settings(sys.argv[1:]), open_scheduler))
