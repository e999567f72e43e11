"""``alexnet-train``: one subcommand for each step from images to a model repository.

A subcommand is a function below: its parameters are the flags, its docstring the help. What it calls is
imported when it runs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TextIO, get_args, get_origin, get_type_hints

from alexnet_train.config import ABOUT
from alexnet_train.finetune.arguments import add_arguments as add_finetune_arguments
from alexnet_train.importers.arguments import add_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns 1, with one line on stderr, for an error that the user can fix.

    A run that a signal ended returns what a process that it killed would: 143 for SIGTERM, 130 for SIGINT.
    """
    options = _parser().parse_args(arguments)
    return _reported(partial(options.run, options))


def _reported(work: Callable[[], int | None]) -> int:
    """The status of ``work``, whose errors are told in one line."""
    try:
        return work() or 0
    except OSError as error:  # a path that is not there, a folder that may not be written
        place = f"{error.filename}: " if error.filename else ""
        _tell(f"{place}{error.strerror or error}")
        return 1
    except (RuntimeError, ValueError) as error:
        if not type(error).__module__.startswith("alexnet_"):
            raise
        _tell(str(error))
        status: int = getattr(error, "status", 1)
        return status


def _tell(error: str) -> None:
    """One line on stderr; of several ranks that end with the same, one tells it."""
    if "RANK" in os.environ:
        from alexnet_train.run.parallel import told_already

        if told_already(error):
            return
    _print(f"alexnet-train: {error}", sys.stderr)


def prepare(source: Path, out: Path, split: list[str], workers: int | None = None) -> None:
    """Convert images to one uint8 memmap of 256x256 pixels; can be resumed.

    Flags:
        source: folder of parquet files, class folders, or the ILSVRC tar files
        out: folder to write
        split: split to convert, may be repeated; default: train and validation
        workers: processes that decode; default: one per core
    """
    from alexnet_train.data.prepare import check_rest, prepare

    splits = split or ["train", "validation"]
    check_rest(source, out, splits)
    for name in splits:
        for line in prepare(source, out, name, workers):
            _print(f"unreadable, left out: {line}", sys.stderr)


def run(
    recipe: str,
    /,
    data: Path,
    out: Path,
    set: list[str],
    init: Path | None = None,
    parallel: Literal["towers", "data", "none"] = "none",
    processes: int = 1,
    tensorboard: bool = False,
) -> int:
    """Train a recipe; continues from OUT/last.pt if it is there.

    Flags:
        recipe: one of those below
        data: folder that prepare wrote
        out: folder for checkpoints and the log
        init: start from the weights of this checkpoint or model repository
        set: FIELD=VALUE: change one number of the recipe, may be repeated
        parallel: of several processes: one tower in each, or a part of each batch
        processes: how many to start here; default: 1, or those that torchrun has started
        tensorboard: also write TensorBoard events
    """
    from alexnet_train.config import recipe_named
    from alexnet_train.run.loop import run

    work = partial(run, recipe_named(recipe, set), data, out, init, parallel, tensorboard)
    if processes == 1:
        work()
        return 0
    from alexnet_train.run.launch import launch

    return launch(processes, parallel, partial(_reported, work))


def keep(checkpoint: Path, /, out: Path) -> None:
    """Write a checkpoint small enough for git; as OUT/last.pt, a run continues from it.

    Flags:
        checkpoint: checkpoint of run
        out: file to write
    """
    from alexnet_train.checkpoint import keep

    keep(checkpoint, out)


def features(
    init: Path, data: Path, out: Path, crops: int = 1, windows: int = 2, alternate: bool = False
) -> None:
    """Cache the input of stage two: pool5 of random views.

    Flags:
        init: checkpoint of the convolutions, or a model repository
        data: folder that prepare wrote
        out: folder to write
        crops: crops of each training image; default: 1
        windows: windows of conv5 of each image, as the dense view sees it; default: 2
        alternate: crops of even images, windows of odd ones: half the time
    """
    from alexnet_train.two_stage.features import extract

    extract(init, data, out, crops, windows, alternate=alternate)


def classifier(features: Path, data: Path, out: Path, set: list[str]) -> None:
    """Train stage two: fc6 to fc8 on cached features.

    Flags:
        features: folder that features wrote
        data: folder that prepare wrote
        out: folder for checkpoints and the log
        set: FIELD=VALUE: change one number, may be repeated
    """
    from alexnet_train.config import changed
    from alexnet_train.two_stage.classifier import ClassifierConfig, train

    train(features, data, out, changed(ClassifierConfig(), set))


