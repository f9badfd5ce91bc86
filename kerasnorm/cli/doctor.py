"""`kerasnorm data` and `kerasnorm doctor`: what is cached, and what is installed."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import BACKENDS, LOGGERS, DataConfig
from kerasnorm.errors import ConfigError
from kerasnorm.formats import FORMATS
from kerasnorm.formats.format import install_command


@click.command()
@click.argument("source", required=False)
@opt.option("image_size")
@opt.option("resize")
@click.option("--clear", is_flag=True, help="Remove the decoded images of all folders.")
@opt.as_json
def data(
    source: str | None,
    image_size: tuple[int, ...] | None,
    resize: str | None,
    clear: bool,
    as_json: bool,
) -> None:
    """List the cache, or describe a data set.

    Prints the image shape, class counts, mean and std of a data set. The cache holds data sets that
    were downloaded, and the decoded images of large folders.

    Example: kerasnorm data shapes
    """
    from kerasnorm import data as sources
    from kerasnorm.data import stored
    from kerasnorm.data.preprocessing import channel_statistics

    if clear:
        if source is not None:
            raise ConfigError("--clear removes what was decoded of any folder: leave out SOURCE.")
        freed = stored.clear()
        opt.show(as_json, {"freed": freed}, f"freed {stored.in_units(freed)}")
        return
    if source is None:
        folder = runtime.cache_folder()
        cached, decoded = sources.describe_cache(), stored.describe()
        lines = [f"cache {folder}", *(f"{one['name']:<16}{one['state']}" for one in cached)]
        for one in decoded:
            size, origin = stored.in_units(one["bytes"]), one["folder"] or "unfinished"
            lines.append(f"{'decoded':<16}{size} in {one['path']}, of {origin}")
        opt.show(as_json, {"folder": folder, "cached": cached, "decoded": decoded}, *lines)
        return
    config = DataConfig(data=source, **opt.given({"image_size": image_size, "resize": resize}))
    dataset = sources.prepare(config, seed=0)
    mean, std = channel_statistics(dataset.train.images)
    facts = {
        "name": dataset.name,
        "source": dataset.source,
        "image_shape": list(dataset.image_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
    counts, names = dataset.class_counts, dataset.class_names
    lines = []
    for name, value in facts.items():
        is_measured = name in ("mean", "std")
        text = " ".join(f"{number:.4f}" for number in value) if is_measured else value
        lines.append(f"{name.replace('_', ' '):<16}{text}")
    lines.append("".join([f"{'class':<16}", *(f"{split:>10}" for split in counts)]))
    for name, *row in [
        *zip(names, *counts.values(), strict=True),
        ("all", *map(sum, counts.values())),
    ]:
        lines.append("".join([f"{name:<16}", *(f"{n:>10,}" for n in row)]))
    named = {split: dict(zip(names, row, strict=True)) for split, row in counts.items()}
    opt.show(as_json, facts | {"class_counts": named}, *lines)


@click.command()
@opt.as_json
def doctor(as_json: bool) -> None:
    """Report versions, backends, devices, formats and loggers.

    For what is missing, it prints the command that installs it.

    Example: kerasnorm doctor
    """
    versions, cache = runtime.versions(), str(runtime.cache_folder())
    backends = {name: runtime.probe(name) for name in BACKENDS}
    formats = {name: _state(entry.missing()) for name, entry in FORMATS.items()}
    loggers = {name: _state([] if find_spec(name) else [name]) for name in LOGGERS}
    compiler = runtime.cpp_compiler()
    named = {f"export {name}": text for name, text in formats.items()}
    named |= {f"log {name}": text for name, text in loggers.items()}
    advice = f"none: training on CPUs is slower without {' or '.join(runtime.COMPILERS)}"
    rows = versions | backends | named
    if sys.platform == "linux":
        rows["C++ compiler"] = compiler or advice
    rows["data cache"] = cache
    width = max(map(len, rows)) + 2
    facts: dict[str, Any] = {"versions": versions, "backends": backends, "formats": formats}
    facts |= {"loggers": loggers, "compiler": compiler, "cache": cache}
    opt.show(as_json, facts, *(f"{name:<{width}}{value}" for name, value in rows.items()))


def _state(missing: Sequence[str]) -> str:
    """Returns whether something can be used, and how to install the packages that it lacks."""
    return f"needs {', '.join(missing)}: {install_command(missing)}" if missing else "ready"


COMMANDS = (data, doctor)
