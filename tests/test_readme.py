"""The README's Python blocks run; those that need a GPU, on one."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_blocks_are_found():
    assert len(BLOCKS) == 4


@pytest.mark.parametrize(
    "block", [pytest.param(b, marks=pytest.mark.gpu if "cuda" in b else ()) for b in BLOCKS]
)
def test_block(block, capsys):
    if "import torch" in block:
        pytest.importorskip("torch")
    if "fa4" in block:
        pytest.importorskip("flash_attn.cute")
    names = {}
    exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    if "print" in block:
        assert "[3, 3, 3, 5, 5, 5, 5]" in printed
        assert "[0, 1, 2, 3, 3, 3, 4]" in printed
    if "fa4" in block:
        assert_as_each_document_alone(names)


def assert_as_each_document_alone(names):
    """Compare the attention of the block, and the gradients, with torch's of each document."""
    import torch

    inputs = names["inputs"]
    alone = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[:, start:end].transpose(1, 2) for x in inputs), is_causal=True
        ).transpose(1, 2)
        for start, end in pairwise(names["cu_seqlens"].tolist())
    ]
    expected = torch.cat(alone, dim=1)
    gradients = torch.autograd.grad(expected.sum(), inputs)
    for got, right in zip(
        (names["out"], *(x.grad for x in inputs)), (expected, *gradients), strict=True
    ):
        scale = right.abs().max().item()
        torch.testing.assert_close(got, right, atol=2e-2 * scale, rtol=2e-2)
