"""``alexnet-train``: one subcommand for each step from images to a model repository."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet_train.data.dataset import DatasetError
from alexnet_train.finetune.arguments import add_arguments as add_finetune_arguments
from alexnet_train.importers.arguments import add_arguments
from alexnet_train.options import changed, recipe
from alexnet_train.paper.commands import add_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns 1, with one line on stderr, for an error with a known mend."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except OSError as error:  # a path that is not there, a folder that may not be written
        place = f"{error.filename}: " if error.filename else ""
        print(f"alexnet-train: {place}{error.strerror or error}", file=sys.stderr)  # noqa: T201 - as below
        return 1
    except (DatasetError, RuntimeError, ValueError) as error:
        if not type(error).__module__.startswith("alexnet_"):
            raise
        print(f"alexnet-train: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("alexnet-train", description="Train AlexNet and hand it to the server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="images to one uint8 memmap; resumable")
    prepare.add_argument(
        "--source", type=Path, required=True, help="folder of parquet files or class folders"
    )
    prepare.add_argument("--out", type=Path, required=True)
    prepare.add_argument("--split", action="append", help="default: train and validation")
    prepare.add_argument("--workers", type=int, help="default: all cores")
    prepare.set_defaults(run=_prepare)

    run = commands.add_parser("run", help="train a recipe; goes on from OUT/last.pt")
    run.add_argument("recipe")
    run.add_argument("--data", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--init", type=Path, help="start from the weights of this checkpoint")
    run.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change one number")
    run.add_argument(
        "--parallel",
        choices=("towers", "data", "none"),
        default="none",
        help="under torchrun: a tower a process, or a part of each batch",
    )
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    run.set_defaults(run=_run)

    features = commands.add_parser("features", help="stage two's input: pool5 of random views")
    features.add_argument("--init", type=Path, required=True, help="checkpoint of the convolutions")
    features.add_argument("--data", type=Path, required=True)
    features.add_argument("--out", type=Path, required=True)
    features.add_argument("--crops", type=int, default=1, help="crops of each training image")
    features.add_argument("--windows", type=int, default=2, help="windows of conv5 of each, as dense sees it")
    features.add_argument(
        "--alternate", action="store_true", help="crops of even images, windows of odd ones: half the time"
    )
    features.set_defaults(run=_features)

    classifier = commands.add_parser("classifier", help="stage two: fc6-8 on cached features")
    classifier.add_argument("--features", type=Path, required=True)
    classifier.add_argument("--data", type=Path, required=True)
    classifier.add_argument("--out", type=Path, required=True)
    classifier.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change one number"
    )
    classifier.set_defaults(run=_classifier)

    release = commands.add_parser("release", help="both stages to a model repository")
    for name in ("convolutions", "classifier", "features", "data", "card", "repository"):
        release.add_argument(f"--{name}", type=Path, required=True)
    release.add_argument("--bottleneck", action="store_true", help="start the graph at 64 pixels")
    release.set_defaults(run=_release)

    evaluate = commands.add_parser("evaluate", help="a model repository through the server's own engine")
    evaluate.add_argument("--repository", type=Path, required=True)
    evaluate.add_argument("--model", action="append", help="default: every model")
    evaluate.add_argument("--precision", action="append", help="default: int8 and fp32")
    evaluate.add_argument("--data", type=Path, help="a prepared split, data/tiny/validation")
    evaluate.add_argument("--photos", type=Path, help="a folder of photos with labels.tsv")
    evaluate.add_argument("--name", required=True, help="what the card calls this set of images")
    evaluate.add_argument("--out", type=Path, help="also write the class table and the confusion picture")
    evaluate.add_argument("--record", action="store_true", help="write the figures into the model card")
    evaluate.set_defaults(run=_evaluate)

    against = commands.add_parser(
        "compare", help="the served models against the unquantised network, image by image"
    )
    for name in ("repository", "convolutions", "classifier"):
        against.add_argument(f"--{name}", type=Path, required=True)
    against.add_argument("--data", type=Path, required=True, help="a prepared split, data/tiny/validation")
    against.add_argument("--model", action="append", help="default: every model")
    against.add_argument("--precision", default="int8", help="of the served models; default: int8")
    against.set_defaults(run=_compare)
    add_commands(commands)

    weights = commands.add_parser("import", help="public weights to a model repository")
    add_arguments(weights)
    add_finetune_arguments(commands.add_parser("finetune", help="your own classes from a folder of photos"))
    return parser


def _prepare(options: argparse.Namespace) -> None:
    from alexnet_train.data.prepare import prepare

    for split in options.split or ("train", "validation"):
        broken = prepare(options.source, options.out, split, options.workers)
        for line in broken:
            print(f"unreadable, left out: {line}", file=sys.stderr)  # noqa: T201 - the command's own output


def _run(options: argparse.Namespace) -> None:
    from alexnet_train.run.loop import run

    run(
        recipe(options.recipe, options.set),
        options.data,
        options.out,
        options.init,
        options.parallel,
        options.tensorboard,
    )


def _features(options: argparse.Namespace) -> None:
    from alexnet_train.two_stage.features import extract

    extract(
        options.init,
        options.data,
        options.out,
        options.crops,
        options.windows,
        alternate=options.alternate,
    )


def _classifier(options: argparse.Namespace) -> None:
    from alexnet_train.two_stage.classifier import ClassifierConfig, train

    train(options.features, options.data, options.out, changed(ClassifierConfig(), options.set))


def _release(options: argparse.Namespace) -> None:
    from alexnet_train.two_stage.release import release

    release(
        options.convolutions,
        options.classifier,
        options.features,
        options.data,
        options.card,
        options.repository,
        bottleneck=options.bottleneck,
    )


def _evaluate(options: argparse.Namespace) -> None:
    from alexnet_train.data.dataset import open_split
    from alexnet_train.evaluate.repository import evaluate_repository, open_photos

    if (options.data is None) == (options.photos is None):
        raise DatasetError("evaluate takes either --data or --photos")
    split = open_split(options.data) if options.data else open_photos(options.photos)
    for row in evaluate_repository(
        options.repository,
        split,
        options.name,
        models=options.model,
        precisions=options.precision or ("int8", "fp32"),
        out=options.out,
        record=options.record,
    ):
        print(json.dumps(row))  # noqa: T201 - the command's own output


def _compare(options: argparse.Namespace) -> None:
    from alexnet_train.data.dataset import open_split
    from alexnet_train.two_stage.compare import compare

    for row in compare(
        options.repository,
        options.convolutions,
        options.classifier,
        open_split(options.data),
        models=options.model,
        precision=options.precision,
    ):
        print(json.dumps(row), flush=True)  # noqa: T201 - the command's own output
