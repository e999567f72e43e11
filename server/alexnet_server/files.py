"""Files that are there whole or not at all, however many processes write them, even after a power cut.

And the folder of the user's cache, where such files go.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LEFTOVER_S = 3600
_POLL_S = 0.1


def user_cache() -> Path:
    """Where models go when their repository cannot be written: ``$XDG_CACHE_HOME/alexnet``, made.

    For a user without a home, or without the right to write there, a folder of their own among the temporary.

    Raises:
        OSError: that is another user's.
    """
    with suppress(OSError, RuntimeError):  # of a home that nobody knows
        base = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(base) if base else Path.home() / ".cache") / "alexnet"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows says 0 of every owner
    folder = Path(tempfile.gettempdir()) / f"alexnet-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != user or folder.is_symlink():
        raise PermissionError(errno.EACCES, "Another user's folder", str(folder))
    return folder


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file beside ``target``, to be written; it takes its place when the block ends without an error.

    Raises:
        OSError: it could not be written; nothing is left behind, and what was there is whole.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's 0600 would shut out a Triton that runs as another user
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_atomically(target: Path, data: bytes) -> None:
    """``replacing`` for contents that are at hand."""
    with replacing(target) as file:
        file.write(data)


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Be the only one of our processes in a folder; without effect where it cannot be locked.

    Args:
        folder: it.
        waiting: called over and over while another process is there; may raise, to give up.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        while not _taken(handle):
            waiting()
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep(target: Path) -> None:
    """Remove what a killed writer left an hour ago or longer."""
    for path in target.parent.glob(f".{target.name}.*"):
        try:
            if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                path.unlink()
        except OSError:
            continue  # another process was faster
