"""Fault 8: command lines and config files made up at random never end in a traceback or a mess."""

import contextlib
import io
import string
import sys
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kerasnorm.cli import app, main
from kerasnorm.config import SETTINGS
from kerasnorm.errors import ConfigError

KNOWN_CODES = {0, 2, 3, 4, 5, 6, 7}
# Of every kind that a field could be confused by.
VALUES = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["", "0", "-1", "1e400", "nan", "inf", "true", "16,16", ",", "[1]", "cuda:9"]),
    st.sampled_from([c for s in SETTINGS.values() for c in s.field.metadata["choices"]] or ["x"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
)
FLAGS = st.sampled_from([f"--{name.replace('_', '-')}" for name in SETTINGS])
OPTIONS = st.one_of(
    st.tuples(FLAGS, VALUES),
    st.tuples(FLAGS),
    st.tuples(st.sampled_from(["--recipe", "--config", "--resume", "--out", "--nope"]), VALUES),
    st.tuples(st.sampled_from(["--json", "--quiet", "--no-residual", "--", "-x"])),
    st.tuples(VALUES),
)
# Those that answer from their arguments alone, in a moment.
COMMANDS = st.sampled_from(["fit", "fit", "fit", "summary", "receptive-field", "evaluate", "plot",
                            "predict", "misclassified", "data", "nope"])  # fmt: skip
LINES = st.builds(
    lambda command, options: [command, *(word for option in options for word in option)],
    COMMANDS, st.lists(OPTIONS, max_size=5),
)  # fmt: skip
TOML = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.tuples(
            st.sampled_from(["[model]", "[data]", "[train]", "[nope]", 'recipe = "era8"']),
            st.sampled_from([*SETTINGS, "nope"]),
            st.one_of(
                st.integers().map(str),
                st.floats().map(str),
                st.text(string.printable, max_size=8).map(lambda t: f'"{t}"'),
                st.sampled_from(["true", "[]", "[1, 2]", "{a = 1}", "'x'"]),
            ),
        ),
        max_size=4,
    ).map(lambda rows: "\n".join(f"{head}\n{name} = {value}" for head, name, value in rows)),
)


def call(words):
    """Runs a command line in this process; returns its exit code and what it said."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["kerasnorm", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as error:
            return error.code or 0, err.getvalue()
    return None, err.getvalue()


def examine(words, home):
    """Runs a line in an empty folder; returns what is wrong with the way it ended."""
    before = sorted(home.rglob("*"))
    code, said = call(words)
    wrong = []
    if code not in KNOWN_CODES or "Traceback" in said or "kerasnorm: unexpected" in said:
        wrong.append(f"{words}: code {code}: {said[-500:]}")
    if sorted(home.rglob("*")) != before:
        wrong.append(f"{words}: left {sorted(home.rglob('*'))}")
    return wrong


def fuzz(lines, configs):
    """Tries command lines and config files; returns how many, and how many ended badly."""
    wrong = []

    def no_training(*args, **kwargs):
        raise ConfigError("a run that would have begun")

    def run(count, strategy, words):
        @settings(max_examples=count, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(strategy)
        def attempt(made):
            wrong.extend(examine(words(made), home))

        attempt()

    def with_file(text):
        file.write_text(text, encoding="utf-8")
        return ["fit", "--dry-run", "--config", str(file)]

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        home = Path(name) / "home"
        home.mkdir()
        file = Path(name) / "config.toml"
        # A line that is right would train; making the model and reading the data come first.
        with contextlib.chdir(home), mock.patch("kerasnorm.training.fit.make_engine", no_training):
            run(lines, LINES, lambda words: words)
            run(configs, TOML, with_file)
    assert set(app.commands) >= {"fit", "summary"}
    return {"lines": lines, "configs": configs, "wrong": len(wrong), "what": wrong[:5]}
