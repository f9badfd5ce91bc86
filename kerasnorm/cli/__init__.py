"""The command line: thin, and light until a command needs the heavy parts.

Results go to stdout, everything else to stderr. Each error becomes one message and the exit code
of its class (see `kerasnorm.errors`).
"""

import difflib
import io
import logging
import os
import signal
import sys
from typing import NoReturn

import click

from kerasnorm.cli import conversion, doctor, explain, formats, models, speed, studies, training
from kerasnorm.config import RENAMED, SYNONYMS
from kerasnorm.errors import (
    KerasnormError,
    RunFolderError,
    is_out_of_memory,
    layer_failed,
    shortened,
)
from kerasnorm.progress import console_notes
from kerasnorm.signals import SIGNALLED, Interruptions, Terminated
from kerasnorm.user_code import TRUST
from kerasnorm.version import __version__

logger = logging.getLogger(__name__)
RENAMED_OPTIONS = {"linear_rate": "--rate-scaling linear"} | {
    old: f"--{new}" for old, new in RENAMED.items()
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="kerasnorm")
@click.option("--debug", is_flag=True, envvar="KERASNORM_DEBUG", help="Show tracebacks.")
@click.pass_context
def app(context: click.Context, debug: bool) -> None:
    """A normalization lab for Keras 3: train, compare, explain and convert CNNs.

    Example: kerasnorm fit --norm gn --backend torch
    """
    context.ensure_object(dict)["debug"] = debug
    if not {"-q", "--quiet"} & {*sys.argv}:  # click has not parsed the command's options yet
        _warn_of_unknown_variables()


def _warn_of_unknown_variables() -> None:
    """Warns of each KERASNORM_* variable of the environment that nothing reads."""
    known = {"KERASNORM_CACHE", "KERASNORM_DEBUG", TRUST}
    for command in app.commands.values():
        known |= {str(option.envvar) for option in command.params if option.envvar}
    for name in sorted(os.environ):
        if name.startswith("KERASNORM_") and name not in known:
            renamed = (RENAMED | SYNONYMS).get(name.removeprefix("KERASNORM_").lower())
            near = difflib.get_close_matches(name, known, n=1)
            near = [f"KERASNORM_{renamed.upper()}"] if renamed else near
            advice = f" Did you mean {near[0]}?" if near else ""
            logger.warning(f"The environment variable {name} has no meaning here.{advice}")


for module in (training, studies, models, conversion, formats, explain, speed, doctor):
    for command in module.COMMANDS:
        app.add_command(command)


def main() -> NoReturn:
    """Runs the command line and exits with its code.

    Letters that the encoding of stdout lacks are written as escapes, as stderr does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with Interruptions().installed():
        code = _run()
    sys.exit(code)


def _run() -> int:
    """Returns the exit code of the command line, after a message where there is an error."""
    state = {"debug": False}
    try:
        with console_notes():
            code: int = app(standalone_mode=False, obj=state)
        sys.stdout.flush()
        return code
    except click.ClickException as error:
        given = getattr(error, "option_name", "")
        old = given.removeprefix("--").replace("-", "_")
        if new := RENAMED_OPTIONS.get(old):
            error = click.UsageError(f"No such option: {given}. It is {new} now.")
        elif name := SYNONYMS.get(old):
            new = name.replace("_", "-")
            error = click.UsageError(f"No such option: {given}. It is called --{new} here.")
        error.show()
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return SIGNALLED + signal.SIGPIPE
    except (KeyboardInterrupt, click.Abort):
        text, code = "interrupted.", SIGNALLED + signal.SIGINT
    except Terminated:
        text, code = "terminated.", SIGNALLED + signal.SIGTERM
    except Exception as error:
        if state["debug"]:
            raise
        text, code = _message(error)
    click.echo(f"kerasnorm: {shortened(text)}", err=True)
    return code


def _message(error: Exception) -> tuple[str, int]:
    """Returns what to say about an error, and the exit code."""
    if isinstance(error, KerasnormError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        text = f"{error.filename or 'a file'}: {error.strerror or error}"
        return text, RunFolderError.exit_code
    if is_out_of_memory(error):
        return (
            "out of memory. Use a smaller --batch-size, a smaller --image-size, or fewer images "
            f"(--train-size). {shortened(str(error), 200)}"
        ), 1
    if "only support" in str(error) and "NHWC" in str(error):
        return str(found := layer_failed(error)), found.exit_code
    return (
        f"unexpected {type(error).__name__}: {shortened(str(error), 500)}\n"
        "Run `kerasnorm --debug …` for the traceback, and please report it."
    ), 1