def release(
    convolutions: Path,
    classifier: Path,
    features: Path,
    data: Path,
    card: Path,
    repository: Path,
    name: str = "alexnet-tiny-imagenet",
    bottleneck: bool = False,
) -> None:
    """Join both stages and write a model repository.

    Flags:
        convolutions: checkpoint of stage one
        classifier: checkpoint of stage two
        features: folder that features wrote
        data: folder that prepare wrote
        card: JSON file with the model card's own entries
        repository: model repository to write
        name: name of the weights, on the card and in /models; default: alexnet-tiny-imagenet
        bottleneck: scale photos down to 64 pixels first, as the training images were
    """
    from alexnet_train.two_stage.release import release

    release(convolutions, classifier, features, data, card, repository, name=name, bottleneck=bottleneck)


def evaluate(
    repository: Path,
    name: str,
    model: list[str],
    precision: list[str],
    data: Path | None = None,
    photos: Path | None = None,
    out: Path | None = None,
    record: bool = False,
) -> None:
    """Measure a model repository through the server's own engine.

    Flags:
        repository: model repository to measure
        name: what the card calls this set of images
        model: model to measure, may be repeated; default: all
        precision: precision to measure, may be repeated; default: int8 and fp32, if the repository has them
        data: a prepared split, such as data/tiny/validation
        photos: a folder of photos with labels.tsv
        out: folder for the table of classes and the confusion matrix
        record: write the figures into the model card
    """
    from alexnet_train.data.dataset import DatasetError, open_split
    from alexnet_train.evaluate.repository import evaluate_repository, open_photos

    if data is not None and photos is None:
        split = open_split(data)
    elif photos is not None and data is None:
        split = open_photos(photos)
    else:
        raise DatasetError("evaluate takes either --data or --photos")
    rows = evaluate_repository(
        repository,
        split,
        name,
        models=model or None,
        precisions=precision or None,
        out=out,
        record=record,
    )
    _print_rows(rows)


def compare(
    repository: Path,
    convolutions: Path,
    classifier: Path,
    data: Path,
    model: list[str],
    precision: str = "int8",
) -> None:
    """Compare the served models with the unquantised network, image by image.

    Flags:
        repository: model repository to compare
        convolutions: checkpoint of stage one
        classifier: checkpoint of stage two
        data: a prepared split, such as data/tiny/validation
        model: model to compare, may be repeated; default: all
        precision: precision of the served models; default: int8
    """
    from alexnet_train.data.dataset import open_split
    from alexnet_train.two_stage.compare import compare

    split = open_split(data)
    rows = compare(repository, convolutions, classifier, split, models=model or None, precision=precision)
    _print_rows(rows)


def export(
    *checkpoints: Path,
    repository: Path,
    name: str = "alexnet",
    card: Path | None = None,
    bottleneck: bool = False,
) -> None:
    """Export checkpoints of run to a model repository; several are averaged.

    Flags:
        checkpoints: checkpoints of run
        repository: model repository to write
        name: name of the weights, on the card and in /models; default: alexnet
        card: JSON file with the model card's own entries
        bottleneck: scale photos down to the training images' size first
    """
    from alexnet_train.export.checkpoints import export_checkpoints

    export_checkpoints(checkpoints, repository, name=name, card=card, bottleneck=bottleneck)


def checkpoints(
    *checkpoints: Path,
    data: Path,
    split: str = "validation",
    classes: int = 0,
    views: Literal["center", "ten"] = "ten",
) -> None:
    """Measure the error of checkpoints, each alone and averaged.

    Flags:
        checkpoints: checkpoints of run
        data: folder that prepare wrote
        split: split to measure on; default: validation
        classes: only the first so many classes, as in training; default: 0, all of them
        views: views of each image; default: ten
    """
    from alexnet_train.data.dataset import first_classes, open_split
    from alexnet_train.evaluate.checkpoints import evaluate_checkpoints
    from alexnet_train.paper.published import results_table

    images = first_classes(open_split(data / split), classes)
    _print(results_table(evaluate_checkpoints(checkpoints, images, views == "ten")))


