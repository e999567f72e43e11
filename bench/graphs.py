"""What the graphs cost: every view in every precision, in one interleaved run, without server or decoding.

    python -m bench.graphs [--repository DIR] [--repeats 5] [--precision int8 fp32 fp16] [--json FILE]

Batches are random photos. The graphs take turns, so that a noisy machine is noisy for all; figures are
medians over the turns, ratios medians of the turns' ratios. Memory is that of a process of its own with the
one graph loaded and its largest batch run. Accuracy is what the model card records (`alexnet-train evaluate
--record`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from alexnet_server.machine import usable_cores
from alexnet_server.models.repository import PRECISIONS, ModelEntry, Repository, read_repository
from alexnet_server.models.unpack import default_repository, ensure_unpacked
from bench.plain_lrn import plain_repository

BATCHES = (1, 8, 32)
Key = tuple[str, str]
"""View and precision."""


def main() -> None:
    options = _arguments()
    if options.memory:
        _memory(options.memory, options.batch)
        return
    repository = read_repository(options.repository or default_repository())
    with TemporaryDirectory() as cache, plain_repository(repository.path) as plain:
        files: dict[Key, Path] = {("center", "fp32, plain LRN"): plain / "alexnet" / "1" / "model.onnx"}
        for precision in options.precision:
            for name, path in ensure_unpacked(repository, (precision,), Path(cache)).items():
                files[repository.models[name].view, precision] = path
        times = _times(files, options.repeats)
        rows = [_row(repository, key, path, times) for key, path in sorted(files.items())]
    report = {"cores": usable_cores(), "turns": options.repeats, "rows": rows, "ratios": _ratios(times)}
    sys.stdout.write(
        _table(rows) + "\n\n" + _ratio_lines(report["ratios"]) + "\n" + json.dumps(report) + "\n"
    )
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def _open(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _photos(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)


def _largest(view: str) -> int:
    return 8 if view == "ten" else BATCHES[-1]


def _times(files: dict[Key, Path], repeats: int) -> dict[tuple[Key, int], list[float]]:
    """Seconds a batch, by graph and batch size, one value a turn."""
    sessions = {key: _open(path) for key, path in files.items()}
    times: dict[tuple[Key, int], list[float]] = defaultdict(list)
    for turn in range(-1, repeats):  # the first turn warms up
        sys.stderr.write(f"turn {turn + 1} of {repeats}\n")
        for batch in BATCHES:
            for key, session in sessions.items():
                if batch <= _largest(key[0]):
                    seconds = _seconds(session, _photos(batch), 10 if batch == 1 else 1)
                    if turn >= 0:
                        times[key, batch].append(seconds)
    return times


def _seconds(session: Any, photos: np.ndarray, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        session.run(["probabilities"], {"images": photos})
    return (time.perf_counter() - began) / count


def _row(
    repository: Repository, key: Key, path: Path, times: dict[tuple[Key, int], list[float]]
) -> dict[str, Any]:
    view, precision = key
    row: dict[str, Any] = {"view": view, "precision": precision, "MB": path.stat().st_size / 1e6}
    row["ms at 1"] = 1e3 * statistics.median(times[key, 1])
    for batch in BATCHES[1:]:
        if batch <= _largest(view):
            row[f"images/s at {batch}"] = batch / statistics.median(times[key, batch])
    command = [
        sys.executable,
        "-m",
        "bench.graphs",
        "--memory",
        str(path),
        "--batch",
        str(_largest(view)),
    ]
    row["memory MB"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    entry = next(entry for entry in repository.models.values() if entry.view == view)
    return row | _accuracy(entry, precision)


def _accuracy(entry: ModelEntry, precision: str) -> dict[str, float]:
    """The first measurement on the card in that precision."""
    for measured in entry.card.get("accuracy", []):
        if measured.get("precision", "fp32") == precision:
            return {name: 100 * measured[name.replace("-", "")] for name in ("top-1", "top-5")}
    return {}


def _memory(path: Path, batch: int) -> None:
    session = _open(path)
    for _ in range(2):
        session.run(None, {"images": _photos(batch)})
    status = Path("/proc/self/status").read_text()
    sys.stdout.write(str(int(status.partition("VmHWM:")[2].split()[0]) / 1e3))


def _ratios(times: dict[tuple[Key, int], list[float]]) -> dict[str, float]:
    """How many times faster or dearer, turn by turn."""

    def median(slow: Key, fast: Key, batch: int) -> float | None:
        if not (times.get((slow, batch)) and times.get((fast, batch))):
            return None  # ten crops stop at batches of 8
        pairs = zip(times[slow, batch], times[fast, batch], strict=True)
        return statistics.median(one / other for one, other in pairs)

    wanted = {}
    for batch in BATCHES:
        wanted[f"int8 against fp32, centre, batch {batch}"] = median(
            ("center", "fp32"), ("center", "int8"), batch
        )
        plain = ("center", "fp32, plain LRN")
        wanted[f"int8 against plain LRN, centre, batch {batch}"] = median(plain, ("center", "int8"), batch)
        wanted[f"fp32 against plain LRN, centre, batch {batch}"] = median(plain, ("center", "fp32"), batch)
        for precision in PRECISIONS:
            dense, center, ten = (("dense", precision), ("center", precision), ("ten", precision))
            wanted[f"dense costs centre times, {precision}, batch {batch}"] = median(dense, center, batch)
            wanted[f"dense against ten, {precision}, batch {batch}"] = median(ten, dense, batch)
    return {name: value for name, value in wanted.items() if value is not None}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    columns = ["ms at 1", "images/s at 8", "images/s at 32", "MB", "memory MB", "top-1", "top-5"]
    lines = ["| view | precision | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = [f"{row[column]:.1f}" if column in row else "–" for column in columns]
        lines.append(f"| {row['view']} | {row['precision']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio_lines(ratios: dict[str, float]) -> str:
    return "\n".join(f"- {name}: {value:.2f}" for name, value in ratios.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, help="default: the shipped model")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["int8", "fp32"])
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--json", type=Path, help="write the report here too")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
