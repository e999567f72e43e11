"""A body's pieces on their way: with few copies, a little at a time, in memory that is given back."""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from typing import Self

from uvicorn.protocols.http.flow_control import FlowControl

_UPLOADS = 8
"""Read from in one turn of the event loop, of those that send more than is read at once: 2 MiB."""
_SMALL_BYTES = 2**18
_BLOCK_BYTES = 2**20
_OWN = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Memory that is this process's alone, where the system tells one kind from the other: not on Windows."""


class Pieces:
    """Takes the place of the bytearray that uvicorn copies each piece into, and then out of."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._count = 0

    def __iadd__(self, piece: bytes) -> Self:
        self._pieces.append(piece)
        self._count += len(piece)
        return self

    def __len__(self) -> int:
        return self._count

    def __bytes__(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


class Gathered:
    """The pieces of one body, up to its end.

    What exceeds 256 KiB is kept apart from the allocator's heap. There, what is freed once a large body is
    complete would lie between the pieces of others: half a gigabyte, when a hundred arrive together.
    """

    def __init__(self) -> None:
        self._count = 0
        self._first: list[bytes] = []
        self._blocks: list[mmap.mmap] = []

    def __len__(self) -> int:
        return self._count

    def add(self, piece: bytes) -> None:
        """Take the next one."""
        self._count += len(piece)
        if self._count <= _SMALL_BYTES:
            self._first.append(piece)
            return
        rest = memoryview(piece)
        while rest:
            if not self._blocks or self._blocks[-1].tell() == _BLOCK_BYTES:
                self._blocks.append(mmap.mmap(-1, _BLOCK_BYTES, **_OWN))
            block = self._blocks[-1]
            rest = rest[block.write(rest[: _BLOCK_BYTES - block.tell()]) :]

    def whole(self) -> bytes:
        """All of them as one."""
        if not self._blocks:
            return self._first[0] if len(self._first) == 1 else b"".join(self._first)
        *full, last = self._blocks
        with memoryview(last) as block, block[: last.tell()] as end:
            return b"".join([*self._first, *full, end])


class Turns:
    """Lets few of the uploads that have been paused go on in each turn of the event loop.

    A hundred that send as fast as they can would otherwise fill it with 25 MiB, and everybody else waits.
    """

    def __init__(self) -> None:
        self._line: deque[Flow] = deque()
        self._left = _UPLOADS

    def join(self, flow: Flow) -> None:
        """Have it go on when it is its turn."""
        self._line.append(flow)
        if self._left == _UPLOADS:
            asyncio.get_running_loop().call_soon(self._next)
        self._admit()

    def _next(self) -> None:
        self._left = _UPLOADS
        if self._line:
            asyncio.get_running_loop().call_soon(self._next)
            self._admit()

    def _admit(self) -> None:
        while self._line and self._left:
            self._left -= 1
            self._line.popleft().go_on()


class Flow(FlowControl):
    """A connection's, whose reading goes on in turn.

    Args:
        transport: The connection's.
        turns: Those of all connections.
    """

    def __init__(self, transport: asyncio.Transport, turns: Turns) -> None:
        super().__init__(transport)
        self._turns = turns
        self._in_line = False

    def resume_reading(self) -> None:
        """As soon as it is this one's turn."""
        if self.read_paused and not self._in_line:
            self._in_line = True
            self._turns.join(self)

    def go_on(self) -> None:
        """Read again."""
        self._in_line = False
        if not self._transport.is_closing():
            super().resume_reading()
