"""Recipes, config files and overrides become one resolved config.

A recipe is a TOML file beside this one: sections as in the config, and under `norms` what serves
one norm and not the others.
"""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from kerasnorm.config import RECIPES, Config, build_config, flatten, unknown
from kerasnorm.errors import ConfigError


def _recipe_document(name: str) -> dict[str, Any]:
    if name not in RECIPES:
        raise unknown("recipe", str(name), RECIPES)
    path = resources.files(__name__) / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def published(recipe: str, data: str) -> dict[str, Any]:
    """Returns what others published for a recipe on a data set, as in `published.toml`.

    Returns:
        `source`, `epochs`, and a dict a norm of its measures and fields; empty if there is none.
    """
    path = resources.files(__name__) / "published.toml"
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = document.get(recipe, {}).get(data, {})
    return found


def resolve(
    overrides: Mapping[str, Any] | None = None, document: Mapping[str, Any] | None = None
) -> Config:
    """Returns the full config: recipe, then its values for the norm, then file, then overrides.

    What a file or an override says stays as it is, whatever the norm: a run's `config.toml` holds
    every field, so that with it `norm` changes the norm alone.

    Args:
        overrides: Field name → value, without sections; `recipe` may be among them.
        document: What a config file holds: `recipe` and the sections, each optional.

    Raises:
        ConfigError: A name is unknown or a value is out of range.
    """
    chosen, document = dict(overrides or {}), document or {}
    written = document.get("recipe", chosen.get("recipe", "best"))
    recipe = chosen.pop("recipe", written)
    if recipe != written:
        raise ConfigError(
            f"recipe: the config file is of recipe={written!r}, whose values it holds. "
            f"Received: recipe={recipe!r}. Leave one of the two out."
        )
    given = flatten(document) | chosen
    plan = _recipe_document(recipe)
    values = flatten({k: v for k, v in plan.items() if k != "norms"})
    norm = given.get("norm", values.get("norm", "gn"))
    if isinstance(norm, str):
        values |= flatten(plan.get("norms", {}).get(norm, {}))
    if given.get("optimizer") == "adam":
        values["weight_decay"] = 0.0  # it has none; the recipe's is for its own optimizer
    if "group_size" in given:
        values["groups"] = 0  # else it would have no effect
    if "group_size" in chosen and "groups" not in chosen:
        given["groups"] = 0  # nor under a file's groups
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
