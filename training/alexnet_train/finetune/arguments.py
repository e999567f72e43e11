"""The command line of ``alexnet-train finetune``, which imports nothing heavy before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and ``run`` as what they are for."""
    parser.add_argument(
        "photos", type=Path, metavar="PHOTOS", help="a folder that contains one folder of photos per class"
    )
    parser.add_argument("--repository", type=Path, required=True, help="model repository to write")
    parser.add_argument(
        "--validation",
        type=Path,
        metavar="FOLDER",
        help="photos to measure on, in folders like PHOTOS; default: fifths of PHOTOS, each held out in turn",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="REPOSITORY|NAME",
        help="network to start from: a repository, or a name that import knows; default: the shipped one",
    )
    parser.add_argument("--layers", choices=("fc8",), default="fc8", help="layers to train; default: fc8")
    parser.add_argument(
        "--seed", type=int, default=2012, help="seed for the zooms and for what is held out; default: 2012"
    )
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
