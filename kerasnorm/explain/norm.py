"""What a norm computes, costs and is used for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kerasnorm import runtime
from kerasnorm.explain.answer import Answer

if TYPE_CHECKING:
    from kerasnorm.benchmark.cost import NormCost
    from kerasnorm.explain.norm_facts import NormFacts
    from kerasnorm.explain.norm_measure import BatchOfOne, Worked


@dataclass(frozen=True, eq=False)
class Explanation:
    """A norm, explained.

    Attributes:
        norm: Its short name.
        facts: Formula, sources, users.
        index: (n, h, w, c) of the value that was perturbed.
        shared: Outputs of the real layer that moved, bool (N, H, W, C).
        worked: A small tensor taken through it.
        batch_of_one: What becomes of an image alone in its batch.
        cost: Parameters and share of a training step; None where not measured.
    """

    norm: str
    facts: "NormFacts"
    index: tuple[int, ...]
    shared: Any
    worked: "Worked"
    batch_of_one: "BatchOfOne"
    cost: "NormCost | None"


def explain(norm: str, *, cost: bool = True, batch_size: int = 64, rounds: int = 7) -> Answer:
    """Explains a norm by what the real Keras layer does.

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta, x (N, H, W, C); the norms differ in
    the axes that share a mean and a variance. Sources: `kerasnorm.explain.norm_facts`.

    Args:
        norm: One of bn, gn, ln, lnc, in, rms.
        cost: Measure what it costs in this network, some ten seconds.
        batch_size: Images a step of that measurement.
        rounds: Turns with and without the norm of that measurement.

    Returns:
        An `Answer` whose data are an `Explanation`, with a figure named after the norm.

    Raises:
        ConfigError: The norm is unknown.
    """
    backend, _ = runtime.start()
    from kerasnorm.benchmark.cost import norm_cost
    from kerasnorm.explain import norm_measure as analysis
    from kerasnorm.explain.norm_facts import NORM_FACTS
    from kerasnorm.explain.norm_plots import explain_figure

    analysis.check_norm(norm)
    index = (0, 0, 0, 0)
    found = Explanation(
        norm,
        NORM_FACTS[norm],
        index,
        analysis.shared_by_perturbation(norm, analysis.CUBE, index),
        analysis.worked_example(norm),
        analysis.batch_of_one(norm),
        norm_cost(norm, backend, batch_size, rounds) if cost else None,
    )
    figure = explain_figure(norm, found.facts, found.shared, index, found.worked)
    return Answer(found, {norm: figure})
