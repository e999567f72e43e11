"""The command line of ``alexnet-train import``, which imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from alexnet_server.models.public.sources import SOURCES
from alexnet_server.models.repository import PRECISIONS, VIEWS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and ``run`` as what they are for."""
    parser.add_argument(
        "weights", metavar="NAME|FILE", help=f"imagenet, {', '.join(SOURCES)}; or one of their files"
    )
    parser.add_argument("--repository", type=Path, required=True, help="model repository to write")
    parser.add_argument(
        "--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="views to write; default: all three"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the unpacked graphs; default: fp32",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="for int8: a folder of photos like those to be classified",
    )
    parser.add_argument("--url", help="download NAME from here instead; the checksum must still match")
    parser.add_argument("--unverified", action="store_true", help="accept a file whose checksum differs")
    parser.add_argument(
        "--variant",
        choices=("caffe", "caffenet"),
        help="which network a caffemodel is, if it does not say",
    )
    parser.add_argument(
        "--mean", type=Path, help="mean image (.binaryproto or .npy) in place of the mean pixel"
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="labels if not those of ILSVRC: one line per class, WordNet id, tab, words",
    )
    parser.add_argument(
        "--downloads", type=Path, help="folder for downloaded files; default: the user's cache"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from dataclasses import fields

    from alexnet_server.models.public.importing import Request, import_weights

    values = vars(options)
    request = Request(**{field.name: values[field.name] for field in fields(Request) if field.name in values})
    import_weights(request, options.repository, say=print)
