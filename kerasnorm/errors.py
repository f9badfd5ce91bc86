"""The errors that kerasnorm raises on purpose, and the exit code of each.

Every message says what was expected, what was received and what to do next.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real


class KerasnormError(Exception):
    """Base of every error that kerasnorm raises on purpose.

    Attributes:
        exit_code: Exit code of the command line when the error reaches it.
    """

    exit_code = 1


class ConfigError(KerasnormError, ValueError):
    """An option, config field or argument is unknown or out of range."""

    exit_code = 2


class DataError(KerasnormError, ValueError):
    """A data set is missing, damaged, unsafe to open or no data for a classifier."""

    exit_code = 3


class DivergedError(KerasnormError, ArithmeticError):
    """Training produced a loss that is not finite."""

    exit_code = 4


class CorruptFileError(KerasnormError, ValueError):
    """A model, checkpoint or run file is damaged or not safe to open."""

    exit_code = 5


class RunFolderError(KerasnormError, OSError):
    """A run's folder is in use, already holds another run, or cannot be written."""

    exit_code = 6


class LostProcessError(KerasnormError):
    """Another process of the group that trains a model together has ended."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Another process of this job has ended or does not answer ({reason[:120]}). Start "
            "the job again with --resume auto to resume the run from its last checkpoint."
        )


class MissingPackageError(KerasnormError, ImportError):
    """A backend or optional package is not installed; the message names the pip command."""

    exit_code = 7


def listed(names: Iterable[object], shown: int = 5) -> str:
    """Returns names for a message: the first few, and how many more there are."""
    texts = [str(name) for name in names]
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more:,} more" if more > 0 else "") or "none"


def shortened(text: str, longest: int = 800) -> str:
    """Returns a message of at most ten lines of a terminal: its middle is left out if need be.

    Of several lines whole ones are left out, as long as more than the last two and one are there.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    text = "\n".join(lines)
    for kept in range(min(len(lines) - 3, 7), 0, -1):
        if len(lines) <= 10 and len(text) <= longest:
            break
        lines = [*lines[:kept], "…", *lines[-2:]]
        text = "\n".join(lines)
    tail = longest // 3
    return text if len(text) <= longest else f"{text[: longest - tail]} … {text[-tail:]}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, "" where it has none."""
    return next(iter(str(error).strip().splitlines()), "")


def error_text(error: BaseException) -> str:
    """Returns the type and the message of an error in one line, without what Keras wraps it in.

    >>> error_text(TypeError("Could not automatically infer it. Error encountered: no axs"))
    'TypeError: no axs'
    """
    is_quoted = isinstance(error, KeyError) and error.args  # str() of it is the `repr` of its text
    text = str(error.args[0] if is_quoted else error)
    text = re.sub(r"\x1b\[\d*m", "", text).partition("Arguments received by")[0]
    text = re.sub(r"Could not automatically infer .*?Error encountered:", "", text, flags=re.DOTALL)
    return shortened(f"{type(error).__name__}: {' '.join(text.split())}", 400)


def described(value: object) -> str:
    """Returns how a message names a value: a function or class as module:name, others by `repr`.

    Of an array, of NumPy or of a backend, the shape is named. Addresses in memory, which `repr` has
    for many objects, are left out.

    >>> described(described), described([4, "bn"])
    ('kerasnorm.errors:described', "[4, 'bn']")
    """
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"{value.__module__}:{value.__qualname__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"an array of shape {tuple(shape)}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def expect(is_right: bool, name: str, expected: str, received: object) -> None:
    """Raises a ConfigError about an argument unless `is_right`."""
    if not is_right:
        raise ConfigError(f"{name}: expected {expected}. Received: {name}={described(received)}")


@contextmanager
def about(subject: object) -> Iterator[None]:
    """Says at the beginning of an error which of the user's files or networks it is about.

    The errors are `ConfigError` and `DivergedError`.

    >>> with about("bn.keras"):
    ...     raise ConfigError("model: expected a network")
    Traceback (most recent call last):
    kerasnorm.errors.ConfigError: bn.keras: model: expected a network
    """
    try:
        yield
    except (ConfigError, DivergedError) as error:
        raise type(error)(f"{subject}: {error}") from error


def is_number(value: object) -> bool:
    """Returns whether a value is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_list(value: object) -> bool:
    """Returns whether a value is a sequence of values; text is none."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def expect_whole(value: object, name: str, least: int) -> None:
    """Raises a ConfigError unless an argument is a whole number of at least `least`."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    is_right = is_whole and int(value) >= least  # type: ignore[call-overload]
    expect(is_right, name, f"a whole number of at least {least}", value)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of NumPy, PyTorch, TensorFlow or JAX says that memory ran out."""
    named = {"OutOfMemoryError", "ResourceExhaustedError"}
    signs = ("allocate memory", "RESOURCE_EXHAUSTED", "out of memory")
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in named
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))
    )


def layer_failed(error: Exception) -> ConfigError:
    """Returns the error for a network of which a layer raised one when it was called."""
    words = error_text(error).removesuffix(".")
    advice = "Look at that layer, or try another --backend"
    if "only support" in words and "NHWC" in words:
        words = "TensorFlow computes data_format='channels_first' on a GPU alone. " + words
        advice = "Use --backend torch, or give the layers data_format='channels_last'"
    return ConfigError(f"network: a layer cannot be computed. {words}. {advice}.")


@contextmanager
def calling_layers() -> Iterator[None]:
    """Turns what a layer of a network raises in the block into a ConfigError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, KerasnormError) or is_out_of_memory(error):
            raise
        raise layer_failed(error) from error
