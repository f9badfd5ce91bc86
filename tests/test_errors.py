"""Messages: their length, and what is said when memory runs out."""

import re

import pytest
from helpers.command import call

import kerasnorm
from kerasnorm import cli
from kerasnorm.errors import ConfigError, is_out_of_memory, shortened


def test_a_short_message_is_left_as_it_is():
    assert shortened("expected 1.\nReceived: 2.") == "expected 1.\nReceived: 2."


@pytest.mark.parametrize("value", [0, True, 2.5, "3", None])
def test_a_number_of_things_is_refused_in_one_text_wherever_it_is_given(value):
    text = f"expected a whole number of at least 1. Received: NAME={value!r}"
    for name, refused in {
        "rounds": lambda: kerasnorm.explain("gn", cost=False, rounds=value),
        "seeds": lambda: kerasnorm.compare(seeds=value, data="no such data"),
        "jobs": lambda: kerasnorm.compare(jobs=value, data="shapes", norms=("gn",)),
    }.items():
        with pytest.raises(ConfigError, match=re.escape(text.replace("NAME", name))):
            refused()


def test_a_long_message_keeps_its_beginning_and_its_end():
    text = shortened("where: " + "x" * 9000 + " Do this.")
    assert text.startswith("where: xxx")
    assert text.endswith("xxx Do this.")
    assert len(text) <= 803
    lines = shortened("\n".join(f"line {number}" for number in range(90))).splitlines()
    assert (len(lines), lines[0], lines[-1]) == (10, "line 0", "line 89")


@pytest.mark.parametrize("count", [4, 6, 9, 90])
@pytest.mark.parametrize("length", [40, 100, 250])
def test_a_long_message_of_several_lines_keeps_whole_lines(count, length):
    lines = [f"{number}".ljust(length, ".") for number in range(count)]
    kept = shortened("\n".join(lines)).splitlines()
    assert len(kept) <= 10
    assert len("\n".join(kept)) <= 803
    assert (kept[0], kept[-2:]) == (lines[0], lines[-2:])
    assert {*kept} <= {*lines, "…"}


def test_no_mistake_is_answered_with_more_than_ten_lines():
    for words in (["receptive-field", "x" * 250], ["sweep", "--vary", f"{'x' * 9000}=1"]):
        _, err = call(*words, code=2)
        assert sum(1 + len(line) // 80 for line in err.splitlines()) <= 11


def torch_runs_out():
    torch = pytest.importorskip("torch")
    torch.empty(10**16)


def tensorflow_runs_out():
    errors = pytest.importorskip("tensorflow").errors
    raise errors.ResourceExhaustedError(None, None, "OOM when allocating tensor" + "\nx" * 300)


@pytest.mark.parametrize(
    "run",
    [
        lambda: bytearray(2**62),
        pytest.param(torch_runs_out, marks=pytest.mark.backend("any", long_on="tensorflow")),
        pytest.param(tensorflow_runs_out, marks=pytest.mark.backend("any", long_on="torch")),
    ],
)
def test_out_of_memory_says_what_to_make_smaller(run, monkeypatch):
    monkeypatch.setattr(cli.doctor.runtime, "cache_folder", run)
    _, err = call("data", "--json", code=1)
    assert "out of memory" in err
    assert "--batch-size" in err
    assert "--image-size" in err
    assert len(err.splitlines()) <= 10


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("kind", ["Conv2D", "Conv2DTranspose"])  # oneDNN may compute others
def test_layers_with_channels_first_say_what_to_do_on_a_cpu(kind, monkeypatch):
    import keras

    layer = getattr(keras.layers, kind)(2, 2, data_format="channels_first")
    images = keras.ops.zeros((1, 3, 8, 8))
    monkeypatch.setattr(cli.doctor.runtime, "cache_folder", lambda: layer(images))
    _, err = call("data", "--json", code=2)
    assert "channels_first" in err
    assert "--backend torch" in err
    assert "report" not in err


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
