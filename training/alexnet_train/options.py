"""What every subcommand does with its options: recipes by name, and single numbers changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from alexnet_train.data.dataset import DatasetError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from alexnet_train.config import Config

C = TypeVar("C", bound="DataclassInstance")


def recipe(name: str, changes: Sequence[str]) -> Config:
    """The recipe ``name`` with ``FIELD=VALUE`` applied.

    Raises:
        DatasetError: no such recipe, or a change that it cannot take.
    """
    from alexnet_train.config import RECIPES

    if name not in RECIPES:
        raise DatasetError(f"unknown recipe {name!r}; there are {', '.join(RECIPES)}")
    return changed(RECIPES[name], changes)


def changed(config: C, changes: Sequence[str]) -> C:
    """A copy of the frozen dataclass ``config`` with ``FIELD=VALUE`` applied, values typed as they were."""
    values: dict[str, object] = {}
    for change in changes:
        name, _, text = change.partition("=")
        if not hasattr(config, name):
            raise DatasetError(f"--set {change}: no field {name!r}")
        kind = type(getattr(config, name))
        if kind not in (bool, int, float, str):
            raise DatasetError(f"--set {change}: {name} is no single number; choose another recipe")
        try:
            values[name] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
        except ValueError as error:
            raise DatasetError(f"--set {change}: {name} takes {kind.__name__} values") from error
    return dataclasses.replace(config, **values)
