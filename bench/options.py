"""What the benchmarks ask on the command line, and the photos they send."""

import argparse
import os
import sys
from pathlib import Path

from bench.processes import ROOT

SUFFIXES = (".jpg", ".jpeg")


def parser(text: str) -> argparse.ArgumentParser:
    """Of a benchmark with photos; `text` is its module's."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--photos",
        type=Path,
        metavar="FOLDER",
        default=Path(os.environ.get("BENCH_PHOTOS", ROOT / "tests/data/cc0")),
        help="JPEG files such as users send, a hundred or more of several sizes; BENCH_PHOTOS names it too "
        "(default: the three photos of the repository, which say little of decoding)",
    )
    return options


def parse(options: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The benchmark's own options, and the server's flags behind `--`."""
    own, flags = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    asked = options.parse_args(own)
    asked.photos = asked.photos.resolve()  # other processes, elsewhere, read them too
    return asked, flags


def photo_files(folder: Path) -> list[Path]:
    """The folder's JPEG files in order."""
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    if not (files := [path for path in names if path.suffix.lower() in SUFFIXES]):
        raise SystemExit(f"{folder} holds no JPEG; --photos or BENCH_PHOTOS names a folder of photos")
    return files
