"""Options that are made from the table of config fields, and those that several commands share."""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kerasnorm import user_code
from kerasnorm.config import (
    DEFAULT_RECIPE,
    RECIPES,
    SETTINGS,
    Config,
    defaults,
    read_toml,
    resolve,
)
from kerasnorm.errors import ConfigError, RunFolderError
from kerasnorm.files import plain
from kerasnorm.norms import NORMS, is_foreign
from kerasnorm.progress import LOGGER
from kerasnorm.study.intervals import MARGIN

if TYPE_CHECKING:
    from kerasnorm.tables import Table

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
TITLES = {"model": "Model", "data": "Data", "train": "Training"}
PATH = click.Path(path_type=Path)


class NumberList(click.ParamType[tuple[Any, ...]]):
    """Numbers separated by commas, by default whole ones: 16,16,12."""

    name = "N,N,…"

    def __init__(self, kind: type[int | float] = int) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, ...]:
        """Returns the numbers in a text such as "16,16,12"."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(map(self.kind, value.split(",")))
        except ValueError:
            what = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"expected {what} separated by commas. Received: {value!r}")


class ConfigCommand(click.Command):
    """A command whose help lists the config's fields by section, with the recipe's defaults."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments; several values of an option that takes one are an error."""
        for param in self.params:
            if isinstance(param, click.Option) and not param.multiple and not param.is_flag:
                values = _values(param, args)
                if len(values) > 1:
                    raise click.UsageError(f"{param.opts[0]}: given twice.{_advice(param, values)}")
        try:
            return super().parse_args(ctx, list(args))
        except click.BadParameter as error:
            values = _values(error.param, args) if error.param else []
            if not any("," in value for value in values):
                raise
            values = [part for value in values for part in value.split(",")]
            advice = _advice(error.param, values)
            raise click.BadParameter(error.message + advice, ctx, error.param) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, one table per section."""
        recipe = str(ctx.params.get("recipe") or DEFAULT_RECIPE)
        known = defaults(recipe)
        tables: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                setting = SETTINGS.get(param.name or "")
                title = TITLES[setting.section] if setting else "Options"
                default = known.get(param.name or "") if setting else None
                text = f"{record[1]}  [{default}]" if default else record[1]
                tables.setdefault(title, []).append((record[0], text))
        for title in ("Options", *TITLES.values()):
            if title in tables:
                heading = f"{title}  [default of the recipe {recipe}]"
                with formatter.section(heading if title != "Options" else title):
                    formatter.write_dl(tables[title])


def _values(param: click.Parameter, words: Sequence[str]) -> list[str]:
    """Returns the values that an option is given in the words of a command line."""
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in param.opts:
            found.append(value if equals else following)
    return found


def _advice(param: click.Parameter | None, values: Sequence[str]) -> str:
    """Returns what to do with several values of an option that takes one."""
    if isinstance(param, click.Option) and param.multiple:
        return " Repeat it: " + " ".join(f"{param.opts[0]} {value}" for value in values)
    if param is not None and param.name == "seeds":
        return f" It takes the number of seeds: --seeds {len(values)}"
    if param is None or param.name not in SETTINGS:
        return " It takes one value."
    if param.name in ("norm", "backend"):
        repeated = " ".join(f"{param.opts[0]} {value}" for value in values)
        return f" To compare several: kerasnorm compare {repeated}"
    if param.name == "seed":
        return f" To train several: kerasnorm compare --seeds {len(values)}"
    return f" To compare several: kerasnorm compare --vary {param.name}={','.join(values)}"


class OutPath(click.Path):
    """Place of an output, refused before anything is computed where it cannot be written.

    The suffix is that of the file that is written, such as ".png"; that of a folder, which is made
    if it is missing, is "". With `is_new`, what exists already is refused.
    """

    def __init__(self, suffix: str = "", *, is_new: bool = False) -> None:
        super().__init__(file_okay=bool(suffix), dir_okay=not suffix, path_type=Path)
        self.suffix, self.is_new = suffix, is_new

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """Returns the path."""
        path = Path(super().convert(value, param, ctx))  # type: ignore[arg-type]
        if self.suffix and path.suffix != self.suffix:
            raise ConfigError(f"--out: expected a {self.suffix} file. Received: {path}")
        if self.is_new and path.exists():
            raise RunFolderError(f"{path} exists already. Choose another --out.")
        folder = path if self.dir_okay else path.parent
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        reason = "" if os.access(nearest, os.W_OK) else "may not be written to"
        if reason := reason if nearest.is_dir() else "is a file, where a folder is needed":
            raise RunFolderError(f"Cannot write {path}: {nearest} {reason}. Choose another --out.")
        return path


OUT_FOLDER, OUT_KERAS, OUT_PNG, OUT_HTML = map(OutPath, ("", ".keras", ".png", ".html"))


class Choice(click.Choice[str]):
    """A choice that knows by which names other tools call what it offers."""

    def __init__(self, choices: Sequence[str], synonyms: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.synonyms = synonyms

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Returns the choice; the error for a synonym names it."""
        if known := self.synonyms.get(str(value).lower().replace("_", "-")):
            self.fail(f"{value!r} is called {known!r} here.", param, ctx)
        return super().convert(value, param, ctx)


class NormName(click.Choice[str]):
    """A norm of this package, keep, or a layer in the user's code."""

    name = "norm"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Returns the name of the norm; a name of the user's code is checked when it is used."""
        if is_foreign(str(value)):
            return str(value)
        if str(value).endswith(".py"):
            self.fail(f"expected the name of a norm in it too: {value}:MyNorm", param, ctx)
        return super().convert(value, param, ctx)


