"""`alexnet`: photos to labels from the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from alexnet_client import _call, errors, results
from alexnet_client.client import Client
from alexnet_client.photos import Photo

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})
"""What is taken for a photo in a folder; a file given by name is sent whatever it is called."""

_ADDRESS_VARIABLE = "ALEXNET_CLIENT_ADDRESS"
_API_KEY_VARIABLE = "ALEXNET_API_KEY"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when everything succeeded or the reader of the output has seen enough, 1 when a photo or the call
        failed, 130 when interrupted; wrong usage exits with 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with _client(options) as client:
            run: Callable[[Client, argparse.Namespace], int] = options.run
            status = run(client, options)
            sys.stdout.flush()
            return status
    except (OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        parser.error(str(error))
    except errors.AlexNetError as error:
        _complain(f"{options.address}: {error}{_advice(error)}")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alexnet", description="Ask an AlexNet server what is on photos.")
    parser.add_argument("--version", action="version", version=f"alexnet {version('alexnet')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    classify = commands.add_parser(
        "classify", help="label photos", description="Label photos, best label first."
    )
    classify.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="a file, a folder (searched for photos), or - for standard input",
    )
    classify.add_argument("--top-k", type=int, default=5, help="labels for each photo (default: 5)")
    classify.add_argument(
        "--views",
        choices=("center", "ten", "dense"),
        default="center",
        help="views to average (default: center)",
    )
    classify.add_argument("--model", help="a model by name, instead of --views")
    classify.add_argument("--json", action="store_true", help="one JSON object a line, errors included")
    classify.add_argument("--progress", action="store_true", help="count on standard error")
    classify.set_defaults(run=_classify)

    labels = commands.add_parser("labels", help="list what the model can say: index, WordNet id, words")
    labels.add_argument("--model", help="a model by name")
    labels.set_defaults(run=_labels)

    health = commands.add_parser("health", help="ask whether the server is ready; exits with 1 when not")
    health.set_defaults(run=_health)

    for command in (classify, labels, health):
        _add_connection(command)
    return parser


def _add_connection(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("connection")
    address = os.environ.get(_ADDRESS_VARIABLE, _call.DEFAULT_ADDRESS)
    group.add_argument(
        "--address",
        default=address,
        help=f"host:port of the gRPC API (${_ADDRESS_VARIABLE}; now: {address})",
    )
    group.add_argument(
        "--api-key-file", type=Path, help=f"file with the key (or the key in ${_API_KEY_VARIABLE})"
    )
    group.add_argument("--tls", action="store_true", help="encrypt, trusting the system's authorities")
    group.add_argument("--ca-file", type=Path, help="encrypt, trusting the authorities in this PEM file")
    group.add_argument("--timeout-s", type=float, default=60.0, help="for each photo or call (default: 60)")


def _client(options: argparse.Namespace) -> Client:
    api_key = os.environ.get(_API_KEY_VARIABLE)
    if options.api_key_file is not None:
        api_key = options.api_key_file.read_text(encoding="utf-8").strip()
    return Client(
        options.address,
        api_key=api_key,
        tls=options.tls,
        ca_file=options.ca_file,
        timeout_s=options.timeout_s,
    )


def _classify(client: Client, options: argparse.Namespace) -> int:
    client.health()  # nobody there: say so at once, rather than wait for each photo's deadline
    names: list[str] = []
    outcomes = client.classify_many(
        _photos(options.photos, names),
        options.top_k,
        options.views,
        model=options.model,
        timeout_s=options.timeout_s,
        progress=options.progress,
    )
    failed = 0
    for number, outcome in enumerate(outcomes):
        failed += isinstance(outcome, errors.AlexNetError)
        (_print_json if options.json else _print_table)(names[number], outcome)
    if not names:
        _complain("no photos found")
    return 1 if failed or not names else 0


def _photos(arguments: Iterable[str], names: list[str]) -> Iterator[Photo]:
    """The photos that the arguments mean; each one's name is appended to `names` before it is yielded."""
    for argument in arguments:
        if argument == "-":
            names.append("-")
            yield sys.stdin.buffer
            continue
        path = Path(argument)
        for file in _files_in(path) if path.is_dir() else (path,):
            names.append(str(file))
            yield file


def _files_in(folder: Path) -> Iterator[Path]:
    """The photos in a folder and those below it, by name."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES)


def _labels(client: Client, options: argparse.Namespace) -> int:
    for label in client.labels(model=options.model, timeout_s=options.timeout_s):
        sys.stdout.write(f"{label.index}\t{label.wnid}\t{label.label}\n")
    return 0


def _health(client: Client, options: argparse.Namespace) -> int:
    health = client.health(timeout_s=options.timeout_s)
    sys.stdout.write(f"{health.status}\n")
    return 0 if health.ready else 1


def _print_json(name: str, outcome: results.Classification | errors.AlexNetError) -> None:
    if isinstance(outcome, errors.AlexNetError):
        answer = {"photo": name, "error": {"code": outcome.code, "message": str(outcome)}}
    else:
        answer = {"photo": name, **asdict(outcome)}
    sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _print_table(name: str, outcome: results.Classification | errors.AlexNetError) -> None:
    if isinstance(outcome, errors.AlexNetError):
        sys.stdout.flush()
        _complain(f"{name}: {outcome} ({outcome.code}){_advice(outcome)}")
        return
    lines = [
        f"  {each.rank:>3}  {each.score:>6.1%}  {each.wnid:<9}  {each.label}" for each in outcome.predictions
    ]
    sys.stdout.write("\n".join([name, *lines, ""]))
    sys.stdout.flush()


def _complain(line: str) -> None:
    sys.stderr.write(f"alexnet: {line}\n")


def _advice(error: errors.AlexNetError) -> str:
    if isinstance(error, errors.Unavailable):
        return f"; is the server running, and is this its gRPC address? (--address, ${_ADDRESS_VARIABLE})"
    if isinstance(error, errors.Unauthenticated):
        return f"; give its key with --api-key-file or ${_API_KEY_VARIABLE}"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
