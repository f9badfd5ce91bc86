"""The bar chart of a race."""

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from kerasnorm.benchmark.race import Result
from kerasnorm.norms import NORMS
from kerasnorm.plots.style import INK, TEXT_SIZE, new_figure, quiet, title

BAR = 0.26  # inches, with the space around it
NAMES = {
    "stock": "model.fit",
    "loop": "PyTorch loop",
    "loop-compiled": "… torch.compile",
    "loop-channels-last": "… channels-last, no dropout",
    "native": "kerasnorm",
}


def speed_figure(results: Sequence[Result], heading: str) -> Figure:
    """Returns bars of training images a second, whiskers from the slowest round to the fastest.

    Args:
        results: From `kerasnorm.benchmark.race`.
        heading: What was raced, and on which machine.
    """
    backends = sorted({row.backend for row in results}, reverse=True)
    rows = {name: [row for row in results if row.backend == name] for name in backends}
    sizes = [len(rows[name]) for name in backends]
    figure = new_figure(1.3 + BAR * sum(sizes))
    grid = figure.subplots(len(backends), 1, height_ratios=sizes, squeeze=False, sharex=True)
    title(figure, heading)
    for axes, backend in zip(grid[:, 0], backends, strict=True):
        for place, row in enumerate(rows[backend]):
            rate = statistics.median(row.train)
            spread = [[rate - min(row.train)], [max(row.train) - rate]]
            is_ours = row.contender == "native"
            axes.barh(
                place,
                rate,
                xerr=spread,
                color=NORMS[row.norm].color,
                alpha=1.0 if is_ours else 0.4,
                error_kw={"ecolor": INK, "elinewidth": 0.8},
            )
            text = f" {rate:,.0f}"
            axes.text(max(row.train), place, text, va="center", fontsize=TEXT_SIZE, color=INK)
        labels = [f"{row.norm} · {NAMES[row.contender]}" for row in rows[backend]]
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlabel("training images a second")
        quiet(axes, f"{backend} backend")
    return figure
