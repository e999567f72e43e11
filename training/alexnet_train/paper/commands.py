"""The paper's figures and tables, from what was trained: the subcommands that the reproduction needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from alexnet_train.options import changed, recipe


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The paper's figures and tables, from what was trained."""
    export = commands.add_parser("export", help="checkpoints of run to a model repository; several: averaged")
    export.add_argument("checkpoints", type=Path, nargs="+")
    export.add_argument("--repository", type=Path, required=True)
    export.add_argument("--name", default="alexnet", help="of the weights, on the card and in /models")
    export.add_argument("--card", type=Path, help="JSON with the model card's own entries")
    export.add_argument(
        "--bottleneck", action="store_true", help="photos pass through the training images' size"
    )
    export.set_defaults(run=_export)

    evaluate = commands.add_parser("checkpoints", help="error of checkpoints, each alone and averaged")
    evaluate.add_argument("checkpoints", type=Path, nargs="+")
    evaluate.add_argument("--data", type=Path, required=True)
    evaluate.add_argument("--split", default="validation")
    evaluate.add_argument("--classes", type=int, default=0, help="the first so many only, as in training")
    evaluate.add_argument("--views", choices=("center", "ten"), default="ten")
    evaluate.set_defaults(run=_checkpoints)

    figures = commands.add_parser("figures", help="Figures 3 and 4 and the curves of a run")
    figures.add_argument("--checkpoint", type=Path, required=True)
    figures.add_argument("--data", type=Path, required=True)
    figures.add_argument("--out", type=Path, required=True)
    figures.add_argument("--classes", type=int, default=0, help="the first so many only, as in training")
    figures.set_defaults(run=_figures)

    figure1 = commands.add_parser("figure1", help="Figure 1: ReLU against tanh")
    figure1.add_argument("--data", type=Path, required=True)
    figure1.add_argument("--out", type=Path, required=True)
    figure1.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    figure1.set_defaults(run=_figure1)

    ablate = commands.add_parser("ablate", help="the paper's ablations, a run a row and seed")
    ablate.add_argument("recipe")
    ablate.add_argument("--data", type=Path, required=True)
    ablate.add_argument("--out", type=Path, required=True)
    ablate.add_argument("--seeds", type=int, default=3)
    ablate.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    ablate.set_defaults(run=_ablate)


def _export(options: argparse.Namespace) -> None:
    from alexnet_train.export.checkpoints import export_checkpoints

    export_checkpoints(
        options.checkpoints,
        options.repository,
        name=options.name,
        card=options.card,
        bottleneck=options.bottleneck,
    )


def _checkpoints(options: argparse.Namespace) -> None:
    from alexnet_train.data.dataset import first_classes, open_split
    from alexnet_train.evaluate.checkpoints import evaluate_checkpoints
    from alexnet_train.paper.published import results_table

    split = first_classes(open_split(options.data / options.split), options.classes)
    results = evaluate_checkpoints(options.checkpoints, split, options.views == "ten")
    print(results_table(results))  # noqa: T201 - the command's own output


def _figures(options: argparse.Namespace) -> None:
    from alexnet_train.data.dataset import first_classes, open_split
    from alexnet_train.paper.figures import draw_all

    test, training = (
        first_classes(open_split(options.data / split), options.classes) for split in ("validation", "train")
    )
    for path in draw_all(options.checkpoint, test, training, options.out):
        print(path)  # noqa: T201 - the command's own output


def _figure1(options: argparse.Namespace) -> None:
    from alexnet_train.data.dataset import open_split
    from alexnet_train.paper.figure1 import Figure1, figure1

    results = figure1(open_split(options.data / "train"), options.out, changed(Figure1(), options.set))
    for unit, result in results.items():
        print(f"{unit}: {result['epochs']:.2f} epochs to 25 %, rate {result['rate']}")  # noqa: T201


def _ablate(options: argparse.Namespace) -> None:
    from alexnet_train.paper.ablate import ablate

    table = ablate(recipe(options.recipe, options.set), options.data, options.out, options.seeds)
    print(table.read_text(), end="")  # noqa: T201 - the command's own output
