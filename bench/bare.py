"""No server: decode threads feeding batches of 32 to the same engine, in a process of its own.

Reads commands from stdin, `loop SECONDS`, `lone COUNT` or `cost COUNT`, and answers each with a line of JSON.
"""

import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from alexnet_server.engines import Engine
from alexnet_server.loading import open_engine
from alexnet_server.machine import usable_cores
from alexnet_server.preprocess import prepare
from alexnet_server.settings import load_settings
from bench.options import photo_files

BATCH = 32


def images(pool: ThreadPoolExecutor, photos: Sequence[bytes]) -> Iterator[np.ndarray]:
    """Decoded photos for ever, two batches ahead of who takes them."""
    ahead: deque[Future[np.ndarray]] = deque()
    for photo in cycle(photos):
        ahead.append(pool.submit(prepare, photo))
        if len(ahead) > 2 * BATCH:
            yield ahead.popleft().result()


def loop(engine: Engine, stream: Iterator[np.ndarray], seconds: float) -> dict[str, float]:
    """Images a second and CPU seconds of the bare loop."""
    classify(engine, stream, BATCH)
    began, cpu, count = time.perf_counter(), cpu_s(), 0
    while time.perf_counter() - began < seconds:
        count += classify(engine, stream, BATCH)
    return {"images": count, "seconds": time.perf_counter() - began, "cpu_s": cpu_s() - cpu}


def classify(engine: Engine, stream: Iterator[np.ndarray], size: int) -> int:
    batch = np.stack(list(islice(stream, size)))
    probabilities = engine.infer("alexnet", batch, features=False).probabilities
    np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    return len(batch)


def lone(engine: Engine, photos: Sequence[bytes], count: int) -> dict[str, object]:
    """Seconds that decoding one photo and running a batch of one take, in one thread."""
    taken = []
    cpu = cpu_s()
    for photo in islice(cycle(photos), count):
        began = time.perf_counter()
        engine.infer("alexnet", prepare(photo)[None], features=False)
        taken.append(time.perf_counter() - began)
    return {"latencies_s": taken, "cpu_s": cpu_s() - cpu}


def cost(engine: Engine, photos: Sequence[bytes], count: int) -> dict[str, float]:
    """CPU milliseconds of decoding a photo, and of its share of a batch of 8: nothing can serve for less."""
    began = cpu_s()
    images = [prepare(photo) for photo in islice(cycle(photos), count)]
    decoded = cpu_s()
    batches = [np.stack(images[start : start + 8]) for start in range(0, count - 7, 8)]
    stacked = cpu_s()
    for batch in batches:
        engine.infer("alexnet", batch, features=False)
    graph_s = (cpu_s() - stacked) / (8 * len(batches))
    return {"prepare_ms": 1e3 * (decoded - began) / count, "graph_ms": 1e3 * graph_s}


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    folder, *flags = sys.argv[1:]
    settings = load_settings(flags)
    engine = open_engine(settings)
    photos = [path.read_bytes() for path in photo_files(Path(folder))]
    engine.warm_up()
    pool = ThreadPoolExecutor(settings.decode_threads or usable_cores())
    stream = images(pool, photos)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        command, argument = line.split()
        if command == "loop":
            answer: dict[str, object] = {**loop(engine, stream, float(argument))}
        else:
            answer = {**{"lone": lone, "cost": cost}[command](engine, photos, int(argument))}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)  # decoders are a batch ahead, and nobody wants it


if __name__ == "__main__":
    main()
