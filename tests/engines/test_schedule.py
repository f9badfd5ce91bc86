"""Learning rates, against PyTorch's own schedulers and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasnorm.config import TrainConfig
from kerasnorm.engines.schedule import learning_rates


def rates(steps, **fields):
    return learning_rates(TrainConfig(**fields), steps)


@pytest.mark.parametrize(
    ("steps", "warmup"),
    [
        *[(200, 0.3), (1000, 0.25), (37, 0.5), (8, 1.0), (4, 0.0)],
        *[(1, 0.25), (2, 0.9), (3, 0.75), (4, 0.99), (10, 0.95)],  # less than a step of falling
    ],
)
def test_onecycle_is_pytorchs(steps, warmup):
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=steps, pct_start=warmup
    )
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(expected) < steps else None
    ours = rates(steps, schedule="onecycle", learning_rate=0.01, warmup=warmup)
    assert np.allclose(ours, expected, rtol=1e-9, atol=0)


def test_the_triangle_by_hand():
    ours = rates(8, schedule="triangular", learning_rate=1.0, warmup=0.25)
    expected = [0.25, 0.75, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12]
    assert np.allclose(ours, expected)


def test_cosine_without_warmup_by_hand():
    ours = rates(4, schedule="cosine", learning_rate=2.0, warmup=0.0)
    assert np.allclose(ours, 1 + np.cos(np.pi * np.array([1, 3, 5, 7]) / 8))


@given(
    st.sampled_from(["triangular", "onecycle", "cosine", "constant"]),
    st.integers(1, 300),
    st.floats(0, 1),
)
def test_rates_are_finite_and_between_zero_and_the_peak(schedule, steps, warmup):
    ours = rates(steps, schedule=schedule, learning_rate=0.3, warmup=warmup)
    assert ours.shape == (steps,)
    assert np.isfinite(ours).all()
    assert (ours > 0).all()
    assert (ours <= 0.3 * (1 + 1e-12)).all()
