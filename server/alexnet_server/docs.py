"""The page at `/docs`: plain HTML made from the OpenAPI document, so that it works without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from alexnet_server.errors import TABLE

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre { overflow: auto; padding: .75rem; border: 1px solid #8884; border-radius: .4rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top;
padding: .3rem .6rem; border-bottom: 1px solid #8884 } h2 { margin-top: 2.5rem } h3 code { font-size: 1em }
"""


def docs_page(openapi: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: its paths, their parameters and answers, and the error table."""
    info = openapi["info"]
    paths = "".join(
        _operation(method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    title, about = escape(info["title"]), escape(info.get("description", ""))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title} API</title><style>{_STYLE}</style>'
        f"<h1>{title} {escape(info['version'])}</h1><p>{about}</p>"
        '<p><a href="/openapi.json">OpenAPI document</a> · <a href="/">Try it</a></p>'
        f"{paths}{_errors()}</html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(p['name'])}</code><td>{escape(p['in'])}<td>{escape(_kind(p['schema']))}"
        f"<td>{escape(p.get('description', ''))}"
        for p in operation.get("parameters", ())
    )
    table = f"<table><tr><th>parameter<th>in<th>kind<th>meaning{parameters}</table>" if parameters else ""
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
        f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>"
        f"{table}{_examples(operation)}"
    )


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
        f"<td>{'yes' if row.retryable else 'no'}<td>{escape(row.meaning)}"
        for row in TABLE.values()
    )
    return (
        '<h2 id="errors">Errors</h2><p>HTTP errors are RFC 9457 problem documents '
        "(<code>application/problem+json</code>) with a stable <code>code</code>.</p>"
        f"<table><tr><th>code<th>HTTP<th>gRPC<th>retry<th>meaning{rows}</table>"
    )
