"""docs/api.md is made of the docstrings: `make docs` writes it, this test compares."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import kerasnorm
from kerasnorm.analysis.answer import Answer
from kerasnorm.analysis.inputs import InputPreprocessing
from kerasnorm.analysis.landscape import GradientLines, Landscape, Surface
from kerasnorm.analysis.norm import BatchOfOne, Explanation, Worked
from kerasnorm.analysis.robustness import ModelRobustness, Robustness
from kerasnorm.analysis.statistics import LayerStatistics, NetworkStatistics, WeightHistogram
from kerasnorm.benchmark.cost import NormCost
from kerasnorm.conversion.result import Conversion, ConvertedLayer
from kerasnorm.norms import NormFacts

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
NAMES = sorted(set(kerasnorm.__all__) - {"__version__"}, key=str.lower)
RESULTS = (
    *(Answer, Explanation, NormFacts, Worked, BatchOfOne, NormCost, InputPreprocessing),
    *(Landscape, GradientLines, Surface, NetworkStatistics, LayerStatistics, WeightHistogram),
    *(Robustness, ModelRobustness, Conversion, ConvertedLayer),
)
HEAD = """# kerasnorm in Python

Made from the docstrings by `make docs`; a test keeps it current. All names are those of
`import kerasnorm`; what the functions return is described below them.
"""


def signature(function):
    """As it stands in the source: `inspect.signature` spells types otherwise on each Python."""
    node = ast.parse(inspect.getsource(function)).body[0]
    text = f"({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
    return re.sub(r"'([A-Z]\w*|\w+(?:\.\w+)+(?: \| None)?)'", r"\1", text)


def entry(name, thing):
    text = textwrap.dedent(inspect.getdoc(thing) or "").strip()
    parts = [f"### {name}"]
    if not inspect.isclass(thing):
        parts.append(f"```python\n{name}{signature(thing)}\n```")
    parts.append(f"```text\n{text}\n```")
    methods = [
        member
        for key, member in vars(thing).items()
        if inspect.isclass(thing) and not key.startswith("_")
        if inspect.isfunction(member) or isinstance(member, (property, classmethod))
    ]
    for member in methods:
        bare = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        summary = (inspect.getdoc(bare) or "").split("\n\n")[0].replace("\n", " ")
        parts.append(f"- `{bare.__name__}`: {summary}")
    return "\n\n".join(parts)


def page():
    names = "\n\n".join(entry(f"kerasnorm.{name}", getattr(kerasnorm, name)) for name in NAMES)
    results = "\n\n".join(entry(f"{thing.__name__}", thing) for thing in RESULTS)
    return f"{HEAD}\n## What you call\n\n{names}\n\n## What you get\n\n{results}\n"


def test_the_page_is_current(request):
    text = page()
    if request.config.getoption("--update-golden"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(text, encoding="utf-8", newline="\n")
    assert PAGE.read_text(encoding="utf-8") == text, "if this is meant: make docs"


def test_light_names_do_not_need_keras_before_they_are_used():
    for home in set(kerasnorm._HOMES.values()):
        assert importlib.util.find_spec(f"kerasnorm.{home}") is not None
