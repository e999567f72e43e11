"""The photos that a command line means."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from alexnet_client.photos import Photo

SUFFIXES: Final = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".webp"})
"""What counts as a photo in a folder; a file given by name is sent whatever its name."""
_NOT_ENTERED: Final = frozenset({"@eaDir", "__MACOSX"})
"""Where storage devices and archives keep what is no photo of the user's."""
_LOOK_AGAIN_S: Final = 1.0


def photos(arguments: Iterable[str]) -> Iterator[tuple[str, Photo]]:
    """Names and photos: of files, of the photos in folders, of URLs, and of standard input for `-`."""
    for argument in arguments:
        if argument == "-":
            yield "-", sys.stdin.buffer
        elif not argument.lower().startswith(("http://", "https://")) and Path(argument).is_dir():
            for file in _files_in(Path(argument)):
                yield str(file), file
        else:
            yield argument, argument


def watched(folders: Iterable[str]) -> Iterator[tuple[str, Photo]]:
    """The photos in folders, and those that come later, each once it has stopped growing; never ends."""
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise NotADirectoryError(f"--watch takes folders, and {path} is not one")
    sizes: dict[Path, int] = {}
    done: set[Path] = set()
    while True:
        for file in (each for path in paths for each in _files_in(path) if each not in done):
            size = _size(file)
            if size > 0 and sizes.get(file) == size:
                done.add(file)
                del sizes[file]
                yield str(file), file
            else:
                sizes[file] = size
        time.sleep(_LOOK_AGAIN_S)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone again
        return -1


def _files_in(folder: Path) -> Iterator[Path]:
    """The photos in a folder and those below it, by name; a folder with several names is entered once."""
    entered: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _NOT_ENTERED)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:  # `._x.jpg` is no photo
                yield Path(parent, name)
