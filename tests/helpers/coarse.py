"""Figures of fewer pixels, which take half the time, where tests look at words and numbers."""

from collections.abc import Generator

import pytest

from kerasnorm.plots import style


@pytest.fixture(scope="module", autouse=True)
def coarse_figures() -> Generator[None]:
    """Draws the figures of a module's tests at 40 pixels an inch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        yield
