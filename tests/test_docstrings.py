"""Public docstrings have one form, and names are found, all of it without CuPy."""

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import maskq_cupy

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["maskq_cupy", "maskq_cupy.reference", "maskq_cupy.cp", "maskq_cupy.flashmask"]
MODULES += ["maskq_cupy.flex", "maskq_cupy.fa4"] if importlib.util.find_spec("torch") else []
WITHOUT_CHECKS = {"dq_write_order"}  # and so without errors of its own


def public_functions(module):
    """Return the functions in `__all__` of a module, but for those of sizes alone."""
    module = importlib.import_module(module)
    for name in module.__all__:
        found = getattr(module, name)
        others = name.endswith("_nbytes") or name in WITHOUT_CHECKS
        if inspect.isfunction(found) and not others:
            yield pytest.param(found, id=f"{module.__name__}.{name}")


FUNCTIONS = [function for module in MODULES for function in public_functions(module)]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_form(function):
    """What it does in a sentence; every argument in the order of the signature; what it raises."""
    text = inspect.getdoc(function)
    assert re.match(r"[A-Z][^\n]+(\n[^\n]+)?[.:?]\n", text)
    parameters = list(inspect.signature(function).parameters)
    if parameters:
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE)
        assert section, "no Args"
        described = re.findall(r"^    (?:\*\*)?(\w+(?:, \w+)*): ", section[1], re.MULTILINE)
        assert ", ".join(described).split(", ") == parameters
    assert re.search(r"^Raises:\n    \w*(Error|:)", text, re.MULTILINE), "no Raises"


WITHOUT_CUPY = """
import sys
sys.modules["cupy"] = sys.modules["torch"] = None
import io, pydoc, rlcompleter
import maskq_cupy
completer = rlcompleter.Completer({"maskq_cupy": maskq_cupy})
for name in maskq_cupy.__all__:
    assert name in dir(maskq_cupy), name
    found = getattr(maskq_cupy, name)
    assert pydoc.render_doc(found, renderer=pydoc.plaintext), name
    matches = []
    while match := completer.complete(f"maskq_cupy.{name}", len(matches)):
        matches.append(match.rstrip("()"))
    assert f"maskq_cupy.{name}" in matches, name
print(pydoc.render_doc(maskq_cupy, renderer=pydoc.plaintext))
"""


def test_names_are_found_without_cupy():
    """By dir, by the completion of an interactive Python, and by help."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CUPY], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in maskq_cupy.__all__)
