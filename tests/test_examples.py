"""Each example runs, where what it needs is installed, and prints one result line."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# That of several processes runs in test_ranks.py; that of transformers on the CPU too.
LONG = [ROOT / "examples" / f"{name}.py" for name in ("context_parallel", "transformers_packed")]
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {*LONG})


def skip_without(example):
    """Skip where the framework that the example imports is missing, or built without CUDA."""
    if "import paddle" in example.read_text():
        if not pytest.importorskip("paddle").device.is_compiled_with_cuda():
            pytest.skip("paddle is built without CUDA")
    elif not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch finds no GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example):
    skip_without(example)
    check_example(example)


def check_example(example):
    done = subprocess.run(
        [sys.executable, str(example)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, done.stdout
    assert " as " in done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", [e for e in EXAMPLES if "reference." in e.read_text()])
def test_example_without_a_gpu(example):
    """Those that can also compute by the reference."""
    pytest.importorskip("paddle" if "import paddle" in example.read_text() else "torch")
    check_example(example)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_imports_what_there_is(example):
    """Without a GPU too: a script of under 60 lines, whose names of this package exist."""
    check_form(example, lines=60)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_example_of_transformers(device):
    """Where there is a GPU it runs there, and otherwise on the CPU."""
    pytest.importorskip("transformers")
    if (device == "cuda") != pytest.importorskip("torch").cuda.is_available():
        pytest.skip(f"the other device than {device} is used here")
    assert f"on the {device}" in check_example(LONG[1])


@pytest.mark.parametrize("example", LONG, ids=lambda path: path.stem)
def test_long_example(example):
    check_form(example, lines=120)


def check_form(example, lines):
    text = example.read_text()
    assert len(text.splitlines()) < lines
    code = compile(text, str(example), "exec")
    assert "main" in code.co_names
    framework = "paddle" if "import paddle" in text else "torch"
    needed = ("cupy", framework, *(["transformers"] if "from transformers" in text else []))
    for name in needed:
        pytest.importorskip(name)
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(example.stem, example)
    )
    module.__spec__.loader.exec_module(module)
    assert callable(module.main)
