"""The learning rate of every step of a run."""

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import TrainConfig

ONECYCLE_START = 25.0  # peak / first rate, and
ONECYCLE_END = 1e4  # first rate / last rate: the defaults of PyTorch's OneCycleLR


def learning_rates(config: TrainConfig, steps: int) -> NDArray[np.float64]:
    """Returns the learning rate of each step, shape (steps,).

    - triangular: linear from 0 to the peak at `warmup`, then linear to 0.
    - onecycle: cosine from peak/25 to the peak, then cosine to peak/25/10⁴, as PyTorch's
      `OneCycleLR` by default (Smith & Topin, arXiv 1708.07120).
    - cosine: linear from 0 to the peak, then half a cosine to 0 (arXiv 1608.03983).
    - constant: the peak at every step.

    `learning_rate` is the peak, `warmup` a share of the steps.
    """
    peak, step = config.learning_rate, np.arange(steps, dtype=np.float64)
    if config.schedule == "constant":
        return np.full(steps, peak)
    if config.schedule == "onecycle":
        first = peak / ONECYCLE_START
        turn = config.warmup * steps - 1
        rising = _cosine(first, peak, step / turn if turn > 0 else np.ones(steps))
        left = steps - 1 - turn  # less than a step where the peak is near the end
        falling = _cosine(peak, first / ONECYCLE_END, (step - turn) / (left or 1))
        return np.where(step <= turn, rising, falling)
    # Taken at the middle of each step, so that no step is spent at rate 0.
    at, warmup = (step + 0.5) / steps, config.warmup
    triangle = np.interp(at, [0, warmup, 1], [0, peak, 0])
    if config.schedule == "triangular":
        return triangle
    done = (at - warmup) / max(1 - warmup, 1e-12)
    return np.where(at < warmup, triangle, _cosine(peak, 0.0, done))


def has_open_end(config: TrainConfig) -> bool:
    """Returns whether more epochs change nothing in the epochs before them."""
    return config.schedule == "constant"


def _cosine(start: float, end: float, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Goes from `start` to `end` along half a cosine while `share` goes from 0 to 1."""
    return end + (start - end) / 2 * (1 + np.cos(np.pi * np.clip(share, 0, 1)))
