"""Recipes, config files and overrides become one resolved config.

A recipe is a TOML file beside this one: sections as in the config, and under `norms` what serves
one norm and not the others.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from kerasnorm.config import RECIPES, Config, build_config, flatten, unknown
from kerasnorm.errors import ConfigError


@cache
def _recipe_document(name: str) -> dict[str, Any]:
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    path = resources.files(__name__) / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def resolve(
    overrides: Mapping[str, Any] | None = None, document: Mapping[str, Any] | None = None
) -> Config:
    """Returns the full config: recipe, then its values for the norm, then file, then overrides.

    Args:
        overrides: Field name → value, without sections; `recipe` may be among them.
        document: What a config file holds: `recipe` and the sections, each optional.

    Raises:
        ConfigError: A name is unknown or a value is out of range.
    """
    given = dict(overrides or {})
    document = document or {}
    recipe = given.pop("recipe", document.get("recipe", "best"))
    given = flatten(document) | given
    plan = _recipe_document(recipe)
    values = flatten({k: v for k, v in plan.items() if k != "norms"})
    norm = given.get("norm", values.get("norm", "gn"))
    if isinstance(norm, str):
        values |= flatten(plan.get("norms", {}).get(norm, {}))
    return build_config(recipe, values | given)


def read_toml(path: Path) -> dict[str, Any]:
    """Returns what a TOML config file holds.

    Raises:
        ConfigError: The file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the config {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {path} is not valid TOML: {error}.") from None


def to_toml(config: Config) -> str:
    """Returns the config as TOML; `resolve(document=...)` of it gives the same config."""
    import tomli_w

    return tomli_w.dumps(config.to_dict())
