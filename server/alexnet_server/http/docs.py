"""The page at `/docs`: plain HTML made from the OpenAPI document, so that it works without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from alexnet_server.errors import TABLE


def docs_page(openapi: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: its paths, their parameters and answers, and the error table."""
    info = openapi["info"]
    paths = "".join(
        _operation(method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    title, about = escape(info["title"]), _words(info.get("description", ""))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title} API</title>'
        '<link rel="icon" type="image/svg+xml" href="page/icon.svg">'
        '<link rel="stylesheet" href="page/docs.css">'
        f"<h1>{title} {escape(info['version'])}</h1><p>{about}</p>"
        '<p><a href="openapi.json">OpenAPI document</a> · <a href="#errors">Errors</a> · '
        '<a href="./">Try it</a></p>'
        f"{paths}{_errors()}</html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(_kind(p['schema']))}"
        f"<td>{_words(p.get('description', ''))}"
        for p in operation.get("parameters", ())
    )
    table = _table("parameter", "in", "kind", "meaning", rows=parameters) if parameters else ""
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
        f"<p>{_words(operation.get('description') or operation.get('summary', ''))}</p>"
        f"{table}{_examples(operation)}"
    )


def _table(*titles: str, rows: str) -> str:
    """HTML of a table that scrolls by itself where the screen is narrow."""
    return f'<div class="table"><table><tr>{"".join(f"<th>{title}" for title in titles)}{rows}</table></div>'


def _words(text: str) -> str:
    """HTML of a text whose code stands between backticks."""
    parts = enumerate(escape(text).split("`"))
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in parts)


def _kind(schema: Mapping[str, Any]) -> str:
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    words = [", ".join(option["enum"]) if "enum" in option else str(option.get("type")) for option in options]
    default = f", {schema['default']} when not given" if schema.get("default") is not None else ""
    return " or ".join(words) + default


def _examples(operation: Mapping[str, Any]) -> str:
    found = [operation["x-example"]] if "x-example" in operation else []
    for content in operation.get("responses", {}).get("200", {}).get("content", {}).values():
        if "example" in content:
            found.append(json.dumps(content["example"], indent=2))
    return "".join(f"<pre>{escape(example)}</pre>" for example in found)


def _errors() -> str:
    rows = "".join(
        f'<tr id="{row.code}"><td><code>{row.code}</code><td>{row.http_status}<td>{row.grpc_status}'
        f"<td>{'yes' if row.retryable else 'no'}<td>{_words(row.meaning)}"
        for row in TABLE.values()
    )
    return (
        '<h2 id="errors">Errors</h2><p>HTTP errors are RFC 9457 problem documents '
        "(<code>application/problem+json</code>) with a stable <code>code</code>; gRPC carries it in the "
        "trailer <code>x-error-code</code>.</p>"
        + _table("code", "HTTP", "gRPC", "retry", "meaning", rows=rows)
    )
