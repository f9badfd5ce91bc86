"""The race: contenders take turns, each in its own process; its table and its chart."""

import logging
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kerasnorm.config import BACKENDS, Config
from kerasnorm.errors import KerasnormError
from kerasnorm.json_process import JsonProcess, ProcessEndedError
from kerasnorm.norms import NORMS
from kerasnorm.tables import Table

if TYPE_CHECKING:
    from kerasnorm.plots.style import Picture

logger = logging.getLogger(__name__)
BAR = 0.26  # inches of the chart per bar, with the space around it


@dataclass(frozen=True)
class Contender:
    """One way to train and to predict."""

    meaning: str  # what it is, for the notes of the table
    label: str  # its name in the chart
    backends: tuple[str, ...] = ("torch",)  # Keras backends on whose networks it races
    predicts: bool = False  # whether its predictions are timed too


CONTENDERS = {
    "stock": Contender("keras model.fit and model.predict", "model.fit", BACKENDS, predicts=True),
    "loop": Contender(
        "hand-written PyTorch loop, NCHW, eager; all loops use Adam, and keep freed memory",
        "PyTorch loop",
    ),
    "loop-channels-last": Contender(
        "the same in channels-last memory, its dropout removed", "… channels-last, no dropout"
    ),
    "loop-compiled": Contender(
        "the same in channels-last memory, with dropout, under torch.compile",
        "… channels-last, torch.compile",
    ),
    "native": Contender("kerasnorm", "kerasnorm", BACKENDS, predicts=True),
}


@dataclass
class Result:
    """What one contender did on one network."""

    norm: str  # norm of the network
    backend: str  # Keras backend
    contender: str  # name of the contender, a key of `CONTENDERS`
    # Training images per second, one number per round.
    train: list[float] = field(default_factory=list)
    # Images per second in prediction, one number per round; empty where predictions are not timed.
    predict: list[float] = field(default_factory=list)
    first_step: float = 0.0  # seconds from the start of its process to the end of its first step
    peak_mib: float = 0.0  # largest resident memory of its process, in MiB


def race(
    config: Config,
    contenders: Sequence[str],
    images: int,
    rounds: int,
) -> list[Result]:
    """Returns the result of each contender on one network.

    All are started and warmed up first; then each takes one turn per round. A contender that fails
    at the start is left out, and the reason is logged. A round is one epoch of `images` images.
    """
    workers: list[tuple[JsonProcess, Result]] = []
    with ExitStack() as stack:
        for name in contenders:
            worker = stack.enter_context(JsonProcess("kerasnorm.benchmark.worker"))
            result = Result(config.model.norm, config.train.backend, name)
            try:
                _ask(worker, name, "prepare", name=name, images=images, config=config.fields)
                result.first_step = _ask(worker, name, "train")["first_step"]
                _ask(worker, name, "predict")
            except KerasnormError as error:
                logger.warning(str(error))
                worker.close()
                continue
            workers.append((worker, result))
        for _ in range(rounds):
            for worker, result in workers:
                reply = _ask(worker, result.contender, "train")
                result.train.append(images / reply["seconds"])
                result.peak_mib = reply["peak_mib"]
        for _ in range(rounds):
            for worker, result in workers:
                if CONTENDERS[result.contender].predicts:
                    reply = _ask(worker, result.contender, "predict")
                    result.predict.append(images / reply["seconds"])
    return [result for _, result in workers]


def _ask(worker: JsonProcess, contender: str, task: str, **facts: Any) -> dict[str, float]:
    """Returns the seconds and MiB that a contender took for a task."""
    try:
        return worker.ask({"task": task} | facts)
    except KerasnormError as error:
        words = error.last_words if isinstance(error, ProcessEndedError) else str(error)
        message = f"The contender {contender} failed: {words or 'no message'}"
        raise KerasnormError(message) from None


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median over the rounds of one rate divided by the other."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def race_table(results: Sequence[Result]) -> Table:
    """Returns the table of a race: rates, paired ratios, first step and memory of each."""

    def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
        return f"{paired_ratio(ours, theirs):.2f}" if ours and theirs else "-"

    def rates(of_rounds: Sequence[float]) -> str:
        if not of_rounds:
            return "-"
        lowest, highest = min(of_rounds), max(of_rounds)
        return f"{statistics.median(of_rounds):,.0f} ({lowest:,.0f}-{highest:,.0f})"

    native = {(r.norm, r.backend): r for r in results if r.contender == "native"}
    rows = []
    for row in results:
        ours = native.get((row.norm, row.backend), row)
        rows.append(
            (
                row.backend,
                row.norm,
                row.contender,
                rates(row.train),
                rates(row.predict),
                f"{row.first_step:.1f}",
                f"{row.peak_mib:,.0f}",
                ratio(ours.train, row.train),
                ratio(ours.predict, row.predict),
            )
        )
    columns = ("backend", "norm", "contender", ">train", ">predict", ">first step s", ">peak MiB")
    return Table(
        columns=(*columns, ">native/this", ">in predict"),
        rows=rows,
        notes=(
            "Images per second: median over the rounds (slowest-fastest). Contenders take turns.",
            "native/this: median over the rounds of kerasnorm's rate divided by this one's.",
            *(f"{name}: {contender.meaning}." for name, contender in CONTENDERS.items()),
        ),
        title="Speed",
    )


def race_chart(results: Sequence[Result], heading: str) -> "Picture":
    """Returns a bar per contender of training images per second."""
    from kerasnorm.plots.style import INK, TEXT_SIZE, Picture, new_figure, quiet

    backends = sorted({row.backend for row in results}, reverse=True)
    rows = {name: [row for row in results if row.backend == name] for name in backends}
    sizes = [len(rows[name]) for name in backends]
    figure = new_figure(1.3 + BAR * sum(sizes), heading)
    grid = figure.subplots(len(backends), 1, height_ratios=sizes, squeeze=False, sharex=True)
    facts = []
    for axes, backend in zip(grid[:, 0], backends, strict=True):
        labels = [f"{r.norm} · {CONTENDERS[r.contender].label}" for r in rows[backend]]
        for place, (row, label) in enumerate(zip(rows[backend], labels, strict=True)):
            rate = statistics.median(row.train)
            axes.barh(
                place,
                rate,
                xerr=[[rate - min(row.train)], [max(row.train) - rate]],
                color=NORMS[row.norm].color,
                alpha=1.0 if row.contender == "native" else 0.4,
                error_kw={"ecolor": INK, "elinewidth": 0.8},
            )
            text = f" {rate:,.0f}"
            axes.text(max(row.train), place, text, va="center", fontsize=TEXT_SIZE, color=INK)
            facts.append(f"{backend}, {label}: {rate:,.0f}")
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("training images per second")
        quiet(axes, f"{backend} backend")
    return Picture(
        "bench",
        figure,
        "Training speed",
        "Median over the rounds; a whisker reaches from the slowest round to the fastest.",
        f"Bars of training images per second. {'; '.join(facts)}.",
    )