def repeatable(name: str, text: str, kind: Any = None) -> Decorator:
    """Returns a decorator that adds an option which may be given several times."""
    return click.option(f"--{name}", f"{name}s", multiple=True, type=kind, help=text)


def count(flag: str, default: int, text: str, *, least: int = 1) -> Decorator:
    """Returns a decorator that adds an option for a whole number of at least `least`."""
    return click.option(flag, default=default, type=click.IntRange(least), help=text)


def option(name: str) -> Decorator:
    """Returns a decorator that adds the option of a config field."""
    field = SETTINGS[name].field
    flag = "--" + name.replace("_", "-")
    declaration = f"{flag}/--no-{flag[2:]}" if isinstance(field.default, bool) else flag
    is_repeatable = isinstance(field.default, tuple) and bool(field.metadata["choices"])
    kind: Any = None
    if name == "norm":
        kind = NormName(tuple(NORMS))
    elif field.metadata["choices"]:
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
        multiple=is_repeatable,
        callback=(lambda context, param, values: values or None) if is_repeatable else None,
        envvar=f"KERASNORM_{name.upper()}",
        help=field.metadata["help"],
    )


def config_options(*sections: str, without: Sequence[str] = ()) -> Decorator:
    """Returns a decorator that adds an option for every field of these config sections.

    Fields in `without` get none.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, setting in reversed(SETTINGS.items()):
            if setting.section in sections and name not in without:
                function = option(name)(function)
        recipe = click.option(
            "--recipe",
            type=click.Choice(RECIPES),
            is_eager=True,  # so that --help shows its values
            envvar="KERASNORM_RECIPE",
            help="Named set of values for all fields; the other options override it.",
        )
        return recipe(function)

    return decorate


def only_errors(is_wanted: bool) -> None:
    """Keeps notes and warnings off the console until the command ends, if wanted."""
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
    help="TOML file with values for any fields, such as a run's config.toml.",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the results as one JSON document."
)
margin_option = click.option(
    "--margin",
    default=100 * MARGIN,
    type=click.FloatRange(0),
    metavar="POINTS",
    help="Largest difference in accuracy, in percentage points, that does not matter to you.",
)
quiet = click.option(
    "--quiet", "-q", is_flag=True, callback=_quiet, help="Print errors and results only."
)
data_option = click.option(
    "--data",
    envvar="KERASNORM_DATA",
    help=SETTINGS["data"].field.metadata["help"] + " By default that of the run.",
)
backend_option = option("backend")
norm_option = option("norm")
device_option = option("device")


BEST = (
    "Of a study, take the best seed of what has the highest mean over its seeds: of validation "
    "accuracy where all runs have it, else of test accuracy."
)


def run_of(target: Path, best: bool) -> Path:
    """Returns the path of a run or model that a command works on: with --best, of a study.

    Raises:
        ConfigError: The target is a study and `best` is false, or the other way round.
        CorruptFileError: The study has no finished run.
    """
    from kerasnorm.study import folder

    is_study = folder.is_study(target)
    if is_study and not best:
        raise ConfigError(
            f"{target} is a study: add --best for its best run, or name one of {target}/runs."
        )
    if best and not is_study:
        what = str(target) if target.exists() else f"{target}, which does not exist"
        raise ConfigError(f"--best: expected the folder of a study. Received: {what}")
    if not is_study:
        return target
    from kerasnorm.study.study import best_run

    return best_run(target).path


trust_option = click.option(
    "--trust",
    multiple=True,
    metavar="MODULE",
    expose_value=False,
    callback=lambda context, param, value: user_code.trust(*value),
    help="Module, or .py file, whose layers a model may hold: its code is run; repeatable.",
)


def target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument `target`, the path of a run or model; with --best, of a study's run."""

    def find(context: click.Context, param: click.Parameter, value: Path) -> Path:
        return run_of(value, bool(context.params.pop("best")))

    flag = click.option("--best", is_flag=True, is_eager=True, help=BEST)
    path = click.argument("target", metavar="RUN-MODEL-OR-STUDY", type=PATH, callback=find)
    return path(flag(trust_option(function)))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that were given, by flag or by environment variable."""
    return {name: value for name, value in options.items() if value is not None}


def typed_flag(*names: str) -> str:
    """Returns the flag of the first of some options that was given on the command line, or ""."""
    options = click.get_current_context().command.params
    typed = (one.opts[0] for one in options if one.name in names and is_typed(one.name))
    return next(typed, "")


def is_typed(name: str) -> bool:
    """Returns whether an option of the running command was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def resolve_options(options: dict[str, Any], file: Path | None) -> Config:
    """Returns the full config that a command's options and its config file make."""
    return resolve(given(options), read_toml(file) if file else None)


def show(as_json: bool, document: Any, *parts: "str | Table") -> None:
    """Prints results: one JSON document if asked for, otherwise texts and tables."""
    if as_json:
        print_json(document)
        return
    for part in parts:
        if isinstance(part, str):
            click.echo(part)
        else:
            print_table(part)


def print_table(table: "Table") -> None:
    """Prints a table: with rules on a terminal, as plain text elsewhere."""
    from rich.console import Console

    from kerasnorm import tables

    console = Console()
    if console.is_terminal:
        console.print(tables.to_rich(table, console.width))
    else:
        click.echo(tables.to_text(table), nl=False)


def print_json(document: Any) -> None:
    """Prints one JSON document to stdout; numbers that are not finite become null."""
    document = plain(document)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # what stdout cannot hold is escaped, as JSON does
        text = json.dumps(document, indent=2, allow_nan=False)
    click.echo(text)
