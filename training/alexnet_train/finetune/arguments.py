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
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument(
        "--layers",
        choices=("fc8", "fc7"),
        help="the last layer, or (with PyTorch) the last two where held-out photos gain by it; default: fc8",
    )
    depth.add_argument(
        "--deep",
        dest="layers",
        action="store_const",
        const="conv4",
        help="train conv4 to fc8 (with PyTorch), where held-out photos gain by it; takes minutes",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=2012,
        help="seed for the zooms, for what is held out and for training layers before fc8; default: 2012",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from alexnet_train.finetune.command import finetune

    finetune(
        options.photos,
        options.repository,
        validation=options.validation,
        start=options.start,
        layers=options.layers or "fc8",
        seed=options.seed,
    )
