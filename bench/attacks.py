"""Who suffers while somebody attacks: `python -m bench.attacks [--before CHECKOUT] [-- SERVER FLAGS]`.

Each attack meets a fresh server with default settings under a real limit of memory, beside innocent photos at
a modest rate and a probe of `/livez` every 50 ms, each on a connection of its own. Prints a table: the
longest probe, memory (the growth of the resident peak) over what the server's budgets allow, photos not
answered with 200, and what became of the attack's requests. `--before` names another checkout with its own
`.venv`, whose server is attacked the same way. `late` tells how far the probe itself was behind: attacker,
server and innocents have the same cores, and a machine that stands still shows there.
"""

import argparse
import http.client
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count, cycle, islice
from pathlib import Path
from types import TracebackType

from bench.attackers import ATTACKS
from bench.options import parse, parser, photo_files
from bench.processes import ROOT, Child, Server

_PROBE_S = 0.05
_PATIENCE_S = 15.0
"""Longest that anybody innocent waits."""
_AFTER_S = 1.0
"""Probed and asked for so long once an attack is over."""
_CGROUP = Path("/sys/fs/cgroup")


class Target(Server):
    """A server with default settings and no more memory than it is given; killed at the end.

    Args:
        flags: Its own.
        checkout: Whose it is.
        limit: Run in the new process before it becomes the server.
    """

    def __init__(self, flags: list[str], checkout: Path, limit: Callable[[], object]) -> None:
        python = sys.executable if checkout == ROOT else str(checkout / ".venv/bin/python")
        command = [python, "-m", "alexnet_server", "--http-port=0", "--grpc-port=0", *flags]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that is not read would stop the server
        self.process = subprocess.Popen(command, cwd=checkout, stderr=self._output, preexec_fn=limit)
        while "ready after" not in (text := self._text()):
            if self.process.poll() is not None:
                raise SystemExit(text)
            time.sleep(0.1)
        found = re.search(r"http://127.0.0.1:(\d+) and grpc://127.0.0.1:(\d+)", text)
        self.port, self.grpc_port = int(found[1]), int(found[2])

    def _text(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._output.close()

    def forget_peak(self) -> float:
        """Let the peak begin with what is held now, MiB."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.rss_mib()


class Bystanders:
    """Innocent photos and probes, from its beginning to `end`.

    Args:
        server: Whom they ask.
        photos: What they send, again and again.
        rate: Photos a second.
    """

    def __init__(self, server: Target, photos: Sequence[bytes], rate: float) -> None:
        self.answers: Counter[str] = Counter()
        """Of the photos."""
        self.livez_s: list[float] = []
        self.late_s = 0.0
        self.peak_mib = 0.0
        self._server, self._photos, self._rate = server, photos, rate
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._probe, self._send)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Begin no more, and wait for the rest."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _probe(self) -> None:
        due = time.perf_counter()
        while not self._over.is_set():
            began = time.perf_counter()
            self.late_s = max(self.late_s, began - due)
            _ask(self._server.port, "GET", "/livez")
            ended = time.perf_counter()
            self.livez_s.append(ended - began)
            with suppress(OSError, TypeError):  # of a process that is no more
                self.peak_mib = self._server.peak_mib()
            due = max(ended, began + _PROBE_S)
            time.sleep(due - ended)

    def _send(self) -> None:
        began = time.perf_counter()
        with ThreadPoolExecutor(100) as people:
            for number, photo in zip(count(), cycle(self._photos)):
                if self._over.wait(max(0.0, began + number / self._rate - time.perf_counter())):
                    return
                people.submit(self._classify, photo)

    def _classify(self, photo: bytes) -> None:
        self.answers[_ask(self._server.port, "POST", "/classify", photo)] += 1


def _ask(port: int, method: str, path: str, body: bytes | None = None) -> str:
    """The status, or what went wrong."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        link.request(method, path, body)
        return str(link.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        link.close()


def attacked(
    name: str, server: Target, photos: Sequence[bytes], options: argparse.Namespace
) -> dict[str, object]:
    """One attack's row of the table."""
    for photo in islice(cycle(photos), 8):
        _ask(server.port, "POST", "/classify", photo)
    command = [sys.executable, "-m", "bench.attackers", name, str(server.port), str(server.grpc_port)]
    with Child(command) as attacker:
        attacker.expect("ready")
        allowed_mib = attacker.ask("allowed") / 2**20
        before_mib = server.forget_peak()
        bystanders = Bystanders(server, photos, options.rate)
        answers = attacker.ask(f"go {options.seconds}")
    time.sleep(_AFTER_S)
    bystanders.end()
    grown_mib = max(0.0, bystanders.peak_mib - before_mib)
    return {
        "livez ms": round(1e3 * max(bystanders.livez_s)),
        "late ms": round(1e3 * bystanders.late_s),
        "grown MiB": round(grown_mib),
        "allowed MiB": round(allowed_mib),
        "over MiB": round(max(0.0, grown_mib - allowed_mib)),
        "photos": bystanders.answers.total(),
        "lost": bystanders.answers.total() - bystanders.answers["200"],
        "innocent answers": dict(bystanders.answers),
        "answers": dict(sorted(answers.items())),
        "ended": server.process.poll(),
    }


def limited(mebibytes: int, stack: ExitStack) -> tuple[str, Callable[[], object]]:
    """What bounds a process's memory here, and a function that a new process calls to be bounded."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = _CGROUP / next(line for line in lines if line.startswith("0::"))[4:]
        if "memory" in (own / "cgroup.subtree_control").read_text().split():
            group = own / f"alexnet-bench-{os.getpid()}"
            group.mkdir()
            stack.callback(group.rmdir)
            (group / "memory.max").write_text(str(mebibytes << 20))
            return "cgroup", lambda: (group / "cgroup.procs").write_text("0")
    limit = (mebibytes << 20, mebibytes << 20)
    return "address space", lambda: resource.setrlimit(resource.RLIMIT_AS, limit)


def table(rows: dict[str, dict[str, dict[str, object]]]) -> str:
    """In Markdown: a line for each attack and checkout."""
    heads = ("livez ms", "late ms", "over MiB", "grown MiB", "lost", "photos", "answers")
    lines = ["| attack | | " + " | ".join(heads) + " |", "|" + "---|" * (2 + len(heads))]
    for name, measured in rows.items():
        for when, row in measured.items():
            told = {**row, "answers": ", ".join(f"{word}: {times}" for word, times in row["answers"].items())}
            ended = "" if row["ended"] is None else f" **the process ended ({row['ended']})**"
            lines.append(
                f"| {name} | {when} | " + " | ".join(str(told[head]) for head in heads) + f"{ended} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    options, flags = _arguments()
    photos = [path.read_bytes() for path in photo_files(options.photos)]
    checkouts = {"before": options.before} if options.before else {}
    rows: dict[str, dict[str, dict[str, object]]] = {}
    with ExitStack() as stack:
        how, limit = limited(options.memory, stack)
        for name in options.attack or ATTACKS:
            rows[name] = {}
            for when, checkout in {**checkouts, "now": ROOT}.items():
                with Target(flags, checkout, limit) as server:
                    rows[name][when] = row = attacked(name, server, photos, options)
                sys.stderr.write(f"{name}, {when}: {row}\n")
    sys.stdout.write(f"{options.memory} MiB at most ({how})\n\n{table(rows)}\n{json.dumps(rows)}\n")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    options = parser(__doc__)
    options.add_argument("--attack", action="append", choices=ATTACKS, help="only this one; may be repeated")
    options.add_argument("--before", type=Path, metavar="CHECKOUT", help="attack its server too")
    options.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    options.add_argument("--rate", type=float, default=5.0, help="innocent photos a second")
    options.add_argument("--memory", type=int, default=4096, help="MiB that the server may have: the pod's")
    return parse(options)


if __name__ == "__main__":
    main()
