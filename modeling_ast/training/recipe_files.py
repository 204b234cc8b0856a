"""Recipes: YAML files that set many arguments of a fine-tuning at once."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ..errors import one_line
from .arguments import KINDS

RECIPES = Path(__file__).with_name("recipes")
# Types of arguments that take one value, no list and no mapping, also in the forms that
# HfArgumentParser leaves. Arguments of TrainingArguments that take a mapping have the type str.
OF_ONE_VALUE = (int, float, bool, "int", "float", "bool", "int | None", "float | None")


def recipe_names() -> list[str]:
    """The names of the recipes that the package has."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: The path of a file, or the name of a recipe of the package: "esc50", "esc50.yaml" or
            "recipes/esc50.yaml".
    Raises:
        ValueError: There is neither such a file nor such a recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.stem in recipe_names() and path.parent.name in ("", RECIPES.name):
        return RECIPES / f"{path.stem}.yaml"
    raise ValueError(
        f"there is no recipe {name!r}; give the path of a YAML file, or one of these names: "
        f"{', '.join(recipe_names())}"
    )


def read_recipe(name: str) -> dict[str, Any]:
    """The arguments in a recipe.

    Args:
        name: See `find_recipe`.
    Returns:
        Each single value as a string, because YAML reads 1e-3 as a string; the command-line parser
        converts it to its type. Lists, mappings and null are not changed.
    Raises:
        ValueError: There is no such recipe, it cannot be read, or it has unknown arguments.
    """
    path = find_recipe(name)
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the recipe {path}: {one_line(str(error))}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe {path} has no lines such as 'learning_rate: 1e-5'; add some")
    known = {entry.name: entry for kind in KINDS for entry in fields(kind) if entry.init}
    if unknown := sorted(map(str, recipe.keys() - known.keys())):
        raise ValueError(f"the recipe {path} has unknown arguments {unknown}; see --help for all")
    for name, value in recipe.items():
        if value is None and known[name].default is not None:
            raise ValueError(
                f"the recipe {path} has {name}: null, but it must have a value; leave the line out "
                f"to use the default"
            )
        if isinstance(value, list | dict) and known[name].type in OF_ONE_VALUE:
            raise ValueError(f"the recipe {path} has {name}: {value!r}, but it must be one value")
    return {
        name: value if value is None or isinstance(value, list | dict) else str(value)
        for name, value in recipe.items()
    }


__all__ = ["find_recipe", "read_recipe", "recipe_names"]
