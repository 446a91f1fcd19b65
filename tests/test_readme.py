"""The README's Python blocks run; those that need a GPU, on one."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from maskq_cupy import reference

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


def test_line_of_flashmask():
    """It gives Paddle's function the bounds, in its form, and tells it that they hold causality."""
    paddle = pytest.importorskip("paddle")
    line = re.search(r"`(flashmask_attention\(.*?\))` \|", README.read_text())[1]
    columns = reference.get_attn_mask_q([0, 3, 5], [0, 3, 7])
    names = {"paddle": paddle, "columns": columns, "flashmask_attention": lambda *_, **given: given}
    given = eval(line, names | dict.fromkeys("qkv"))
    assert given.pop("causal") is False
    (bounds,) = given.values()
    assert [*given] == ["startend_row_indices"]
    assert bounds.shape == [1, 1, 7, 2]
    assert (bounds.numpy()[0, 0] == columns).all()


@pytest.mark.parametrize("word", ["column", "LTS", "UTE", "N", "Q", "B"])
def test_words_are_said_before_they_are_used(word):
    """Each in a sentence of the text above the first code, in bold or as code."""
    head = README.read_text().partition("```")[0]
    assert re.search(rf"(\*\*{word}\*\*|`{word}`)[^.]* [^.]*\.", head)


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
