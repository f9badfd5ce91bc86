"""The README's commands exist as written, and CI runs what it promises."""

import re
from pathlib import Path

import click
import pytest

from kerasnorm.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = r"(?:`|&& |-m |    )(kerasnorm [a-z-]+(?: [^`&\n,]+)?)(?=[`\n,])"
COMMANDS = sorted(set(re.findall(COMMAND, README)))


def test_the_two_commands_stand_there_as_ci_runs_them():
    assert '    pip install -c constraints.txt ".[torch]" && kerasnorm fit --norm gn' in README
    assert '    pip install -c constraints.txt -e ".[all,dev]" && pytest\n' in README
    ci = (ROOT / ".ci" / "run").read_text()
    assert '-c constraints.txt -e ".[all,dev]"' in ci
    assert "\npytest" in ci


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_parses(line):
    name, *words = line.split()[1:]
    command = app.commands[name]
    words = [word for word in words if word != "…"]
    if "--help" not in words and words[-1:] != ["--norm"]:
        parser = command.make_parser(click.Context(command))
        parser.parse_args(words)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


PAGES = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page):
    line = r"(?:^    .*?|`)\bkerasnorm ([a-z-]+)( [^`\n]*)?(?:`|$)"
    for name, rest in re.findall(line, page.read_text(encoding="utf-8"), re.MULTILINE):
        if name in app.commands and "…" not in rest and "OPTIONS" not in rest:
            command = app.commands[name]
            command.make_parser(click.Context(command)).parse_args(rest.partition("#")[0].split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
