"""The command line: thin, and light until a command needs the heavy parts.

Results go to stdout, everything else to stderr; each error becomes one message and the exit code
of its class (see `kerasnorm.errors`).
"""

import signal
import sys
from typing import NoReturn

import click

from kerasnorm import __version__
from kerasnorm.cli import explain, formats, models, speed, studies, surroundings, training
from kerasnorm.config import RENAMED
from kerasnorm.errors import KerasnormError, RunFolderError
from kerasnorm.progress import console_notes
from kerasnorm.training.signals import INTERRUPTIONS, SIGNALLED, Terminated


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kerasnorm")
@click.option("--debug", is_flag=True, envvar="KERASNORM_DEBUG", help="Show tracebacks.")
@click.pass_context
def app(context: click.Context, debug: bool) -> None:
    """A normalization lab for Keras 3: train, compare and explain one small CNN.

    Example: kerasnorm fit --norm gn --backend torch
    """
    context.ensure_object(dict)["debug"] = debug


ROOMS = (training, studies, models, formats, explain, speed, surroundings)
for room in ROOMS:
    for command in room.COMMANDS:
        app.add_command(command)


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    with INTERRUPTIONS.installed():
        code = _run()
    sys.exit(code)


def _run() -> int:
    """Returns the exit code of the command line, after a message where there is an error."""
    state = {"debug": False}
    code: int
    try:
        with console_notes():
            code = app(standalone_mode=False, obj=state)
        sys.stdout.flush()
    except click.ClickException as error:
        old = getattr(error, "option_name", "").removeprefix("--").replace("-", "_")
        if old in RENAMED:
            error = click.UsageError(f"No such option: --{old}. It is --{RENAMED[old]} now.")
        error.show()
        code = error.exit_code
    except KerasnormError as error:
        if state["debug"]:
            raise
        click.echo(f"kerasnorm: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("kerasnorm: interrupted.", err=True)
        code = SIGNALLED + signal.SIGINT
    except Terminated:
        click.echo("kerasnorm: terminated.", err=True)
        code = SIGNALLED + signal.SIGTERM
    except BrokenPipeError:
        sys.stderr.close()
        code = SIGNALLED + signal.SIGPIPE
    except OSError as error:
        if state["debug"]:
            raise
        click.echo(f"kerasnorm: {error.filename or 'a file'}: {error.strerror or error}", err=True)
        code = RunFolderError.exit_code
    except Exception as error:
        if state["debug"]:
            raise
        click.echo(
            f"kerasnorm: unexpected {type(error).__name__}: {error}\n"
            "Run `kerasnorm --debug …` for the traceback, and please report it.",
            err=True,
        )
        code = 1
    return code
