"""cu_seqlens and spans from what people have: the reference, the kernels on the CPU, on a GPU."""

import doctest

import numpy as np
import oracle
import pytest
from on_cpu import emulator

import maskq_cupy
from maskq_cupy import plan, plan_cu_seqlens, reference, reference_cu_seqlens

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")
SANITIZERS = pytest.mark.parametrize(
    ("sanitizer", "count"), [("plain", 150), ("address", 60), ("thread", 15)]
)
INT64_MAX = 2**63 - 1


def batch_of(tokens):
    """Return tokens (N,) or (b, L) as the oracle takes them, by batch row."""
    return np.atleast_2d(tokens).tolist()


@pytest.mark.parametrize("module", [reference_cu_seqlens, plan_cu_seqlens])
def test_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


# Worked values


IDS = [
    ([], 2, None, [0, 0, 0]),
    ([5], 0, None, "max_sequence_num must be at least 1, the documents of ids, got 0"),
    ([5], 1, None, [0, 1]),
    ([7, 7, 9], 3, None, [0, 2, 3, 3]),
    ([7, 9, 7], 3, None, [0, 1, 2, 3]),
    ([7, 7, 0, 0], 2, 0, [0, 2, 2]),
    ([7, 7, 0, 0], 2, None, [0, 2, 4]),
    ([7, 7, 0, 0], 1, 0, [0, 2]),
    ([0, 0], 1, 0, [0, 0]),
    ([[3, 3], [3, 4]], 4, None, [0, 2, 3, 4, 4]),
    ([[], []], 1, None, [0, 0]),
    ([7, 0, 8], 3, 0, "padding_id = 0 at the end only, got ids[1] = 0 before ids[2] = 8"),
]


