"""What requests hold in memory while they are answered: one budget for both protocols."""

from __future__ import annotations

import asyncio
from collections import deque

from alexnet_server.errors import Overloaded

_NEXT_S = 0.01
"""Between two that waited for room: the time in which a message that is on its way arrives."""


class BodyBudget:
    """Bounds the bodies and messages held in memory at a time. For one event loop.

    Args:
        max_bytes: Bytes of all of them together; at least one full body should fit.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self, count: int) -> None:
        """Hold `count` more bytes.

        Raises:
            Overloaded: Too much is held already.
        """
        if self.held_bytes + count > self.max_bytes:
            raise _too_many()
        self.held_bytes += count

    def hold(self, count: int) -> None:
        """Count `count` bytes that are in memory already, room or no room; until `give_back`."""
        self.held_bytes += count

    def give_back(self, count: int) -> None:
        """No longer hold `count` bytes; lets one who waits go on."""
        self.held_bytes -= count
        self._wake()

    async def room(self, timeout_s: float | None = None) -> None:
        """Wait, in turn, until half of the budget is free: for whoever cannot know what will come.

        Raises:
            Overloaded: More was held for `timeout_s` seconds.
        """
        if self._has_room() and not self._waiting:
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            raise _too_many() from None
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)
            # The next one goes on once this one's message has probably come, and counts.
            asyncio.get_running_loop().call_later(_NEXT_S, self._wake)

    def _has_room(self) -> bool:
        return self.held_bytes <= self.max_bytes // 2

    def _wake(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


def _too_many() -> Overloaded:
    return Overloaded("Too many uploads are in progress; try again later.", retry_after_s=1.0)
