"""Files that ``torch.save`` wrote, read without torch: only tensors, containers and plain values.

Such a file is a pickle with the tensors' numbers beside it, in a zip archive or, before torch 1.6, behind one
another. The pickle is read by an unpickler that knows the few names a tensor needs and refuses all others, so
that nothing in the file can run.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alexnet_server.models.public.errors import WeightsError

_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE_LIMIT = 64 << 20
"""Most bytes of the pickle, which holds names and shapes; an AlexNet with its optimiser has 10 kB."""
_ENCRYPTED_OR_PATCHED = 1 | 1 << 5 | 1 << 6
"""Of a zip archive's flag bits: nothing of torch.save's."""
_DAMAGES = (KeyError, ValueError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What a damaged file leads to; RuntimeError: what zipfile does not know."""
_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}


@dataclass(frozen=True)
class Storage:
    """Numbers that one or more tensors lie in."""

    dtype: str
    key: str


@dataclass(frozen=True)
class Tensor:
    """A tensor whose numbers have not been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Ignored(dict[Any, Any]):
    """In place of settings and scalars that stand beside the tensors; takes everything and keeps nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class TorchFile:
    """The contents of a file, ``root``, with a ``Tensor`` for every tensor; ``array`` reads its numbers.

    Raises:
        WeightsError: it is no such file, damaged, or holds something that is neither tensor nor plain value.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
            if self._archive is None:
                self.root, self._storages = _legacy(path)
            else:
                self.root, self._storages = _unpickled(_main_pickle(self._archive)), {}
        except WeightsError as error:
            raise WeightsError(f"{path} has no weights that can be read safely: {error}") from error
        except Exception as error:  # whatever a broken file does to zipfile and pickle
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path} has no weights that can be read safely: {reason}") from error

    def array(self, tensor: Tensor) -> NDArray[np.float32]:
        """The tensor's numbers as float32.

        Raises:
            WeightsError: they are not all there.
        """
        try:
            return _laid_out(tensor, _numbers(self._bytes(tensor.storage.key), tensor.storage.dtype))
        except _DAMAGES as error:
            raise WeightsError(f"{self._path}: a tensor is damaged ({error})") from error

    def _bytes(self, key: str) -> bytes:
        if self._archive is None:
            start, size = self._storages[key]
            with self._path.open("rb") as file:
                file.seek(start)
                return file.read(size)
        return _member(self._archive, f"{_folder(self._archive)}data/{key}")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive; torch stores them as they are.

    Raises:
        KeyError: there is none.
        ValueError: it is compressed, encrypted, or longer than the archive.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise ValueError(f"{name} is compressed or encrypted")
    # Before reading: a file reserves as many bytes as it is asked for, however few it has.
    if max(info.compress_size, info.file_size) > archive.start_dir:
        raise ValueError(f"{name} says that it is longer than the archive")
    return archive.read(info)


def _folder(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(names) != 1:
        raise WeightsError("a zip archive, but not one of torch.save")
    return names[0].removesuffix("data.pkl")


def _main_pickle(archive: zipfile.ZipFile) -> bytes:
    folder = _folder(archive)
    if f"{folder}byteorder" in archive.namelist() and _member(archive, f"{folder}byteorder") != b"little":
        raise WeightsError("it was written on a big-endian machine")
    if archive.getinfo(f"{folder}data.pkl").file_size > _PICKLE_LIMIT:
        raise WeightsError("its pickle is too large")
    return _member(archive, f"{folder}data.pkl")


def _legacy(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Five pickles (magic, protocol, machine, contents, storage keys), then each storage: count, numbers."""
    dtypes: dict[str, str] = {}
    # Mapped: a file reserves as many bytes as it is asked for, however few it has.
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        if _next(file) != _LEGACY_MAGIC:
            raise WeightsError("it is not a file of torch.save")
        _next(file)
        if not _next(file).get("little_endian"):
            raise WeightsError("it was written on a big-endian machine")
        root = _next(file, dtypes)
        places, end = {}, len(file)
        for key in _next(file):
            (count,) = struct.unpack("<q", file.read(8))
            size = count * (2 if dtypes[key] == "bfloat16" else np.dtype(dtypes[key]).itemsize)
            if not 0 <= size <= end - file.tell():
                raise WeightsError("it is truncated")
            places[key] = (file.tell(), size)
            file.seek(size, io.SEEK_CUR)
    return root, places


def _next(file: Any, dtypes: dict[str, str] | None = None) -> Any:
    """The next of several pickles in a file."""
    start = file.tell()
    _check(file)
    size = file.tell() - start
    file.seek(start)
    return _unpickled(file.read(size), dtypes)


def _check(file: Any) -> None:
    """Refuse a pickle that would make the unpickler reserve memory that its own length does not explain."""
    start = file.tell()
    for _count, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if position is not None and position - start > _PICKLE_LIMIT:
            raise WeightsError("its pickle is too large")
        if opcode.name in _MEMO and int(argument or 0) > _count:
            raise WeightsError("its pickle is damaged")


def _unpickled(data: bytes, dtypes: dict[str, str] | None = None) -> Any:
    _check(io.BytesIO(data))
    return _Unpickler(io.BytesIO(data), dtypes if dtypes is not None else {}).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, dtypes: dict[str, str]) -> None:
        super().__init__(file, encoding="utf-8")
        self._dtypes = dtypes

    def find_class(self, module: str, name: str) -> Any:
        """One of ours in place of the name, or a refusal; nothing is ever imported."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module == "torch" and name in _DTYPES:
            return _Named(_DTYPES[name])
        if (module, name) in _BESIDE:
            return _Ignored
        raise WeightsError(
            f"it wants {module}.{name}, which is not a tensor; nothing was run. Save only the state_dict()"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """A tensor's storage."""
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, _Named) or not isinstance(key, str):
            raise WeightsError("its pickle refers to something other than tensors")
        self._dtypes[key] = dtype.dtype
        return Storage(dtype.dtype, key)


@dataclass(frozen=True)
class _Named:
    """A storage class, by its dtype."""

    dtype: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise WeightsError("its pickle holds a malformed tensor")
    if len(shape) != len(strides) or len(shape) > 8:
        raise WeightsError("its pickle holds a malformed tensor")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


_KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
_BESIDE = {
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("builtins", "dict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "float32"),
    ("torch.torch_version", "TorchVersion"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("lightning_fabric.utilities.data", "AttributeDict"),
    ("pytorch_lightning.utilities.parsing", "AttributeDict"),
}
"""What training programs keep beside the weights, which is passed over."""


def _numbers(data: bytes, dtype: str) -> NDArray[Any]:
    if dtype != "bfloat16":
        return np.frombuffer(data, dtype)
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def _laid_out(tensor: Tensor, numbers: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers in the tensor's shape; no more of them than the storage holds."""
    count = math.prod(tensor.shape)
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if count and (count > len(numbers) or last >= len(numbers)):
        raise ValueError(f"shape {tensor.shape} lies outside its {len(numbers)} numbers")
    steps = tuple(stride * numbers.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, steps, writeable=False)
    return view.astype(np.float32)
