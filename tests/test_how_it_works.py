"""docs/how_it_works.md is true: its code prints what it says, and its drawing is drawn here."""

import doctest
import re
from pathlib import Path

import numpy as np
import oracle
import pytest

from maskq_cupy import reference

PAGE = (Path(__file__).parent.parent / "docs" / "how_it_works.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
Q_LENS, K_LENS = [4, 4], [4, 6]


@pytest.fixture(scope="module")
def names():
    """What the page's code has defined, after each block printed what stands there."""
    runner, names = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST), {}
    for number, block in enumerate(CODE):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {number}", None, None)
        assert test.examples
        assert runner.run(test, clear_globs=False).failed == 0
        names = test.globs
    return names


def drawn(seen):
    """Return the rows' intervals with a bar at each end, and the columns' bounds under them."""
    row_num, column_num = seen.shape
    starts = seen.argmax(axis=1)
    ends = column_num - seen[:, ::-1].argmax(axis=1)
    lts = row_num - seen[::-1].argmax(axis=0)
    ute = seen.argmax(axis=0)
    lines = ["row  starts  ends     " + " ".join(map(str, range(column_num)))]
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        keys = "|" + " ".join("x" * (end - start)) + "|"
        lines.append(f"{row:>3}  {start:>6}  {end:>4}    " + "  " * start + keys)
    for name, bound in (("LTS", lts), ("UTE", ute)):
        lines.append(f"{name:>18}    " + " ".join(map(str, bound)))
    return "\n".join(lines) + "\n"


def test_drawing():
    """From the definition, pair by pair."""
    seen = oracle.visible(Q_LENS, K_LENS, window=(3, 0))
    assert re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) == [drawn(seen)]


def test_code(names):
    """Its pack is the drawing's, and so are the staircases that the code gives as numbers."""
    assert [np.diff(names[f"cu_seqlens_{side}"]).tolist() for side in "qk"] == [Q_LENS, K_LENS]
    rows = np.arange(4)
    seen = [[np.maximum(rows + o - 3, 0), rows + o + 1] for o in (0, 2)]  # in each sequence
    intervals = np.concatenate([np.stack(pair, axis=1) for pair in seen])
    cuts = names["cu_seqlens_q"], names["cu_seqlens_k"]
    ends, starts = reference._staircases(*reference._visible_keys(*cuts, intervals))
    assert ends.tolist() == names["ends"].tolist()
    assert starts.tolist() == names["starts"].tolist()


def test_numbers_in_the_text(names):
    """Row 6 and column 7, as sentences have them."""
    starts, ends, columns = names["starts"], names["ends"], names["columns"]
    assert f"`E(6)` is {ends[6]}, and `S(6)` is {starts[6]}" in PAGE
    (q_start, q_end), (kv_start, kv_end) = names["cu_seqlens_q"][1:], names["cu_seqlens_k"][1:]
    offset = (kv_end - kv_start) - (q_end - q_start)
    assert f"at key {6 - q_start} + {offset} = {6 - q_start + offset} of that sequence" in PAGE
    assert f"`q_start` is {q_start}, `q_len` is {q_end - q_start} and `offset` is {offset}" in PAGE
    assert f"Column 7 has `j = {7 - kv_start}` in sequence 1" in PAGE
    assert f"{tuple(columns[7].tolist())}\n>>> columns[7]" in PAGE