def figures(checkpoint: Path, data: Path, out: Path, classes: int = 0) -> None:
    """Draw Figures 3 and 4 of the paper, and the curves of a run.

    Flags:
        checkpoint: checkpoint of run
        data: folder that prepare wrote
        out: folder to write
        classes: only the first so many classes, as in training; default: 0, all of them
    """
    from alexnet_train.data.dataset import first_classes, open_split
    from alexnet_train.paper.figures import draw_all

    test, training = (first_classes(open_split(data / s), classes) for s in ("validation", "train"))
    for path in draw_all(checkpoint, test, training, out):
        _print(str(path))


def figure1(data: Path, out: Path, set: list[str]) -> None:
    """Draw Figure 1 of the paper: ReLU against tanh.

    Flags:
        data: folder that prepare wrote
        out: folder to write
        set: FIELD=VALUE: change one number, may be repeated
    """
    from alexnet_train.config import changed
    from alexnet_train.data.dataset import open_split
    from alexnet_train.paper.figure1 import Figure1, figure1

    for unit, result in figure1(open_split(data / "train"), out, changed(Figure1(), set)).items():
        _print(f"{unit}: {result['epochs']:.2f} epochs to 25 %, rate {result['rate']}")


def ablate(recipe: str, /, data: Path, out: Path, set: list[str], seeds: int = 3) -> None:
    """Run the paper's ablations: one run for each row and seed.

    Flags:
        recipe: one of those below
        data: folder that prepare wrote
        out: folder for the runs and the table
        set: FIELD=VALUE: change one number of the recipe, may be repeated
        seeds: runs of each row; default: 3
    """
    from alexnet_train.config import recipe_named
    from alexnet_train.paper.ablate import ablate

    _print(ablate(recipe_named(recipe, set), data, out, seeds).read_text().rstrip())


COMMANDS = (
    prepare, run, keep, features, classifier, release, evaluate, compare,
    export, checkpoints, figures, figure1, ablate,
)  # fmt: skip


def _print_rows(rows: Iterable[object]) -> None:
    for row in rows:
        _print(json.dumps(row))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("alexnet-train", description="Train AlexNet and prepare it for serving.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in COMMANDS:
        summary = (function.__doc__ or "").partition("\n")[0]
        own = _command(commands, function.__name__, summary)
        if "recipe" in inspect.signature(function).parameters:
            own.formatter_class = argparse.RawDescriptionHelpFormatter
            own.epilog = "recipes:\n" + "\n".join(f"  {name:24}{told}" for name, told in ABOUT.items())
        _add_arguments(own, function)
    add_finetune_arguments(_command(commands, "finetune", "Learn your own classes from a folder of photos."))
    add_arguments(_command(commands, "import", "Convert public weights into a model repository."))
    return parser


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    return parser


def _add_arguments(parser: argparse.ArgumentParser, function: Callable[..., int | None]) -> None:
    """A flag for each parameter of ``function``, and ``run``, which calls it.

    Parameters before ``/`` and ``*arguments`` are positional, bools are switches, lists may be repeated.
    """
    hints = get_type_hints(function)
    told = dict(re.findall(r"^        (\w+): (.+)$", function.__doc__ or "", re.MULTILINE))
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
    several = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    for parameter in parameters:
        name, options = parameter.name, _options(parameter, hints[parameter.name])
        if name in positional:
            options = {"type": options["type"]} | ({"nargs": "+"} if name in several else {})
        parser.add_argument(name if name in positional else f"--{name}", help=told.get(name), **options)

    def call(options: argparse.Namespace) -> int | None:
        given = {parameter.name: getattr(options, parameter.name) for parameter in parameters}
        first = [given.pop(name) for name in positional]
        return function(*(first[0] if several else first), **given)

    parser.set_defaults(run=call)


def _options(parameter: inspect.Parameter, hint: Any) -> dict[str, Any]:
    """What argparse is to know of a flag whose parameter is annotated with ``hint``."""
    kind, *more = [one for one in get_args(hint) or (hint,) if one is not NoneType]
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(hint) is list:
        return {"action": "append", "type": kind, "default": []}
    required = parameter.default is parameter.empty
    options = {"required": required, "default": None if required else parameter.default}
    if get_origin(hint) is Literal:
        return options | {"choices": (kind, *more)}
    return options | {"type": kind}


def _print(line: str, file: TextIO | None = None) -> None:
    print(line, file=file, flush=True)
