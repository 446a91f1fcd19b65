"""What type checkers are told: of every public name, and so that a wrong call is an error."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "typed" / "every_public_name.py"
MODULES = {"mq": "__init__", **{n: n for n in ("cp", "fa4", "flashmask", "flex", "reference")}}


def exported(module):
    """Return `__all__` as a file has it, without importing what it needs."""
    for node in ast.parse((ROOT / "maskq_cupy" / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no __all__")


@pytest.mark.parametrize(("name", "module"), MODULES.items())
def test_every_public_name_is_used(name, module):
    used = {
        node.attr
        for node in ast.walk(ast.parse(FILE.read_text()))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == name
    }
    assert used >= exported(module) - {*MODULES}


WRONG = """\
from typing import assert_type
import numpy as np
import torch
import maskq_cupy as mq
from maskq_cupy import cp, flex, reference
def f(cu: np.ndarray, out: torch.Tensor) -> None:
    mq.get_attn_mask_q(cu, cu, windows=(1, 0))  # E
    mq.get_attn_mask_q(cu, cu, window=(1, 0, 0))  # E
    mq.to_dense(cu, "7")  # E
    mq.get_attn_mask_q(cu, cu, out=out)
    assert_type(mq.get_attn_mask_q(cu, cu, out=cu), int)  # E
    assert_type(mq.cu_seqlens_from_padding(cu, out=(cu, cu)), mq.CuSeqlens)  # E
    assert_type(reference.to_dense(cu, 7), mq.Blocks)  # E
    cp.cp_chunks(cu, cu)  # E
    flex.block_mask(cu, 7, refine=3)  # E
"""
WRONG_WHERE_TORCH_IS = """\
    assert_type(mq.get_attn_mask_q(cu, cu, out=out), np.ndarray)  # E
    assert_type(flex.mask_mod(cu).columns, np.ndarray)  # E
"""


@pytest.mark.slow
def test_wrong_calls_are_errors(tmp_path):
    """By mypy, with the options that `make lint` gives it for the file above."""
    pytest.importorskip("mypy")
    lines = WRONG + (WRONG_WHERE_TORCH_IS if importlib.util.find_spec("torch") else "")
    file = tmp_path / "wrong.py"
    file.write_text(lines)
    options = [
        "--strict",
        "--config-file=",
        "--ignore-missing-imports",
        "--follow-imports",
        "silent",
    ]
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(tmp_path), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error: " in line}
    wanted = {n for n, line in enumerate(lines.splitlines(), 1) if line.endswith("# E")}
    assert found == wanted, done.stdout + done.stderr
