"""The guide's commands parse, its links lead somewhere, and it shows every norm."""

import re
from pathlib import Path

import click
import pytest

from kerasnorm.cli import app
from kerasnorm.norms import NORMS

FOLDER = Path(__file__).parent.parent / "docs" / "guide"
GUIDE = (FOLDER / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    kerasnorm (.+)$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    name, *words = line.split()
    command = app.commands[name]
    command.make_parser(click.Context(command)).parse_args(words)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", GUIDE)
    assert len(targets) > 8
    assert [target for target in targets if not (FOLDER / target).exists()] == []


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_every_norm_has_its_picture(norm):
    assert f"](explain/{norm}.png)" in GUIDE
    assert f"    kerasnorm explain {norm}\n" in GUIDE


def test_no_place_was_left_to_fill():
    assert "@@" not in GUIDE
