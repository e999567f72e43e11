"""What the `alexnet` command prints of an outcome: a line, a table, or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from alexnet_client import addresses, errors, results
from alexnet_client._call import API_KEY_VARIABLE
from alexnet_client._many import Outcome

Printer: TypeAlias = Callable[[str, Outcome], None]


def as_json(name: str, outcome: Outcome) -> None:
    """An object on a line of its own, errors included."""
    if isinstance(outcome, errors.AlexNetError):
        json_line({"photo": name, "error": {"code": outcome.code, "message": str(outcome)}})
    else:
        json_line({"photo": name, **outcome.to_dict()})


def json_line(answer: dict[str, Any]) -> None:
    """An object on a line; letters that the output's encoding lacks are escaped as JSON does it."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    line = json.dumps(answer, ensure_ascii=not unicode)
    _write(line.encode("utf-8", "backslashreplace").decode() + "\n")


def as_table(name: str, outcome: Outcome) -> None:
    """The photo's name, and below it a line for each label."""
    if isinstance(outcome, errors.AlexNetError):
        _failed(name, outcome)
        return
    lines = [printable(name)]
    for each in outcome:
        label = _bold(each.label) if each.rank == 1 else each.label
        lines.append(f"  {each.rank:>3}  {each.score:>6.1%}  {each.wnid:<9}  {label}")
    _write("\n".join([*lines, ""]))


def as_line(name: str, outcome: Outcome) -> None:
    """The photo's name and its best label."""
    if isinstance(outcome, errors.AlexNetError):
        _failed(name, outcome)
        return
    _write(f"{printable(name)}  {_bold(outcome.top.label)} {100 * outcome.top.score:.1f} %\n")


def models(loaded: tuple[results.Model, ...]) -> None:
    """A line a model."""
    for each in loaded:
        accuracy = each.about.get("accuracy")
        precision = each.about.get("precision", "")
        row = (each.name, each.version, each.views, f"{each.classes} classes", str(precision), each.device)
        _write("\t".join([*row, *([json.dumps(accuracy)] if accuracy else [])]) + "\n")


def complain(line: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"alexnet: {line}\n".encode("utf-8", "backslashreplace").decode())


def advice(error: errors.AlexNetError) -> str:
    """What a user of the command can do about an error, besides what it says itself."""
    if isinstance(error, errors.Unavailable):
        return f" (another address: --address or ${addresses.ADDRESS_VARIABLE})"
    if isinstance(error, errors.Unauthenticated):
        return f"; give its key with --api-key-file or ${API_KEY_VARIABLE}"
    return ""


def printable(name: str) -> str:
    """A file's name with what a terminal cannot show, or would obey, escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _failed(name: str, error: errors.AlexNetError) -> None:
    sys.stdout.flush()
    complain(f"{printable(name)}: {error} ({error.code}){advice(error)}")


def _write(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _bold(text: str) -> str:
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\x1b[1;32m{text}\x1b[0m" if colour else text
