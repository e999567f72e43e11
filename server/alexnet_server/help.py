"""What `alexnet-server --help` prints: every setting with its unit, its default and its variable."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

_VALUES = {
    "host": "ADDRESS",
    "model_repository": "DIR",
    "triton_url": "HOST:PORT",
    "queue_size": "VIEWS",
    "cors_origins": "URL,...",
    "api_keys": "KEY,...",
}
"""What stands for a setting's value; the others' names end in theirs."""
_SUFFIXES = {
    "_port": "PORT",
    "_threads": "THREADS",
    "_s": "SECONDS",
    "_bytes": "BYTES",
    "_pixels": "PIXELS",
    "_file": "FILE",
}
_USAGE = """\
usage: alexnet-server [--FLAG VALUE ...]  serve photos to labels, HTTP and gRPC
       alexnet-server unpack [DIR]        write the shipped model repository
       alexnet-server --version | --help

Each flag is also an environment variable, whose name is in brackets; a flag
goes before its variable.
"""


def help_text(settings: type[BaseSettings], prefix: str) -> str:
    """The text.

    Args:
        settings: The class whose fields are the flags.
        prefix: Of the fields' environment variables.
    """
    flags = (_flag(name, field, prefix) for name, field in settings.model_fields.items())
    return f"{_USAGE}\n{''.join(flags)}"


def _flag(name: str, field: FieldInfo, prefix: str) -> str:
    flag = name.replace("_", "-")
    heading = f"--{flag}, --no-{flag}" if field.annotation is bool else f"--{flag} {_value(name, field)}"
    text = f"{field.description} {_default(name, field.default)}[{prefix}{name.upper()}]"
    return f"  {heading}\n{textwrap.fill(text, 80, initial_indent=' ' * 8, subsequent_indent=' ' * 8)}\n"


def _value(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(field.annotation.__args__)  # type: ignore[union-attr]  # a Literal has them
    return _VALUES.get(name) or next(word for suffix, word in _SUFFIXES.items() if name.endswith(suffix))


def _default(name: str, default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return f"Default: {'yes' if default else 'no'}. "
    if name.endswith("_bytes"):
        return f"Default: {default} ({default / 2**20:g} MiB). "
    return f"Default: {f'{default:g}' if isinstance(default, float) else default}. "
