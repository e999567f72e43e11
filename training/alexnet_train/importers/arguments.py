"""The command line of ``alexnet-train import``, which imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from alexnet_server.models.public.sources import SOURCES
from alexnet_server.models.repository import PRECISIONS, VIEWS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and ``run`` as what they are for."""
    parser.add_argument(
        "weights", metavar="NAME|FILE", help=f"imagenet, {', '.join(SOURCES)}; or a file of theirs"
    )
    parser.add_argument("--repository", type=Path, required=True, help="model repository to write")
    parser.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="default: all three")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the unpacked graphs")
    parser.add_argument("--calibrate", type=Path, metavar="FOLDER", help="photos like those served, for int8")
    parser.add_argument("--url", help="where to fetch NAME from instead; the checksum stays")
    parser.add_argument("--unverified", action="store_true", help="take a file whose checksum is another")
    parser.add_argument("--variant", choices=("caffe", "caffenet"), help="of a caffemodel that does not tell")
    parser.add_argument("--mean", type=Path, help="mean image, .binaryproto or .npy, not the mean pixel")
    parser.add_argument(
        "--labels", type=Path, help="other classes than ILSVRC's: WordNet id, tab, words a line"
    )
    parser.add_argument(
        "--downloads", type=Path, help="where fetched files are kept; default: the user's cache"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from dataclasses import fields

    from alexnet_server.models.public.importing import Request, import_weights

    values = vars(options)
    request = Request(**{field.name: values[field.name] for field in fields(Request) if field.name in values})
    import_weights(request, options.repository, say=print)
