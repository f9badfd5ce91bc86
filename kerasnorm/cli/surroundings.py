"""Commands on what surrounds a run: the data at hand, and the machine."""

from typing import Any

import click

from kerasnorm import provenance, runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import BACKENDS


@click.command()
@click.argument("source", required=False)
@opt.as_json
def data(source: str | None, as_json: bool) -> None:
    """Say which data sets are cached; or, of one: shapes, class counts, mean and std.

    Example: kerasnorm data shapes
    """
    from kerasnorm import data as sources
    from kerasnorm.data.preprocessing import channel_statistics

    if source is None:
        cached = sources.describe_cache()
        if as_json:
            opt.print_json({"folder": str(runtime.cache_folder()), "cached": cached})
            return
        click.echo(f"cache {runtime.cache_folder()}")
        for entry in cached:
            click.echo(f"{entry['name']:<16}{entry['state']}")
        return
    dataset = sources.load(source)
    mean, std = channel_statistics(dataset.train.images)
    facts = {
        "name": dataset.name,
        "source": dataset.source,
        "image_shape": list(dataset.image_shape),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
    counts = dataset.class_counts
    if as_json:
        named = {k: dict(zip(dataset.class_names, v, strict=True)) for k, v in counts.items()}
        opt.print_json(facts | {"class_counts": named})
        return
    for name, value in facts.items():
        is_measured = name in ("mean", "std")
        text = " ".join(f"{number:.4f}" for number in value) if is_measured else value
        click.echo(f"{name.replace('_', ' '):<16}{text}")
    click.echo("".join([f"{'class':<16}", *(f"{split:>10}" for split in counts)]))
    for index, name in enumerate(dataset.class_names):
        click.echo("".join([f"{name:<16}", *(f"{n[index]:>10,}" for n in counts.values())]))
    click.echo("".join([f"{'all':<16}", *(f"{sum(n):>10,}" for n in counts.values())]))


@click.command()
@opt.as_json
def doctor(as_json: bool) -> None:
    """Say what is installed, which devices there are, and how to get what is missing.

    Example: kerasnorm doctor
    """
    report: dict[str, Any] = {"versions": provenance.versions(), "backends": {}}
    for backend in BACKENDS:
        report["backends"][backend] = runtime.probe(backend)
    report["cache"] = str(runtime.cache_folder())
    if as_json:
        opt.print_json(report)
        return
    for package, version in report["versions"].items():
        click.echo(f"{package:<16}{version}")
    for backend, found in report["backends"].items():
        click.echo(f"{backend:<16}{found}")
    click.echo(f"{'data cache':<16}{report['cache']}")


COMMANDS = (data, doctor)
