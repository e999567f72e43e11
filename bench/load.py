"""A cheap HTTP client: one thread, one epoll, requests made beforehand.

It shares the cores with the server, so what it costs counts. On a loopback connection nearly all of that is
the kernel copying photos.
"""

import contextlib
import re
import resource
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Result:
    """What a run of load saw."""

    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    steady_answers: int = 0
    steady_s: float = 0.0
    """Answers after the first round and before the end was rung, and the time these took."""
    _steady_from_s: float = 0.0

    @property
    def answers(self) -> int:
        return self.statuses.get(200, 0)

    def note(self, status: int, latency_s: float, at_s: float, connections: int, seconds: float) -> None:
        """Take an answer that came `at_s` after the beginning of a run of `seconds`."""
        self.latencies_s.append(latency_s)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if len(self.latencies_s) == connections:
            self._steady_from_s = at_s
        elif len(self.latencies_s) > connections and at_s < seconds:
            self.steady_answers += 1
            self.steady_s = at_s - self._steady_from_s

    @property
    def rate(self) -> float:
        """Answers a second while all connections were busy."""
        return self.steady_answers / self.steady_s if self.steady_s else self.answers / self.seconds


def post_photo(path: str, photo: bytes) -> bytes:
    """A whole request, as `curl -F image=@photo.jpg` sends it."""
    boundary = "------------------------8c3b0f5d2a17e946"
    disposition = 'Content-Disposition: form-data; name="image"; filename="photo.jpg"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    body = head + photo + f"\r\n--{boundary}--\r\n".encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: multipart/form-data; boundary={boundary}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def post_raw(path: str, photo: bytes) -> bytes:
    """A whole request, as `curl --data-binary @photo.jpg` sends it."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(photo)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + photo


class Connection:
    """One request after another, each sent when the one before has been answered."""

    def __init__(self, port: int) -> None:
        self.opened_at = time.perf_counter()
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.to_send = memoryview(b"")
        self.received = bytearray()
        self.answered = False
        self.started_at = 0.0

    def begin(self, request: bytes) -> None:
        self.to_send = memoryview(request)
        self.received.clear()
        self.answered = False
        self.started_at = time.perf_counter()
        self.send()

    def send(self) -> bool:
        """Send what the socket takes; True when all is sent."""
        with contextlib.suppress(BlockingIOError):
            while self.to_send:
                self.to_send = self.to_send[self.socket.send(self.to_send) :]
        return not self.to_send

    def receive(self) -> int | None:
        """Status of the answer once it is complete."""
        piece = self.socket.recv(65_536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self.received += piece
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self.received, 0, end + 2)
        if length is None or len(self.received) < end + 4 + int(length[1]):
            return None
        self.answered = True
        return int(self.received[9:12])


def drive(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float = float("inf"),
    count: float = float("inf"),
) -> Result:
    """Keep `connections` requests under way for `seconds`, or until `count` are answered.

    Requests still under way at the end are waited for; their answers and their time count.
    """
    selector = selectors.DefaultSelector()
    links = [Connection(port) for _ in range(connections)]
    result = Result()
    began, cpu = time.perf_counter(), _cpu_s()
    begun = 0

    def begin(link: Connection) -> None:
        nonlocal begun
        link.begin(requests[begun % len(requests)])
        begun += 1
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.to_send else 0)
        selector.modify(link.socket, events, link)

    for link in links:
        selector.register(link.socket, selectors.EVENT_READ, link)
        begin(link)
    under_way = connections
    while under_way:
        for key, events in selector.select():
            link = key.data
            if events & selectors.EVENT_WRITE and link.send():
                selector.modify(link.socket, selectors.EVENT_READ, link)
            if events & selectors.EVENT_READ and (status := link.receive()) is not None:
                now = time.perf_counter()
                result.note(status, now - link.started_at, now - began, connections, seconds)
                if now - began < seconds and begun < count:
                    begin(link)
                else:
                    under_way -= 1
    result.seconds, result.client_cpu_s = time.perf_counter() - began, _cpu_s() - cpu
    selector.close()
    for link in links:
        link.socket.close()
    return result


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
