"""`alexnet`: photos to labels from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from alexnet_client import _completion, _folders, _output, addresses, errors
from alexnet_client._call import API_KEY_VARIABLE
from alexnet_client.client import Client
from alexnet_client.http import HttpClient
from alexnet_client.photos import Photo

_EXAMPLES = """\
examples:
  alexnet classify cat.jpg                      five labels, best first
  alexnet classify photos --progress            one line for each photo in a folder
  alexnet classify --json photos > labels.jsonl
  alexnet classify --watch incoming             label new photos as they arrive, until Ctrl-C
  alexnet classify https://example.org/cat.jpg
  alexnet labels | grep cat
  eval "$(alexnet completion bash)"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when everything succeeded or the reader of the output has seen enough, 1 when a photo or the call
        failed, 130 when interrupted; wrong usage exits with 2.
    """
    parser, commands = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        sys.stdout.write(_completion.script(options.shell, commands))
        return 0
    try:
        with _client(options) as client:
            run: Callable[[Client | HttpClient, argparse.Namespace], int] = options.run
            status = run(client, options)
            sys.stdout.flush()
            return status
    except errors.AlexNetError as error:
        _output.complain(f"{error}{_output.advice(error)}")
        return 1
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="alexnet",
        description="Ask an AlexNet server what photos show.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"alexnet {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    classify = commands.add_parser(
        "classify",
        help="label photos",
        description="Label photos, best label first: a table for one photo, one line each for several.",
    )
    _add_photos(classify)
    classify.add_argument("--top-k", type=int, help="labels for each photo, as tables (default: 5)")
    classify.add_argument("--json", action="store_true", help="one JSON object per line, errors included")
    classify.add_argument(
        "--progress", action="store_true", help="count on standard error, with the time left"
    )
    classify.add_argument(
        "--watch", action="store_true", help="then wait for new photos in the folders, until interrupted"
    )
    classify.set_defaults(run=_classify)

    features = commands.add_parser(
        "features", help="the last hidden layer's 4,096 numbers, one JSON object per line"
    )
    _add_photos(features)
    features.set_defaults(run=_features)

    labels = commands.add_parser("labels", help="list what the model can name: index, WordNet id, words")
    labels.add_argument("--model", help="a model by name")
    labels.set_defaults(run=_labels)

    models = commands.add_parser("models", help="list the models that the server has loaded")
    models.set_defaults(run=_models)

    health = commands.add_parser("health", help="ask whether the server is ready; exit with 1 if it is not")
    health.set_defaults(run=_health)

    for command in (classify, features, labels, models, health):
        _add_connection(command)
    completion = commands.add_parser("completion", help="print a shell's completion script")
    completion.add_argument("shell", choices=_completion.SHELLS)
    completion.set_defaults(run=None)
    return parser, commands.choices


def _version() -> str:
    for distribution in ("alexnet-client", "alexnet"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "of a source tree"


def _add_photos(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="a file, a folder (searched for photos), a URL, or - for standard input",
    )
    command.add_argument(
        "--views",
        choices=("center", "ten", "dense"),
        default="center",
        help="views to average (default: center)",
    )
    command.add_argument("--model", help="a model by name, instead of --views")


def _add_connection(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("connection")
    now = os.environ.get(addresses.ADDRESS_VARIABLE) or addresses.DEFAULT
    group.add_argument(
        "--address",
        help=f"host:port of the gRPC API, or an http URL (${addresses.ADDRESS_VARIABLE}; now: {now})",
    )
    group.add_argument(
        "--api-key-file", type=Path, help=f"file with the key (or the key in ${API_KEY_VARIABLE})"
    )
    group.add_argument(
        "--tls", action="store_true", help="encrypt, trusting the system's certificate authorities"
    )
    group.add_argument(
        "--ca-file", type=Path, help="encrypt, trusting the certificate authorities in this PEM file"
    )
    group.add_argument("--timeout-s", type=float, default=60.0, help="for each photo or call (default: 60)")


def _client(options: argparse.Namespace) -> Client | HttpClient:
    api_key = None
    if options.api_key_file is not None:
        api_key = options.api_key_file.read_text(encoding="utf-8").strip()
    address = options.address or os.environ.get(addresses.ADDRESS_VARIABLE) or addresses.DEFAULT
    if address.startswith(("http://", "https://")):
        return HttpClient(address, api_key=api_key, ca_file=options.ca_file, timeout_s=options.timeout_s)
    return Client(
        address,
        api_key=api_key,
        tls=options.tls,
        ca_file=options.ca_file,
        timeout_s=options.timeout_s,
    )


def _classify(client: Client | HttpClient, options: argparse.Namespace) -> int:
    client.health()  # nobody there: say so at once, rather than wait for each photo's deadline
    names: list[str] = []
    found = (_folders.watched if options.watch else _folders.photos)(options.photos)
    photos: Iterable[Photo] = _noted(found, names)
    if options.progress and not options.watch:
        photos = list(photos)  # so that there is a total
    outcomes = client.classify_many(
        photos,
        5 if options.top_k is None else options.top_k,
        options.views,
        model=options.model,
        timeout_s=options.timeout_s,
        progress=options.progress,
    )
    printer = _printer(options)
    failed = 0
    for number, outcome in enumerate(outcomes):
        failed += isinstance(outcome, errors.AlexNetError)
        printer(names[number], outcome)
    if not names:
        _output.complain("no photos found")
    return 1 if failed or not names else 0


def _noted(found: Iterable[tuple[str, Photo]], names: list[str]) -> Iterator[Photo]:
    """The photos; each one's name is appended to `names` before it is yielded."""
    for name, photo in found:
        names.append(name)
        yield photo


def _printer(options: argparse.Namespace) -> _output.Printer:
    if options.json:
        return _output.as_json
    several = len(options.photos) > 1 or options.watch or Path(options.photos[0]).is_dir()
    return _output.as_line if several and options.top_k is None else _output.as_table


def _features(client: Client | HttpClient, options: argparse.Namespace) -> int:
    status = 0
    for name, photo in _folders.photos(options.photos):
        try:
            answer = client.features(photo, options.views, model=options.model)
        except errors.InvalidImage as error:
            _output.as_json(name, error)
            status = 1
        else:
            row = {"photo": name, "model": answer.model, "version": answer.version}
            _output.json_line({**row, "features": list(answer)})
    return status


def _labels(client: Client | HttpClient, options: argparse.Namespace) -> int:
    for label in client.labels(model=options.model, timeout_s=options.timeout_s):
        sys.stdout.write(f"{label.index}\t{label.wnid}\t{label.label}\n")
    return 0


def _models(client: Client | HttpClient, options: argparse.Namespace) -> int:
    _output.models(client.models(timeout_s=options.timeout_s))
    return 0


def _health(client: Client | HttpClient, options: argparse.Namespace) -> int:
    health = client.health(timeout_s=options.timeout_s)
    sys.stdout.write(f"{health.status}\n")
    return 0 if health.ready else 1


if __name__ == "__main__":
    raise SystemExit(main())
