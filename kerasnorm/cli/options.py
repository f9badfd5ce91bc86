"""Options made from the config's own table, and those that several commands share."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm.config import RECIPES, SETTINGS, Setting, read_toml, resolve
from kerasnorm.files import plain
from kerasnorm.progress import LOGGER

if TYPE_CHECKING:
    from kerasnorm.tables import Table

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
TITLES = {"model": "Model", "data": "Data", "train": "Training"}


class NumberList(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between: 16,16,12."""

    name = "N,N,…"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Returns the numbers in a text such as "16,16,12"."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(int(item) for item in value.split(","))
        except ValueError:
            self.fail(f"expected whole numbers with commas between. Received: {value!r}")


class ConfigCommand(click.Command):
    """A command whose help lists the config's fields by section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, one table a section."""
        tables: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                setting = SETTINGS.get(param.name or "")
                title = TITLES[setting.section] if setting else "Options"
                tables.setdefault(title, []).append(record)
        for title in ("Options", *TITLES.values()):
            if title in tables:
                with formatter.section(title):
                    formatter.write_dl(tables[title])


def _option(name: str, setting: Setting) -> Decorator:
    field = setting.field
    flag = "--" + name.replace("_", "-")
    declaration = f"{flag}/--no-{flag[2:]}" if isinstance(field.default, bool) else flag
    kind: Any = None
    if field.metadata["choices"]:
        kind = click.Choice(field.metadata["choices"])
    elif isinstance(field.default, tuple):
        kind = NumberList()
    elif not isinstance(field.default, bool):
        kind = type(field.default)
    return click.option(
        declaration,
        name,
        type=kind,
        default=None,
        envvar=f"KERASNORM_{name.upper()}",
        help=field.metadata["help"],
    )


def config_options(*sections: str, without: Sequence[str] = ()) -> Decorator:
    """Returns a decorator that adds an option for every field of these config sections.

    Args:
        *sections: Of the config.
        without: Fields that get no option.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, setting in reversed(SETTINGS.items()):
            if setting.section in sections and name not in without:
                function = _option(name, setting)(function)
        recipe = click.option(
            "--recipe",
            type=click.Choice(RECIPES),
            envvar="KERASNORM_RECIPE",
            help="Named set of values for all fields; others given here come on top.",
        )
        return recipe(function)

    return decorate


def only_errors(is_wanted: bool) -> None:
    """Keeps notes and warnings off the console, if wanted, until the command ends."""
    if is_wanted:
        logging.getLogger(LOGGER).setLevel(logging.ERROR)


def _quiet(context: click.Context, param: click.Parameter, value: bool) -> bool:
    only_errors(value)
    return value


config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="KERASNORM_CONFIG",
    help="TOML file with any of the fields, such as a run's config.toml.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
quiet = click.option(
    "--quiet", "-q", is_flag=True, callback=_quiet, help="No progress, only errors."
)
data_option = click.option(
    "--data",
    envvar="KERASNORM_DATA",
    help=SETTINGS["data"].field.metadata["help"] + " By default the run's own.",
)
backend_option = _option("backend", SETTINGS["backend"])
norm_option = _option("norm", SETTINGS["norm"])
device_option = _option("device", SETTINGS["device"])


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, by flag or environment."""
    return {name: value for name, value in options.items() if value is not None}


def is_typed(name: str) -> bool:
    """Says whether an option of the running command stands on its command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def resolve_options(options: dict[str, Any], file: Path | None) -> Any:
    """Returns the full config of a command's options and its config file."""
    return resolve(given(options), read_toml(file) if file else None)


def print_table(grid: "Table") -> None:
    """Prints a table: ruled on a terminal, as plain text elsewhere."""
    from rich.console import Console

    from kerasnorm import tables

    console = Console()
    if console.is_terminal:
        console.print(tables.to_rich(grid))
    else:
        click.echo(tables.to_text(grid), nl=False)


def print_json(document: Any) -> None:
    """Prints one JSON document on stdout; numbers that are not finite become null."""
    click.echo(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))
