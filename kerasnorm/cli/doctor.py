"""`kerasnorm data` and `kerasnorm doctor`: what is cached, and what is installed."""

import click

from kerasnorm import runtime
from kerasnorm.cli import options as opt
from kerasnorm.config import BACKENDS, DataConfig
from kerasnorm.formats import FORMATS
from kerasnorm.formats.format import install_command


@click.command()
@click.argument("source", required=False)
@opt.option("image_size")
@opt.option("resize")
@opt.as_json
def data(
    source: str | None, image_size: tuple[int, ...] | None, resize: str | None, as_json: bool
) -> None:
    """List the cached data sets, or describe one: image shape, class counts, mean and std.

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
    """Report versions, backends with their devices, formats, and how to install what is missing.

    Example: kerasnorm doctor
    """
    versions, cache = runtime.versions(), str(runtime.cache_folder())
    backends = {name: runtime.probe(name) for name in BACKENDS}
    missing = {name: entry.missing() for name, entry in FORMATS.items()}
    formats = {
        name: f"needs {', '.join(packages)}: {install_command(packages)}" if packages else "ready"
        for name, packages in missing.items()
    }
    if as_json:
        facts = {"versions": versions, "backends": backends, "formats": formats, "cache": cache}
        opt.print_json(facts)
        return
    named = {f"export {name}": text for name, text in formats.items()}
    rows = versions | backends | named | {"data cache": cache}
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        click.echo(f"{name:<{width}}{value}")


COMMANDS = (data, doctor)
