"""Each example runs, where what it needs is installed, and prints one result line."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# That of several processes runs in test_ranks.py; that of transformers on the CPU too.
LONG = [ROOT / "examples" / f"{name}.py" for name in ("context_parallel", "transformers_packed")]
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {*LONG})
BY_REFERENCE = [path for path in EXAMPLES if "reference." in path.read_text()]


# Run as where CuPy is not installed: its import fails, and no search finds it.
WITHOUT_CUPY = """
import runpy, sys
sys.modules["cupy"] = None
runpy.run_path({path!r}, run_name="__main__")
"""


def framework_of(example):
    names = re.findall(r"^import (paddle|jax|torch)$", example.read_text(), re.MULTILINE)
    assert len(names) == 1
    return names[0]


def skip_without(example):
    """Skip where the framework that the example imports is missing, or built without CUDA."""
    framework = framework_of(example)
    package = pytest.importorskip(framework)
    if framework == "paddle" and not package.device.is_compiled_with_cuda():
        pytest.skip("paddle is built without CUDA")
    if framework == "jax" and package.default_backend() != "gpu":
        pytest.skip("jax finds no GPU")
    if framework == "torch" and not package.cuda.is_available():
        pytest.skip("torch finds no GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example):
    skip_without(example)
    check_example(example)


def check_example(example, *, without_cupy=False):
    code = ["-c", WITHOUT_CUPY.format(path=str(example))] if without_cupy else [str(example)]
    done = subprocess.run(
        [sys.executable, *code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    assert " as " in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", BY_REFERENCE, ids=lambda path: path.stem)
def test_example_without_cupy(example):
    """Those that can also compute by the reference, and so need no GPU."""
    pytest.importorskip(framework_of(example))
    check_example(example, without_cupy=True)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_imports_what_there_is(example):
    """Without a GPU too: a script of under 70 lines, whose names of this package exist."""
    check_form(example, lines=70)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_example_of_transformers(device):
    """Where there is a GPU it runs there, and otherwise on the CPU."""
    pytest.importorskip("transformers")
    if device == "cuda":
        skip_without(LONG[1])
    assert f"on the {device}" in check_example(LONG[1], without_cupy=device == "cpu")


@pytest.mark.parametrize("example", LONG, ids=lambda path: path.stem)
def test_long_example(example):
    check_form(example, lines=120)


def check_form(example, lines):
    text = example.read_text()
    assert len(text.splitlines()) < lines
    code = compile(text, str(example), "exec")
    assert "main" in code.co_names
    head = re.match(r'"""[A-Z].*?"""', text, re.DOTALL)[0]
    assert re.search(r"^Needs ", head, re.MULTILINE), "what it needs"
    assert re.search(r"^Prints ", head, re.MULTILINE), "what it prints"
    for name in (framework_of(example), *(["transformers"] if "from transformers" in text else [])):
        pytest.importorskip(name)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(example.stem, example)
    )
    module.__spec__.loader.exec_module(module)
    assert callable(module.main)