@pytest.mark.parametrize(("ids", "most", "padding_id", "expected"), IDS)
def test_ids(ids, most, padding_id, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            reference.cu_seqlens_from_ids(ids, most, padding_id)
        assert expected in str(error.value)
        return
    found = reference.cu_seqlens_from_ids(ids, most, padding_id)
    np.testing.assert_array_equal(found, np.array(expected, np.int32), strict=True)


POSITIONS = [
    ([], 1, [0, 0]),
    ([0, 1, 2, 0, 1], 3, [0, 3, 5, 5]),
    ([4, 5, 6, 6, 7], 2, [0, 3, 5]),
    ([[0, 1], [2, 3]], 2, [0, 2, 4]),
    ([INT64_MAX, -INT64_MAX - 1, -INT64_MAX], 2, [0, 1, 3]),
    ([0, 0, 0], 2, "max_sequence_num must be at least 3, the documents of position_ids, got 2"),
]


@pytest.mark.parametrize(("positions", "most", "expected"), POSITIONS)
def test_positions(positions, most, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            reference.cu_seqlens_from_positions(positions, most)
        return
    found = reference.cu_seqlens_from_positions(positions, most)
    np.testing.assert_array_equal(found, np.array(expected, np.int32), strict=True)


SPANS = [
    ([], 1, -1, [[0, 0]]),
    ([-1, -1], 2, -1, [[0, 0], [0, 0]]),
    ([-1, 3, 3, 4, -1], 3, -1, [[1, 3], [3, 4], [4, 4]]),
    ([0, 0, 1, 1], 1, 0, [[2, 4]]),
    ([[1, 1], [1, 0]], 3, 0, [[0, 2], [2, 3], [3, 3]]),
    ([1, -1, 1], 1, -1, "max_span_num must be at least 2, the spans of ids, got 1"),
    ([-1], 0, -1, np.zeros((0, 2))),
]


@pytest.mark.parametrize(("ids", "most", "text_id", "expected"), SPANS)
def test_spans(ids, most, text_id, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            reference.spans_from_ids(ids, most, text_id)
        return
    found = reference.spans_from_ids(ids, most, text_id)
    np.testing.assert_array_equal(found, np.array(expected, np.int32), strict=True)


PADDING = [
    ([[0, 1, 1, 0]], [0, 1, 1, 3, 3, 4], [0, 0, 1, 3, 4, 4]),
    ([[0, 0]], [0, 2, 2, 2, 2, 2], [0, 0, 2, 2, 2, 2]),
    ([[1]], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]),
    ([[0, 5], [-5, 0]], [0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 4], [0, 0, 1, 2, 2, 2, 2, 2, 3, 4, 4]),
    (np.zeros((0, 3), bool), [0], [0]),
    (np.zeros((1, 0), bool), [0] * 6, [0] * 6),
]


@pytest.mark.parametrize(("mask", "rows", "keys"), PADDING)
def test_padding(mask, rows, keys):
    found = reference.cu_seqlens_from_padding(mask)
    np.testing.assert_array_equal(found.cu_seqlens_q, np.array(rows, np.int32), strict=True)
    np.testing.assert_array_equal(found.cu_seqlens_k, np.array(keys, np.int32), strict=True)


def test_padding_with_a_hole():
    with pytest.raises(ValueError) as error:  # noqa: PT011
        reference.cu_seqlens_from_padding([[1, 1, 1, 1, 0], [0, 1, 0, 0, 1]])
    message = "mask must be 0 before and behind a batch row's tokens only, got mask[1, 2] = 0"
    assert str(error.value) == f"{message} between those at 1 and 4"


def test_slots():
    found = reference.cu_seqlens_from_slots([0, 2, 2, 5], [0, 2, 4, 8], [0, 1, 1, 2], [0, 4, 4, 5])
    assert found.cu_seqlens_q.tolist() == [0, 2, 2, 2, 2, 2, 4, 7, 7, 8]
    assert found.cu_seqlens_k.tolist() == [0, 1, 4, 4, 4, 4, 4, 5, 5, 5]
    none = reference.cu_seqlens_from_slots([0], [0], [0], [0])
    assert [cuts.tolist() for cuts in none] == [[0], [0]]


# Errors


def test_forms_of_tokens():
    three_axes = np.zeros((3, 1, 4), np.int64)
    expected = r"must be int32 or int64 of shape \(N,\) or \(b, L\), got"
    for name, function in (
        ("ids", reference.cu_seqlens_from_ids),
        ("ids", reference.spans_from_ids),
        ("position_ids", reference.cu_seqlens_from_positions),
    ):
        with pytest.raises(ValueError, match=rf"{name} {expected} int64 of shape \(3, 1, 4\)"):
            function(three_axes, 3)
        with pytest.raises(ValueError, match=rf"{name} {expected} int64 of shape \(\)"):
            function(7, 3)
        with pytest.raises(TypeError, match=rf"{name} {expected} float64 of shape \(2,\)"):
            function([0.5, 1.0], 3)
        with pytest.raises(TypeError, match=f"{name} must hold ints below"):
            function([2**64], 3)


def test_numbers():
    ids = [1, 2]
    with pytest.raises(ValueError, match=r"max_sequence_num must be in \[0, .*got -1"):
        reference.cu_seqlens_from_ids(ids, -1)
    with pytest.raises(ValueError, match=r"max_sequence_num must be in \[0, 2\*\*31 - 2\]"):
        reference.cu_seqlens_from_positions(ids, 2**31 - 1)
    with pytest.raises(TypeError, match="max_span_num must be an int, got float"):
        reference.spans_from_ids(ids, 1.0)
    with pytest.raises(ValueError, match=r"text_id must be in \[-2\*\*63, 2\*\*63 - 1\]"):
        reference.spans_from_ids(ids, 1, 2**63)
    with pytest.raises(TypeError, match="padding_id must be an int, got str"):
        reference.cu_seqlens_from_ids(ids, 3, "pad")
    message = r"padding_id goes with ids of shape \(N,\), got ids of shape \(1, 2\)"
    with pytest.raises(ValueError, match=message):
        reference.cu_seqlens_from_ids([ids], 3, 2)


def test_forms_of_masks():
    expected = r"mask must be bool or of an int dtype, of shape \(b, L\), got"
    with pytest.raises(TypeError, match=rf"{expected} float64 of shape \(1, 2\)"):
        reference.cu_seqlens_from_padding([[0.0, 1.0]])
    with pytest.raises(ValueError, match=rf"{expected} int64 of shape \(2,\)"):
        reference.cu_seqlens_from_padding([0, 1])
    with pytest.raises(ValueError, match=rf"{expected} bool of shape \(1, 1, 3, 3\)"):
        reference.cu_seqlens_from_padding(np.ones((1, 1, 3, 3), bool))


def test_bad_slots():
    good = [0, 2, 3], [0, 4, 6], [0, 2, 3], [0, 4, 6]

    def message(i, bad, kind=ValueError):
        with pytest.raises(kind) as error:
            reference.cu_seqlens_from_slots(*good[:i], bad, *good[i + 1 :])
        return str(error.value)

    too_long = "must hold sequences no longer than their slots, got 3 in a slot of 2 in sequence 1"
    assert message(0, [0, 2, 5]) == f"cu_seqlens_q {too_long}"
    assert message(2, [0, 2, 5]) == f"cu_seqlens_k {too_long}"
    assert "cu_seqlens_q_padded must start at 0" in message(1, [1, 4, 6])
    assert "cu_seqlens_k must not decrease" in message(2, [0, 2, 1])
    assert "cu_seqlens_k_padded must have as many entries as cu_seqlens_q, got 2 and 3" in message(
        3, [0, 4]
    )
    assert "cu_seqlens_q_padded must be int32 or int64 of shape (B + 1,)" in message(
        1, [0.0, 4.0, 6.0], TypeError
    )


def test_bad_splits():
    columns = np.zeros((6, 2), np.int32)
    with pytest.raises(ValueError, match="columns must be a multiple of b = 4, got 6"):
        reference.split_columns(columns, 4, 8)
    with pytest.raises(ValueError, match="q_token_num must be a multiple of b = 3, got 8"):
        reference.split_columns(columns, 3, 8)
    with pytest.raises(ValueError, match=r"b must be in \[1, 2\*\*31 - 1\], got 0"):
        reference.split_columns(columns, 0, 8)
    with pytest.raises(ValueError, match=r"columns must be int32 of shape \(N, 2\) or"):
        reference.split_columns(columns.reshape(2, 1, 3, 2), 1, 8)


# Against the definition


def random_tokens(rng, tokens, kind):
    """Return ids or positions, (N,) or (b, L), int32 or int64: long runs, short ones, any bits."""
    dtype = rng.choice([np.int32, np.int64])
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    shape = (int(rng.integers(0, tokens + 1)),)
    if rng.random() < 0.4:
        length = int(rng.choice([1, 2, 31, 32, 33, max(tokens, 1)]))
        shape = (int(rng.integers(0, tokens // length + 1)), length)
    if rng.random() < 0.2:
        return rng.integers(0, 2, shape).astype(dtype)
    begins = rng.random(shape) < rng.choice([0, 0.01, 0.1, 0.6, 1])
    if kind == "ids":
        values = rng.choice([-1, 0, 1, 5, lowest, highest], shape)
    else:
        values = rng.choice([0, 0, 0, 3, highest - 2, lowest], shape)
    flat, starts = np.zeros(shape, dtype).ravel(), begins.ravel()
    for i in range(flat.size):
        if i == 0 or starts[i]:
            flat[i] = values.ravel()[i]
        elif kind == "ids":
            flat[i] = flat[i - 1]
        else:
            flat[i] = lowest if flat[i - 1] == highest else flat[i - 1] + 1
    return flat.reshape(shape)


def random_mask(rng, tokens):
    """Return a padding mask (b, L), some rows of which have no tokens or holes."""
    dtype = rng.choice(["bool", "uint8", "int8", "int16", "int32", "int64"])
    length = int(rng.choice([0, 1, 5, 16, 33, tokens]))
    batch = int(rng.integers(0, min(tokens // max(length, 1), 30) + 2))
    column = np.arange(length)
    first, end = np.sort(rng.integers(0, length + 1, (2, batch, 1)), axis=0)
    is_token = (column >= first) & (column < end)
    if rng.random() < 0.3:
        is_token &= rng.random((batch, length)) < 0.8
    bits = rng.integers(0, 8 * np.dtype(dtype).itemsize, (batch, length))
    return is_token if dtype == "bool" else (is_token.astype(np.int64) << bits).astype(dtype)


def document_num(tokens, begins):
    return len(oracle.runs(batch_of(tokens), begins))


@pytest.mark.parametrize("seed", range(3))
def test_cuts_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        ids, positions = random_tokens(rng, 70, "ids"), random_tokens(rng, 70, "positions")
        more = int(rng.integers(0, 4))
        most = document_num(ids, oracle.is_another) + more
        found = reference.cu_seqlens_from_ids(ids, most)
        assert found.dtype == np.int32
        assert found.tolist() == oracle.cu_seqlens_from_ids(batch_of(ids), most)
        most = document_num(positions, oracle.is_no_successor) + more
        found = reference.cu_seqlens_from_positions(positions, most)
        assert found.tolist() == oracle.cu_seqlens_from_positions(batch_of(positions), most)


@pytest.mark.parametrize("seed", range(3))
def test_padding_ids_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        ids = np.abs(random_tokens(rng, 40, "ids").ravel() // 2) + 1
        ids = np.append(ids, np.zeros(int(rng.integers(0, 5)), ids.dtype))
        most = document_num(ids, oracle.is_another)
        found = reference.cu_seqlens_from_ids(ids, most, 0)
        assert found.tolist() == oracle.cu_seqlens_from_ids([ids.tolist()], most, 0)


@pytest.mark.parametrize("seed", range(3))
def test_spans_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        ids = random_tokens(rng, 70, "ids")
        text_id = int(rng.choice([-1, 0, 1, 77]))
        most = document_num(ids, oracle.is_another)
        found = reference.spans_from_ids(ids, most, text_id)
        assert found.dtype == np.int32
        assert found.tolist() == oracle.spans_from_ids(batch_of(ids), most, text_id)


@pytest.mark.parametrize("seed", range(3))
def test_padding_is_that_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        mask = random_mask(rng, 40)
        rows, keys = oracle.cu_seqlens_from_padding(mask.tolist())
        try:
            found = reference.cu_seqlens_from_padding(mask)
        except ValueError as error:
            assert "tokens only" in str(error)  # noqa: PT017
            assert has_hole(mask)
            continue
        assert not has_hole(mask)
        assert found.cu_seqlens_q.tolist() == rows
        assert found.cu_seqlens_k.tolist() == keys


def has_hole(mask):
    changes = np.diff(np.pad((mask != 0).astype(int), ((0, 0), (1, 1))), axis=1)
    return bool(((changes == 1).sum(axis=1) > 1).any())


def random_slots(rng, batch, is_cut=False):
    """Return four cuts; a sequence is longer than its slot only if is_cut."""
    slots = [rng.integers(0, 9, batch) for _ in range(2)]
    lengths = [rng.integers(0, slot + 1 + 3 * is_cut) for slot in slots]
    four = lengths[0], slots[0], lengths[1], slots[1]
    dtypes = rng.choice([np.int32, np.int64], 4)
    return [np.append(0, np.cumsum(n)).astype(d) for n, d in zip(four, dtypes, strict=True)]


def test_slots_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(100):
        slots = random_slots(rng, int(rng.integers(0, 9)))
        expected = oracle.cu_seqlens_from_slots(*(cuts.tolist() for cuts in slots))
        found = reference.cu_seqlens_from_slots(*slots)
        assert tuple(cuts.tolist() for cuts in found) == expected


def test_splits_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(60):
        columns, b, row_num = random_split(rng, 40)
        expected = oracle.split_columns(columns, b, row_num)
        found = reference.split_columns(columns[None, None], b, row_num)
        np.testing.assert_array_equal(found, expected, strict=True)


def random_split(rng, tokens):
    """Return columns of any bits around the rows, a number of parts and of rows."""
    b = int(rng.choice([1, 2, 3, 7]))
    part_columns, part_rows = (int(n) for n in rng.integers(0, tokens // b + 1, 2))
    row_num = b * part_rows
    columns = rng.integers(-2, row_num + 3, (b * part_columns, 2)).astype(np.int32)
    columns[rng.random(columns.shape) < 0.05] = rng.choice([-(2**31), 2**31 - 1])
    return columns, b, row_num


# Composed: the mask itself


def test_ids_give_the_mask_of_documents():
    rng = np.random.default_rng(1)
    for _ in range(60):
        lens = rng.integers(1, 9, int(rng.integers(1, 6)))
        ids = np.repeat(rng.permutation(len(lens)), lens) + 1
        padding = int(rng.integers(0, 4))
        ids = np.append(ids, np.zeros(padding, ids.dtype))
        cuts = reference.cu_seqlens_from_ids(ids, len(lens) + 2, padding_id=0)
        columns = reference.get_attn_mask_q(cuts, cuts, kv_token_num=len(ids))
        row, key = np.arange(len(ids))[:, None], np.arange(len(ids))
        expected = (ids[:, None] == ids) & (key <= row) & (ids != 0)
        np.testing.assert_array_equal(reference.to_dense(columns, len(ids)), expected)


def test_ids_of_images_give_the_spans_of_the_rule():
    """Text is causal; a token of an image sees all of its image too."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        ids = np.repeat(rng.integers(-1, 3, 12), rng.integers(1, 5, 12))
        n, number = len(ids), np.cumsum(np.append(0, np.diff(ids) != 0))
        spans = reference.spans_from_ids(ids, 14)
        columns = reference.get_attn_mask_q([0, n], [0, n], spans=spans)
        row, key = np.arange(n)[:, None], np.arange(n)
        same_image = (number[:, None] == number) & (ids != -1)
        np.testing.assert_array_equal(reference.to_dense(columns, n), (key <= row) | same_image)


def test_a_padded_batch_gives_the_mask_of_each_row():
    rng = np.random.default_rng(2)
    for _ in range(60):
        mask = random_mask(rng, 30) != 0
        if has_hole(mask) or not mask.size:
            continue
        batch, length = mask.shape
        window = [None, (3, 0)][int(rng.integers(0, 2))]
        cuts = reference.cu_seqlens_from_padding(mask)
        columns = reference.get_attn_mask_q(*cuts, window=window)
        parts = reference.split_columns(columns, batch, batch * length)
        row, key = np.arange(length)[:, None], np.arange(length)
        causal = (key <= row) if window is None else (key <= row) & (key >= row - 3)
        for part, is_token in zip(parts, mask, strict=True):
            found = reference.to_dense(part[0], length)
            np.testing.assert_array_equal(found, causal & is_token[:, None] & is_token)


def test_slots_give_the_mask_of_their_sequences():
    rng = np.random.default_rng(3)
    for _ in range(60):
        q, q_slots, k, k_slots = random_slots(rng, int(rng.integers(0, 5)))
        cuts = reference.cu_seqlens_from_slots(q, q_slots, k, k_slots)
        columns = reference.get_attn_mask_q(*cuts)
        expected = np.zeros((q_slots[-1], k_slots[-1]), bool)
        q_lens, k_lens = np.diff(q), np.diff(k)
        for b in range(len(q_lens)):
            for i in range(q_lens[b]):
                for j in range(k_lens[b]):
                    seen = j <= i + k_lens[b] - q_lens[b]
                    expected[q_slots[b] + i, k_slots[b] + j] = seen
        np.testing.assert_array_equal(reference.to_dense(columns, q_slots[-1]), expected)


# The kernels


class Calls:
    """Calls to run on the CPU in one process, and what is to come out."""

    def __init__(self, most_groups=plan_cu_seqlens.MOST_GROUPS):
        self._script, self._results, self._expected = emulator.Script(), [], []
        self.most_groups = most_groups

    def _run(self, make, *arguments, **named):
        with emulator.planning(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan_cu_seqlens, "MOST_GROUPS", self.most_groups)
            launches = make(*arguments, **named)
        for launch in launches if isinstance(launches, list) else [launches]:
            self._script.launch(launch)

    def _result(self, shape, expected, offset=0):
        handle = self._script.buffer(np.full(shape, -77, np.int32), offset)
        self._results.append(handle)
        self._expected.append(None if expected is None else np.reshape(expected, shape))
        return handle

    def _scratch(self, token_num):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan_cu_seqlens, "MOST_GROUPS", self.most_groups)
            nbytes = plan_cu_seqlens.cu_seqlens_scratch_nbytes(token_num)
        return self._script.buffer(np.full(nbytes, 0x5A, np.uint8))

    def add_runs(self, tokens, shape, expected, **kind):
        given = self._script.buffer(tokens, offset=tokens.itemsize * (len(self._expected) % 2))
        form = plan_cu_seqlens.Tokens(
            given, tokens.dtype == np.int64, tokens.size, tokens.shape[-1]
        )
        entries = self._result(shape, expected, 8 * (len(self._expected) % 2))
        scratch = self._scratch(tokens.size)
        self._run(plan_cu_seqlens.run_launches, form, entries, shape[0], scratch, **kind)

    def add_ids(self, ids, most, padding_id=None):
        expected = oracle.cu_seqlens_from_ids(batch_of(ids), most, padding_id)
        self.add_runs(ids, (most + 1,), expected, padding_id=padding_id)

    def add_positions(self, positions, most):
        expected = oracle.cu_seqlens_from_positions(batch_of(positions), most)
        self.add_runs(positions, (most + 1,), expected, by_positions=True)

    def add_spans(self, ids, most, text_id):
        expected = oracle.spans_from_ids(batch_of(ids), most, text_id)
        self.add_runs(ids, (most, 2), expected, text_id=text_id)

    def add_mask(self, mask, offset=0):
        expected = oracle.cu_seqlens_from_padding(mask.tolist())
        both = tuple(self._result((5 * len(mask) + 1,), cuts) for cuts in expected)
        given = self._script.buffer(mask, offset=offset)
        scratch = self._scratch(mask.size)
        self._run(plan_cu_seqlens.mask_launches, given, mask.itemsize, *mask.shape, both, scratch)

    def add_slots(self, slots, is_known=True):
        expected = None, None
        if is_known:
            expected = oracle.cu_seqlens_from_slots(*(cuts.tolist() for cuts in slots))
        both = tuple(self._result((3 * len(slots[0]) - 2,), cuts) for cuts in expected)
        pointers = tuple(self._script.buffer(cuts) for cuts in slots)
        strides = tuple(cuts.itemsize // 4 for cuts in slots)
        self._run(plan_cu_seqlens.slots_launch, pointers, strides, len(slots[0]) - 1, both)

    def add_split(self, columns, b, row_num, offsets=(0, 0)):
        shape = (b, 1, len(columns) // b, 2)
        parts = self._result(shape, oracle.split_columns(columns, b, row_num), offsets[1])
        given = self._script.buffer(columns, offset=offsets[0])
        part = len(columns) // b, row_num // b
        self._run(plan.split_launch, given, len(columns), *part, parts)

    def check(self, executable, timeout=240):
        for handle in self._results:
            self._script.read(handle)
        results = self._script.run(executable, timeout)
        for i, (result, expected) in enumerate(zip(results, self._expected, strict=True)):
            if expected is not None:
                np.testing.assert_array_equal(result, expected, err_msg=f"result {i}")


def add_random_runs(calls, rng, tokens):
    """Add calls of ids, positions and spans, with room for all, for some, and for more."""
    ids, positions = random_tokens(rng, tokens, "ids"), random_tokens(rng, tokens, "positions")
    room = int(rng.choice([0, 1, 2, 30, 1000]))
    calls.add_ids(ids, room)
    calls.add_positions(positions, room)
    calls.add_spans(ids, room, int(rng.choice([-1, 0, 5, 7, 2**40])))
    flat = np.append(ids.ravel(), np.zeros(int(rng.integers(0, 70)), ids.dtype))
    calls.add_ids(flat, room, int(rng.choice([0, -1, 1, 2**40])))


@needs_gxx
@SANITIZERS
@pytest.mark.parametrize("most_groups", [plan_cu_seqlens.MOST_GROUPS, 3])
def test_runs_on_the_cpu(builds, sanitizer, count, most_groups):
    """Of a tile a group of tokens, and of many."""
    rng = np.random.default_rng(most_groups)
    calls = Calls(most_groups)
    for _ in range(count // 3):
        add_random_runs(calls, rng, int(rng.choice([40, 300, 3000])))
    calls.check(builds(sanitizer))


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_runs_around_edges(builds, sanitizer):
    runs_around_edges().check(builds(sanitizer))


def runs_around_edges():
    """Starts at, before and behind words, tiles, and what a block lists; none; all."""
    calls = Calls()
    tile, listed = 4 * emulator.SIZES.block_threads, 32 * emulator.SIZES.block_threads
    for size in (1, 31, 32, 33, 127, 128, 129, tile - 1, tile, tile + 1, listed, listed + 1):
        for start in {0, 1, size // 2, size - 1}:
            ids = (np.arange(size) >= start).astype(np.int32)
            calls.add_ids(ids, 3)
            calls.add_ids(ids, 3, padding_id=1)
            calls.add_spans(ids, 2, 0)
            calls.add_spans(ids, 2, 1)
            calls.add_spans(ids, 3, 7)  # one behind the other
        alternating = np.arange(size) % 2
        calls.add_ids(alternating, size)
        calls.add_ids(alternating, size // 2)
        calls.add_spans(alternating, size, 0)
        calls.add_spans(alternating, max(size // 4, 1), 1)
        calls.add_positions(np.zeros(size, np.int64), size + 5)
    add_many_groups(calls)
    return calls


def add_many_groups(calls, rounds=3):
    """Add runs of more groups than a block has threads, and blocks that list in several rounds."""
    rng = np.random.default_rng(8)
    threads = emulator.SIZES.block_threads
    ids = np.zeros(4 * threads * (threads + 9), np.int32)  # a group is 4 * threads tokens
    ids[:5] = 3, 3, 4, 5, 5
    calls.add_ids(ids, 5, padding_id=0)
    calls.add_spans(ids, 5, 0)
    calls.most_groups = 2
    calls.add_ids(np.arange(3 * 4 * threads) // 99, 50)  # the last group is not full
    for rate in (0.001, 0.3):
        ids = np.cumsum(rng.random(2 * 32 * threads * rounds) < rate) % 3
        calls.add_ids(ids, len(ids))
        calls.add_spans(ids, len(ids), 1)


@needs_gxx
@SANITIZERS
def test_masks_on_the_cpu(builds, sanitizer, count):
    rng = np.random.default_rng(5)
    calls = Calls()
    for i in range(count):
        tokens = int(rng.choice([10, 200, 3000]))
        calls.add_mask(random_mask(rng, tokens), offset=8 * (i % 2))
    calls.check(builds(sanitizer))


@pytest.mark.slow
@needs_gxx
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_masks_around_edges(builds, sanitizer):
    masks_around_edges().check(builds(sanitizer))


def masks_around_edges():
    """One token at any place of a row of about a part, a chunk, and of several parts."""
    calls = Calls(most_groups=8)  # so that parts of long rows are more than is in flight at once
    part = 64 * emulator.SIZES.block_threads
    for dtype in (np.bool_, np.int16, np.int64):
        itemsize = np.dtype(dtype).itemsize
        for nbytes in (8, 16, 24, part - 8, part, part + 8, 3 * part + 24):
            length = nbytes // itemsize
            for at in {0, 1, length // 2, length - 1} & set(range(length)):
                mask = np.zeros((2, length), dtype)
                mask[0, at] = mask[1, length - 1 - at] = 1
                for offset in (0, itemsize):
                    calls.add_mask(mask, offset)
    for at in (0, 9 * part, 9 * part + 17, 17 * part, 20 * part - 1):
        calls.add_mask(np.arange(20 * part)[None] == at)
    calls.most_groups = 64
    for at in (3, 37 * part):  # more parts than a warp has lanes
        calls.add_mask(np.arange(40 * part)[None] == at)
    return calls


@needs_gxx
@SANITIZERS
def test_slots_on_the_cpu(builds, sanitizer, count):
    rng = np.random.default_rng(6)
    calls = Calls()
    for _ in range(count):
        batch = int(rng.choice([0, 1, 5, 63, 64, 65, 200]))
        calls.add_slots(random_slots(rng, batch, is_cut=rng.random() < 0.5))
    calls.check(builds(sanitizer))


@needs_gxx
@SANITIZERS
def test_splits_on_the_cpu(builds, sanitizer, count):
    rng = np.random.default_rng(7)
    calls = Calls()
    add_random_splits(calls, rng, count)
    calls.check(builds(sanitizer))


def add_random_splits(calls, rng, count):
    for i in range(count):
        columns, b, row_num = random_split(rng, 300)
        if len(columns):
            calls.add_split(columns, b, row_num, offsets=(8 * (i % 2), 8 * (i // 2 % 2)))


# On a GPU


def same(cupy, found, expected):
    """Require arrays of CuPy, or pairs of them, that are the expected ones."""
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for array, right in pairs:
        assert type(array) is cupy.ndarray
        right = np.asarray(right, np.int32).reshape(array.shape)
        np.testing.assert_array_equal(cupy.asnumpy(array), right, strict=True)


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(3))
def test_gpu_runs(cupy, seed):
    """Also with more documents than there is room for: against the definition."""
    rng = np.random.default_rng(seed)
    for tokens in [0, 1, 50, 1000] * 12 + [9000, 40_000]:
        ids, positions = random_tokens(rng, tokens, "ids"), random_tokens(rng, tokens, "positions")
        most, text_id = int(rng.choice([0, 1, 30, 5000])), int(rng.choice([-1, 0, 5, 2**40]))
        rows = batch_of(ids)
        given = cupy.asarray(ids)
        found = maskq_cupy.cu_seqlens_from_ids(given, most)
        same(cupy, found, oracle.cu_seqlens_from_ids(rows, most))
        found = maskq_cupy.spans_from_ids(given, most, text_id)
        same(cupy, found, oracle.spans_from_ids(rows, most, text_id))
        found = maskq_cupy.cu_seqlens_from_ids(given.ravel(), most, text_id)
        same(cupy, found, oracle.cu_seqlens_from_ids(batch_of(ids.ravel()), most, text_id))
        found = maskq_cupy.cu_seqlens_from_positions(cupy.asarray(positions), most)
        same(cupy, found, oracle.cu_seqlens_from_positions(batch_of(positions), most))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gpu_large(cupy, dtype):
    """Of many tiles a group; a document a thousand tokens, or nearly every token one."""
    n = 2**24 + 76  # a multiple of 7
    for mean in (1000, 1.5):
        begins = cupy.random.default_rng(1).random(n) < 1 / mean
        ids = cupy.cumsum(begins, dtype=dtype)
        host = cupy.asnumpy(ids)
        most = int(host[-1]) + 3
        found = maskq_cupy.cu_seqlens_from_ids(ids, most, int(host[-1]))
        same(cupy, found, reference.cu_seqlens_from_ids(host, most, int(host[-1])))
        found = maskq_cupy.cu_seqlens_from_ids(ids.reshape(7, -1), most + 7)
        same(cupy, found, reference.cu_seqlens_from_ids(host.reshape(7, -1), most + 7))
        spans = (ids % 3).astype(dtype)
        same(
            cupy,
            maskq_cupy.spans_from_ids(spans, most, 0),
            reference.spans_from_ids(cupy.asnumpy(spans), most, 0),
        )


@pytest.mark.gpu
def test_gpu_masks(cupy):
    rng = np.random.default_rng(3)
    for tokens in [10, 300, 5000, 60_000] * 8:
        mask = random_mask(rng, tokens)
        found = maskq_cupy.cu_seqlens_from_padding(cupy.asarray(mask))
        same(cupy, found, oracle.cu_seqlens_from_padding(mask.tolist()))
    mask = np.zeros((2, 3_000_000), np.int64)
    mask[0, 1_234_567:2_345_678] = mask[1, 7] = 1
    same(
        cupy,
        maskq_cupy.cu_seqlens_from_padding(cupy.asarray(mask)),
        reference.cu_seqlens_from_padding(mask),
    )


@pytest.mark.gpu
def test_gpu_slots_and_splits(cupy):
    rng = np.random.default_rng(4)
    for _ in range(60):
        slots = random_slots(rng, int(rng.choice([0, 1, 7, 256, 2000])), is_cut=True)
        found = maskq_cupy.cu_seqlens_from_slots(*(cupy.asarray(cuts) for cuts in slots))
        same(cupy, found, oracle.cu_seqlens_from_slots(*(cuts.tolist() for cuts in slots)))
        columns, b, row_num = random_split(rng, 3000)
        found = maskq_cupy.split_columns(cupy.asarray(columns)[None, None], b, row_num)
        same(cupy, found, reference.split_columns(columns, b, row_num))


CALLS = [
    ("cu_seqlens_from_ids", [[7, 7, 9, 9, 0]], {"max_sequence_num": 3, "padding_id": 0}),
    ("cu_seqlens_from_positions", [[[0, 1, 2], [0, 0, 1]]], {"max_sequence_num": 4}),
    ("spans_from_ids", [[-1, 4, 4, -1, 5]], {"max_span_num": 3}),
    ("cu_seqlens_from_padding", [[[0, 1, 1], [1, 0, 0]]], {}),
    ("cu_seqlens_from_slots", [[0, 2, 3], [0, 4, 6], [0, 2, 3], [0, 4, 6]], {}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "given", "options"), CALLS)
@pytest.mark.parametrize("kind", ["list", "numpy", "cupy", "torch", "jax"])
def test_gpu_frameworks(cupy, name, given, options, kind):
    expected = getattr(reference, name)(*given, **options)
    arrays = [np.asarray(array, np.int32) for array in given]
    if kind == "list":
        arrays = given
    elif kind == "cupy":
        arrays = [cupy.asarray(array) for array in arrays]
    elif kind == "torch":
        torch = pytest.importorskip("torch")
        arrays = [torch.from_numpy(array).cuda() for array in arrays]
    elif kind == "jax":
        jax = pytest.importorskip("jax")
        arrays = [jax.numpy.asarray(array) for array in arrays]
        if jax.default_backend() == "cpu":
            pytest.skip("JAX without a GPU")
    function = getattr(maskq_cupy, name)
    for validate in (False, True):
        same(cupy, function(*arrays, **options, validate=validate), expected)


@pytest.mark.gpu
def test_gpu_mask_of_torch(cupy):
    torch = pytest.importorskip("torch")
    mask = np.array([[0, 1, 1, 0], [1, 1, 0, 0]])
    expected = reference.cu_seqlens_from_padding(mask)
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.int64):
        given = torch.from_numpy(mask).to("cuda", dtype)
        same(cupy, maskq_cupy.cu_seqlens_from_padding(given), expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "given", "options"), CALLS)
def test_gpu_out(cupy, name, given, options):
    expected = getattr(reference, name)(*given, **options)
    arrays = [cupy.asarray(array) for array in given]
    function = getattr(maskq_cupy, name)
    if isinstance(expected, tuple):
        out = [cupy.full(right.shape, -77, np.int32) for right in expected]
        assert function(*arrays, **options, out=out) is out
        same(cupy, tuple(out), expected)
        with pytest.raises(TypeError, match="out must be a pair of GPU arrays, got ndarray"):
            function(*arrays, **options, out=out[0])
        with pytest.raises(ValueError, match=r"out\[1\] must be int32 of shape \(\d+,\), got"):
            function(*arrays, **options, out=(out[0], out[1][1:]))
        with pytest.raises(ValueError, match=r"out\[1\] must not overlap"):
            function(*arrays, **options, out=(out[0], out[0]))
        return
    out = cupy.full(expected.shape, -77, np.int32)
    assert function(*arrays, **options, out=out) is out
    same(cupy, out, expected)
    with pytest.raises(ValueError, match=r"out must be int32 of shape"):
        function(*arrays, **options, out=out[1:])
    with pytest.raises(TypeError, match=r"out must be int32 of shape .*, got int64"):
        function(*arrays, **options, out=out.astype(np.int64))
    memory = cupy.empty(maskq_cupy.cu_seqlens_scratch_nbytes(arrays[0].size) - 16, np.uint8)
    with pytest.raises(ValueError, match=r"scratch must be writable, .* of at least"):
        function(*arrays, **options, out=out, scratch=memory)


@pytest.mark.gpu
def test_gpu_validates(cupy):
    """What the reference says of values on the host, it says of those on the GPU."""
    bad = [
        ("cu_seqlens_from_ids", [[7, 7, 9]], {"max_sequence_num": 1}),
        ("cu_seqlens_from_ids", [[7, 0, 9, 0]], {"max_sequence_num": 9, "padding_id": 0}),
        ("cu_seqlens_from_positions", [[[0, 1], [0, 0]]], {"max_sequence_num": 2}),
        ("spans_from_ids", [[5, -1, 5]], {"max_span_num": 1}),
        ("cu_seqlens_from_padding", [[[1, 0, 1]]], {}),
        ("cu_seqlens_from_slots", [[0, 2, 5], [0, 4, 6], [0, 2, 3], [0, 4, 6]], {}),
    ]
    for name, given, options in bad:
        with pytest.raises(ValueError) as of_host:  # noqa: PT011
            getattr(reference, name)(*given, **options)
        for arrays in (given, [cupy.asarray(array) for array in given]):
            with pytest.raises(ValueError) as found:  # noqa: PT011
                getattr(maskq_cupy, name)(*arrays, **options, validate=True)
            assert str(found.value) == str(of_host.value)
        getattr(maskq_cupy, name)(*(cupy.asarray(array) for array in given), **options)


@pytest.mark.gpu
def test_gpu_bad_arrays(cupy):
    ids = cupy.zeros((3, 4), np.int32)
    with pytest.raises(ValueError, match=r"ids must be C-contiguous, got a strided view of shape"):
        maskq_cupy.cu_seqlens_from_ids(ids.T, 3)
    with pytest.raises(TypeError, match=r"position_ids must be int32 or int64 .*, got float32 of"):
        maskq_cupy.cu_seqlens_from_positions(ids.astype(np.float32), 3)
    with pytest.raises(ValueError, match=r"ids must be .* \(b, L\), got .*\(3, 1, 4\)"):
        maskq_cupy.spans_from_ids(ids[:, None], 3)
    with pytest.raises(ValueError, match=r"padding_id goes with ids of shape \(N,\)"):
        maskq_cupy.cu_seqlens_from_ids(ids, 3, 0)
    with pytest.raises(TypeError, match=r"mask must be bool or of an int dtype, .* got float32"):
        maskq_cupy.cu_seqlens_from_padding(ids.astype(np.float32))
    cuts = cupy.zeros(4, np.int32)
    with pytest.raises(ValueError, match="cu_seqlens_k_padded must have as many entries"):
        maskq_cupy.cu_seqlens_from_slots(cuts, cuts, cuts, cuts[:3])
    with pytest.raises(TypeError, match="the input must be all on one GPU or all on the host"):
        maskq_cupy.cu_seqlens_from_slots(cuts, cuts, cuts, [0, 0, 0, 0])
    with pytest.raises(ValueError, match="columns must be a multiple of b = 2, got 3"):
        maskq_cupy.split_columns(cupy.zeros((3, 2), np.int32), 2, 4)


@pytest.mark.gpu
def test_gpu_replays_in_a_graph(cupy):
    """From ids to the columns, and from a mask to a batch's, with others at each replay."""
    rng = np.random.default_rng(6)
    n, most, batch = 3000, 400, 4
    ids, mask = cupy.zeros(n, np.int32), cupy.zeros((batch, n // batch), np.bool_)
    cuts, spans = cupy.empty(most + 1, np.int32), cupy.empty((most, 2), np.int32)
    pair = cupy.empty((2, 5 * batch + 1), np.int32)
    columns, padded = cupy.empty((n, 2), np.int32), cupy.empty((n, 2), np.int32)
    imaged = cupy.empty((n, 2), np.int32)
    parts = cupy.empty((batch, 1, n // batch, 2), np.int32)
    scratch = cupy.empty(maskq_cupy.cu_seqlens_scratch_nbytes(n), np.uint8)

    def enqueue():
        maskq_cupy.cu_seqlens_from_ids(ids, most, 0, out=cuts, scratch=scratch)
        maskq_cupy.spans_from_ids(ids, most, 0, out=spans, scratch=scratch)
        maskq_cupy.get_attn_mask_q(cuts, cuts, out=columns)
        maskq_cupy.get_attn_mask_q(cuts, cuts, spans=spans, out=imaged)
        maskq_cupy.cu_seqlens_from_padding(mask, out=tuple(pair), scratch=scratch)
        maskq_cupy.get_attn_mask_q(*pair, out=padded)
        maskq_cupy.split_columns(padded, batch, n, out=parts)

    maskq_cupy.warm_up()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="the result is allocated: give out="):
            maskq_cupy.cu_seqlens_from_ids(ids, most)
        with pytest.raises(RuntimeError, match="scratch memory is allocated: give scratch="):
            maskq_cupy.cu_seqlens_from_ids(ids, most, out=cuts)
        with pytest.raises(RuntimeError, match="validate=True waits for the GPU"):
            maskq_cupy.cu_seqlens_from_padding(mask, out=tuple(pair), validate=True)
        with pytest.raises(RuntimeError, match="host input is copied"):
            maskq_cupy.cu_seqlens_from_ids([1, 2], most, out=cuts, scratch=scratch)
        enqueue()
        graph = stream.end_capture()
        for _ in range(30):
            found = np.cumsum(rng.random(n) < 0.1).astype(np.int32) + 1
            found[n - int(rng.integers(0, 50)) :] = 0
            first, end = np.sort(rng.integers(0, n // batch + 1, (2, batch, 1)), axis=0)
            column = np.arange(n // batch)
            is_token = (column >= first) & (column < end)
            ids.set(found)
            mask.set(is_token)
            graph.launch()
            right = reference.cu_seqlens_from_ids(found, most, 0)
            same(cupy, cuts, right)
            spans_right = reference.spans_from_ids(found, most, 0)
            same(cupy, spans, spans_right)
            same(cupy, columns, reference.get_attn_mask_q(right, right, kv_token_num=n))
            right = reference.get_attn_mask_q(right, right, None, n, spans=spans_right)
            same(cupy, imaged, right)
            right = reference.get_attn_mask_q(*reference.cu_seqlens_from_padding(is_token))
            same(cupy, parts, reference.split_columns(right, batch, n))


@pytest.mark.gpu
def test_gpu_streams(cupy):
    """Ids that another stream still writes are waited for, and the result by those after it."""
    ids = cupy.zeros(1 << 20, np.int32)
    right = reference.cu_seqlens_from_ids(np.arange(1 << 20) // 100, 20_000)
    launch = cupy.cuda.Stream(non_blocking=True)
    for _ in range(5):
        ids[:] = 0
        ids += cupy.arange(1 << 20, dtype=np.int32) // 100
        found = maskq_cupy.cu_seqlens_from_ids(ids, 20_000, stream=launch)
        same(cupy, found + 0, right)
