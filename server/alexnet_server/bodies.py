"""What requests hold in memory while they are answered: one budget for both protocols."""

from __future__ import annotations

import asyncio

from alexnet_server.errors import Overloaded

_SMALL_BYTES = 2**18
_FOR_SMALL = 32


class BodyBudget:
    """Bounds the bodies and messages held in memory at a time. For one event loop.

    A 32nd is for bodies of at most 256 KiB: those who upload large ones do not shut out ordinary photos.

    Args:
        max_bytes: Bytes of all of them together; at least one full body should fit.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.waiting = 0
        """For their turn."""
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    def take(self, count: int, to: int = 0) -> None:
        """Hold `count` more bytes.

        Args:
            count: Bytes.
            to: What the same body holds already.

        Raises:
            Overloaded: Too much is held already.
        """
        kept = 0 if to + count <= _SMALL_BYTES else self.max_bytes // _FOR_SMALL
        if self.held_bytes + count > self.max_bytes - kept:
            raise _too_many()
        self.held_bytes += count

    def hold(self, count: int) -> None:
        """Count `count` bytes that are in memory already, room or no room; until `give_back`."""
        self.held_bytes += count

    def give_back(self, count: int) -> None:
        """No longer hold `count` bytes; lets one who waits go on."""
        self.held_bytes -= count
        if self._has_room():
            self._freed.set()

    async def turn(self, timeout_s: float | None = None, *, room: bool = True) -> bool:
        """Wait until half of the budget is free: for whoever cannot know what will come.

        First come, first served, and nobody else until `next_turn`; without `room` only that.

        Returns:
            Whether there was no room at first.

        Raises:
            Overloaded: `timeout_s` seconds were not enough.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._turn.acquire()
                try:
                    return room and await self._room()
                except BaseException:
                    self._turn.release()
                    raise
        except TimeoutError:
            raise _too_many() from None
        finally:
            self.waiting -= 1

    def next_turn(self, after_s: float | None = None) -> None:
        """End one's turn: now, or after so many seconds; after 0, whatever else is to be done comes first."""
        if after_s is None:
            self._turn.release()
        else:
            asyncio.get_running_loop().call_later(after_s, self._turn.release)

    async def _room(self) -> bool:
        waited = False
        while not self._has_room():
            waited = True
            self._freed.clear()
            await self._freed.wait()
        return waited

    def _has_room(self) -> bool:
        return self.held_bytes <= self.max_bytes // 2


def _too_many() -> Overloaded:
    return Overloaded("Too many uploads are in progress; try again later.", retry_after_s=1.0)
