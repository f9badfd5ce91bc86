"""Every hostile input that is data is read as it must be, or refused in at most ten lines."""

import json

import pytest
from helpers.command import call
from hostile.data import INPUTS, Read

pytestmark = pytest.mark.backend("any")


@pytest.mark.parametrize(
    ("make", "expected"), [pytest.param(make, expected, id=name) for name, make, expected in INPUTS]
)
@pytest.mark.backend("any", long_on="tensorflow")
def test_what_happens(make, expected, tmp_path):
    given = make(tmp_path)
    if isinstance(expected, Read):
        out, err = call("data", given, "--json")
        found = json.loads(out)
        splits = {"train": expected.train, "test": expected.test}
        if expected.validation is not None:
            splits["validation"] = expected.validation
        assert found["class_counts"] == splits
        assert tuple(found["image_shape"]) == expected.shape
        texts = expected.notes
    else:
        out, err = call("data", given, "--json", code=3)
        assert out == ""
        texts = expected.texts
    for text in texts:
        assert text in err
    assert sum(1 + len(line) // 80 for line in err.splitlines()) <= 11


def test_names_are_distinct():
    assert len({name for name, _, _ in INPUTS}) == len(INPUTS)
