"""Mutated photos against `prepare`, in processes of their own: `make fuzz FUZZ='--count 100000 --seed 7'`.

None may end the process, raise anything but a `PhotoError`, take more than two seconds of CPU, or more memory
than it announced and 64 MiB.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alexnet_server.preprocess import MAX_BYTES, PhotoError, finish, open_photo
from tests import hostile, seeds
from tests.fuzz.mutations import FORMATS, mutated

CPU_S = 2.0
OVER_BYTES = 64 * 2**20
STUCK_S = 60.0
CHILD = [sys.executable, "-m", "tests.fuzz.photos", "--child"]
KINDS = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "gif": "GIF",
    "bmp": "BMP",
    "avif": "AVIF",
}


def twelve_bits() -> bytes:
    """A JPEG whose frame says 12 bits a sample."""
    data = hostile.jpeg()
    at = data.index(b"\xff\xc0") + 4
    return data[:at] + b"\x0c" + data[at + 1 :]


@cache
def photos() -> dict[str, list[bytes]]:
    """Seeds by format: small good photos of every kind, and those that once failed."""
    found: dict[str, list[bytes]] = {kind: [] for kind in FORMATS}
    for name in hostile.GOOD:
        kind = KINDS.get(name.rsplit(".")[-1])
        if kind and len(hostile.photo(name)) < 30_000:
            found[kind].append(hostile.photo(name))
    for path in sorted(seeds.FAULTS.iterdir()):
        found[KINDS[path.suffix[1:]]].append(path.read_bytes())
    found["JPEG"] += [seeds.jpeg_scans(3), twelve_bits(), hostile.jpeg(restart_marker_blocks=2)]
    found["PNG"] += [seeds.keyed_png(*kind) for kind in ((2, 0), (4, 0), (16, 0), (16, 2))]
    found["WebP"] += [seeds.webp_sizes((96, 64), animated=animated) for animated in (False, True)]
    found["AVIF"] += [seeds.avif_grid(), seeds.avif_grid(4, same=True)]
    return found


def mutant(seed: int, index: int) -> tuple[str, bytes]:
    """The format and the bytes of a mutated photo: always the same for the same numbers."""
    draw = random.Random(f"{seed} {index}")
    kind = draw.choice(list(FORMATS))
    apart, together = FORMATS[kind]
    one, other = (draw.choice(photos()[kind]) for _ in range(2))
    data = together(mutated(apart(one), apart(other), draw))
    if draw.random() < 0.1:
        data = data[: draw.randrange(len(data) + 1)]
    return kind, data[:MAX_BYTES]


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM, its peak."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def judge(data: bytes) -> tuple[str, float, int]:
    """What became of a photo, its CPU seconds, and the memory it took over what it announced."""
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak is from here on
    before, start, announced = memory("VmRSS"), time.process_time(), 0
    try:
        photo = open_photo(data)
        announced = photo.memory_bytes
        verdict = "ok" if finish(photo).shape == (256, 256, 3) else "another shape"
    except PhotoError as error:
        verdict = error.code
    except BaseException as error:
        verdict = f"raised {type(error).__name__}: {error}"
    return verdict, time.process_time() - start, memory("VmHWM") - before - announced


def told(*words: object) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def work(seed: int, first: int, last: int) -> None:
    """The child: a line before each photo and one behind it."""
    photos()
    for index in range(first, last):
        told(index)
        told(json.dumps(judge(mutant(seed, index)[1])))


@dataclass
class Result:
    """What all photos came to: how they ended, and those that broke a promise."""

    verdicts: Counter[str]
    failures: list[str]
    worst_cpu_s: float = 0.0
    worst_over_bytes: int = 0

    def take(self, index: int, verdict: str, cpu_s: float, over_bytes: int) -> None:
        """Count one photo."""
        self.verdicts[verdict if " " not in verdict else "failed"] += 1
        self.worst_cpu_s = max(self.worst_cpu_s, cpu_s)
        self.worst_over_bytes = max(self.worst_over_bytes, over_bytes)
        if " " in verdict or cpu_s > CPU_S or over_bytes > OVER_BYTES:
            self.failures.append(f"{index}: {verdict}, {cpu_s:.2f} s, {over_bytes >> 20} MiB over")


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


def run(seed: int, count: int, first: int = 0) -> Result:
    """Photos `first` to `count` of a seed, in a child that is started again where it ends."""
    result, last = Result(Counter(), []), first + count
    while first < last:
        limit_s = STUCK_S + last - first
        command = ["timeout", "-s", "KILL", str(limit_s), *CHILD, str(seed), str(first), str(last)]
        root = Path(__file__).parents[2]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as child:
            index = -1
            for line in lines(child):
                if line[0] != "[":
                    index = int(line)
                    continue
                result.take(index, *json.loads(line))
                first = index + 1
        if first < last:
            result.take(max(index, first), f"the process ended with {child.returncode}", 0.0, 0)
            first = max(index, first) + 1
    return result


def main() -> int:
    """Print what all photos came to; 1 where one broke a promise."""
    if sys.argv[1:2] == ["--child"]:
        work(*map(int, sys.argv[2:]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="photos")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first photo")
    parser.add_argument("--write", type=Path, help="write the first photo here, and do no more")
    options = parser.parse_args()
    if options.write:
        options.write.write_bytes(mutant(options.seed, options.first)[1])
        return 0
    start = time.monotonic()
    result = run(options.seed, options.count, options.first)
    for failure in result.failures:
        told(failure)
    seconds = time.monotonic() - start
    told(f"{options.count} photos of seed {options.seed} in {seconds:.0f} s: {dict(result.verdicts)}")
    told(f"at worst {result.worst_cpu_s:.2f} s of CPU, {result.worst_over_bytes >> 20} MiB over announced")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
