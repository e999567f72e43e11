"""The command line of ``alexnet-train finetune``, which imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and ``run`` as what they are for."""
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="a folder with a folder of photos a class"
    )
    parser.add_argument("--repository", type=Path, required=True, help="model repository to write")
    parser.add_argument(
        "--validation",
        type=Path,
        metavar="FOLDER",
        help="judge by these photos, laid out alike; default: by fifths of PHOTOS, each held out in turn",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="REPOSITORY|NAME",
        help="the network to start from, or a name that import knows; default: the one that ships",
    )
    parser.add_argument(
        "--layers", choices=("fc8",), default="fc8", help="what is learned anew; default: fc8"
    )
    parser.add_argument("--seed", type=int, default=2012, help="of the zooms and of what is held out")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from alexnet_train.finetune.command import finetune

    finetune(
        options.photos,
        options.repository,
        validation=options.validation,
        start=options.start,
        seed=options.seed,
    )
