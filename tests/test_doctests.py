"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import kerasnorm

HOME = Path(kerasnorm.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(HOME.parent).with_suffix("").parts)
    for path in HOME.rglob("*.py")
    if "\n    >>> " in path.read_text(encoding="utf-8")
)


def test_there_are_examples():
    assert "kerasnorm.analysis.norm" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    found = doctest.testmod(importlib.import_module(name), extraglobs={"np": np})
    assert found.attempted > 0
    assert found.failed == 0
