"""The README's Python blocks run; those that need a GPU, on one."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_blocks_are_found():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize(
    "block", [pytest.param(b, marks=pytest.mark.gpu if "cuda" in b else ()) for b in BLOCKS]
)
def test_block(block, capsys):
    if "import torch" in block:
        pytest.importorskip("torch")
    exec(compile(block, str(README), "exec"), {})
    printed = capsys.readouterr().out
    if "print" in block:
        assert "[3, 3, 3, 5, 5, 5, 5]" in printed
        assert "[0, 1, 2, 3, 3, 3, 4]" in printed
