"""All figures of these tests are coarse."""

from helpers.coarse import coarse_figures  # noqa: F401
