"""Ten times what the server can do, for half a minute: `python -m bench.overload [-- SERVER FLAGS]`.

Requests come at their times whatever became of those before, as from many people; one in fifty asks for ten
views. Prints what was still answered against the peak, how soon the rest was refused, how `/livez` fared
meanwhile, and how the server was a second later. `late_ms` tells how far the client itself was behind: it has
the same cores.
"""

import argparse
import json
import selectors
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

from bench.load import Connection, drive, post_photo
from bench.options import parse, parser, photo_files
from bench.processes import Server

_CONNECTIONS = 2000
_LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
_LIVEZ_EVERY_S = 0.05


class OpenLoop:
    """Requests begun at a rate on as many connections as it takes."""

    def __init__(self, port: int) -> None:
        self.latencies_s: dict[int, list[float]] = defaultdict(list)
        """By status."""
        self.livez_s: list[float] = []
        self.late_s: list[float] = []
        self.not_begun = 0
        """All connections were waiting for an answer."""
        self.closed = 0
        """Connections that the server closed before an answer."""
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._idle: list[Connection] = []
        self._opened = 0
        self._livez: Connection | None = None
        """A connection of its own each time, as a kubelet has it."""
        self._livez_at = 0.0

    def run(self, requests: Sequence[bytes], rate: float, seconds: float) -> None:
        began = time.perf_counter()
        begun = 0
        while (now := time.perf_counter()) - began < seconds:
            due = int((now - began) * rate)
            for number in range(begun, due):
                self.late_s.append(now - began - number / rate)
                self._begin(requests[number % len(requests)])
            begun = due
            if self._livez is None and now >= self._livez_at:
                self._livez = self._open()
                self._send(self._livez, _LIVEZ)
            self._answers(0.001)
        ended = time.perf_counter()
        while len(self._idle) < self._opened and time.perf_counter() - ended < seconds:
            self._answers(0.1)
        self.unanswered = self._opened - len(self._idle)

    def _open(self) -> Connection:
        link = Connection(self._port)
        self._selector.register(link.socket, selectors.EVENT_READ, link)
        self._opened += 1
        return link

    def _begin(self, request: bytes) -> None:
        if not self._idle and self._opened > _CONNECTIONS:
            self.not_begun += 1
            return
        self._send(self._idle.pop() if self._idle else self._open(), request)

    def _send(self, link: Connection, request: bytes) -> None:
        link.begin(request)
        if link.to_send:
            self._selector.modify(link.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, link)

    def _answers(self, wait_s: float) -> None:
        for key, events in self._selector.select(wait_s):
            link = key.data
            try:
                if events & selectors.EVENT_WRITE and link.send():
                    self._selector.modify(link.socket, selectors.EVENT_READ, link)
                    self._rest(link)
                if events & selectors.EVENT_READ and (status := link.receive()) is not None:
                    self._note(link, status)
                    self._rest(link)
            except ConnectionError:
                self.closed += not link.answered
                self._close(link)

    def _close(self, link: Connection) -> None:
        self._selector.unregister(link.socket)
        link.socket.close()
        self._opened -= 1
        if link in self._idle:
            self._idle.remove(link)

    def _note(self, link: Connection, status: int) -> None:
        now = time.perf_counter()
        if link is self._livez:
            self.livez_s.append(now - link.opened_at)
            self._livez, self._livez_at = None, now + _LIVEZ_EVERY_S
            self._close(link)
        else:
            self.latencies_s[status].append(now - link.started_at)

    def _rest(self, link: Connection) -> None:
        """Take it for another request once the last one is answered and, if refused, sent to its end."""
        if link.socket.fileno() >= 0 and not link.to_send and link.answered:
            self._idle.append(link)


def main() -> None:
    options, flags = _arguments()
    files = sorted(photo_files(options.photos), key=lambda path: path.stat().st_size)
    # The smaller half: the client has to write them all.
    photos = [path.read_bytes() for path in files[: max(1, len(files) // 2)]]
    requests = [post_photo("/classify", photos[number % len(photos)]) for number in range(50)]
    requests[-1] = post_photo("/classify?views=ten", photos[0])
    with Server(flags) as server:
        peak = drive(server.port, requests, connections=64, seconds=options.seconds / 3).rate
        loop = OpenLoop(server.port)
        loop.run(requests, options.times * peak, options.seconds)
        time.sleep(1)
        after = drive(server.port, requests[:-1], connections=1, count=20)
        report = {
            "peak_per_s": round(peak, 1),
            "offered_per_s": round(len(loop.late_s) / options.seconds, 1),
            "goodput_of_peak": round(len(loop.latencies_s[200]) / options.seconds / peak, 3),
            "statuses": {status: len(times) for status, times in sorted(loop.latencies_s.items())},
            "not_begun": loop.not_begun,
            "unanswered": loop.unanswered,
            "closed": loop.closed,
            "refused_ms": _percentiles(loop.latencies_s[429]),
            "livez_ms": _percentiles(loop.livez_s),
            "late_ms": _percentiles(loop.late_s),
            "a_second_later": {"statuses": after.statuses, "ms": _percentiles(after.latencies_s)},
        }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def _percentiles(times_s: Sequence[float]) -> dict[str, float]:
    if len(times_s) < 2:
        return {}
    cuts = statistics.quantiles(times_s, n=100)
    return {
        "p50": round(cuts[49] * 1e3, 1),
        "p99": round(cuts[98] * 1e3, 1),
        "max": round(max(times_s) * 1e3, 1),
    }


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=30.0)
    options.add_argument("--times", type=float, default=10.0, help="the peak's rate times this is offered")
    return parse(options)


if __name__ == "__main__":
    main()
