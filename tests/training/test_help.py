"""`alexnet-train --help`: every command and flag is described, and recipes are listed."""

import argparse
from pathlib import Path

import pytest

from alexnet_train.cli import _parser
from alexnet_train.config import ABOUT, RECIPES

(SUBPARSERS,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
COMMANDS = SUBPARSERS.choices


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_described(name):
    command = COMMANDS[name]
    assert command.description
    silent = [action.dest for action in command._actions if not action.help]
    assert not silent
    assert command.format_help()


def test_the_page_says_how_many_images_a_recipe_trains_on() -> None:
    imagenet = 1_281_167
    page = " ".join((Path(__file__).parents[2] / "training/README.md").read_text().split())
    trained = imagenet - RECIPES["2012"].held_out
    assert f"`2012` trains on {trained:,} of ImageNet's {imagenet:,}" in page


@pytest.mark.parametrize("name", ["run", "ablate"])
def test_recipes_are_listed_where_one_is_wanted(name):
    listed = COMMANDS[name].format_help().partition("recipes:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(RECIPES) == list(ABOUT)
    assert max(map(len, listed)) <= 80
