"""The page at `/docs`: plain HTML made from the OpenAPI document, so that it works without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from alexnet_server.errors import TABLE

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} API</title>
<link rel="icon" type="image/svg+xml" href="page/icon.svg"><link rel="stylesheet" href="page/docs.css">
<header><h1>{title} {version}</h1><p>{about}</p>
<p><a href="openapi.json">OpenAPI document</a> · <a href="#errors">Errors</a> · <a href="./">Try it</a></p>
</header>
<main>{paths}
<h2 id="errors">Errors</h2>
<p>HTTP errors are RFC 9457 problem documents
(<code>application/problem+json</code>) with a stable <code>code</code>; gRPC carries it in the
trailer <code>x-error-code</code>.</p>{errors}</main></html>"""


def docs_page(openapi: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: its paths, their parameters and answers, and the error table."""
    info = openapi["info"]
    paths = (
        _operation(f"{method.upper()} {path}", operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    errors = (
        f'<tr id="{row.code}"><td><code>{row.code}</code><td>{row.http_status}<td>{row.grpc_status}'
        f"<td>{'yes' if row.retryable else 'no'}<td>{_words(row.meaning)}"
        for row in TABLE.values()
    )
    return _PAGE.format(
        title=escape(info["title"]),
        version=escape(info["version"]),
        about=_words(info.get("description", "")),
        paths="".join(paths),
        errors=_table("code, HTTP, gRPC, retry, meaning", errors),
    )


def _operation(name: str, operation: Mapping[str, Any]) -> str:
    parameters = [
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(_kind(p['schema']))}"
        f"<td>{_words(p.get('description', ''))}"
        for p in operation.get("parameters", ())
    ]
    answers = operation.get("responses", {}).get("200", {}).get("content", {}).values()
    examples = [json.dumps(answer["example"], indent=2) for answer in answers if "example" in answer]
    return (
        f"<h2><code>{escape(name)}</code></h2>"
        f"<p>{_words(operation.get('description') or operation.get('summary', ''))}</p>"
        + (_table("parameter, in, kind, meaning", parameters) if parameters else "")
        + "".join(f"<pre>{escape(text)}</pre>" for text in (operation.get("x-example"), *examples) if text)
    )


def _table(titles: str, rows: Iterable[str]) -> str:
    """HTML of a table that scrolls by itself where the screen is narrow."""
    heads = "".join(f"<th>{title}" for title in titles.split(", "))
    return f'<div class="table"><table><tr>{heads}{"".join(rows)}</table></div>'


def _words(text: str) -> str:
    """HTML of a text whose code stands between backticks."""
    parts = enumerate(escape(text).split("`"))
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in parts)


def _kind(schema: Mapping[str, Any]) -> str:
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    words = [", ".join(option["enum"]) if "enum" in option else str(option.get("type")) for option in options]
    default = f", {schema['default']} when not given" if schema.get("default") is not None else ""
    return " or ".join(words) + default
