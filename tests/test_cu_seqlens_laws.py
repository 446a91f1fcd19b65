"""Laws of what makes cu_seqlens and spans, over lengths, ids and masks that Hypothesis makes."""

import numpy as np
import pytest

from maskq_cupy import reference

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

LAW = settings(max_examples=150, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(1, 9), max_size=12)
MORE = st.integers(0, 5)
INT64 = st.integers(-(2**63), 2**63 - 1)


def padded_cuts(lens, more):
    """Return the cuts of documents of these lengths, and of so many empty ones behind them."""
    return np.cumsum([0, *lens, *[0] * more])


@LAW
@given(LENGTHS, MORE, INT64, st.integers(0, 4))
def test_ids_of_documents_give_their_cuts(lens, more, first_id, padding):
    ids = first_id // 2 + np.repeat(np.arange(len(lens)), lens)
    found = reference.cu_seqlens_from_ids(ids, len(lens) + more)
    np.testing.assert_array_equal(found, padded_cuts(lens, more))
    padding_id = first_id // 2 - 1
    with_padding = np.append(ids, np.full(padding, padding_id))
    found = reference.cu_seqlens_from_ids(with_padding, len(lens) + more, padding_id)
    np.testing.assert_array_equal(found, padded_cuts(lens, more))


@LAW
@given(LENGTHS, MORE, st.integers(0, 2**62))
def test_positions_of_documents_give_their_cuts(lens, more, first):
    positions = [first + i for n in lens for i in range(n)]
    found = reference.cu_seqlens_from_positions(positions, len(lens) + more)
    np.testing.assert_array_equal(found, padded_cuts(lens, more))


@LAW
@given(st.lists(INT64 | st.integers(-1, 2), max_size=40), MORE, INT64 | st.integers(-1, 2))
def test_spans_hold_the_tokens_that_are_no_text(ids, more, text_id):
    spans = reference.spans_from_ids(ids, len(ids) + more, text_id)
    ends = spans.ravel()
    assert (np.diff(ends) >= 0).all()
    inside = np.zeros(len(ids), bool)
    for start, end in spans:
        inside[start:end] = True
        assert len({ids[i] for i in range(start, end)}) <= 1
    assert inside.tolist() == [token != text_id for token in ids]


@LAW
@given(st.lists(st.tuples(MORE, MORE, MORE), max_size=6))
def test_a_padded_batch_shows_tokens_to_tokens(rows):
    """Each batch row of front padding, tokens and tail padding, of one length."""
    length = max((sum(row) for row in rows), default=0)
    mask = np.zeros((len(rows), length), bool)
    for row, (front, num, _) in enumerate(rows):
        mask[row, front : front + num] = True
    cuts = reference.cu_seqlens_from_padding(mask)
    for cu_seqlens in cuts:
        assert (np.diff(cu_seqlens) >= 0).all()
        assert cu_seqlens[-1] == mask.size
    columns = reference.get_attn_mask_q(*cuts, causal=False)
    shown = reference.to_dense(columns, mask.size)
    row = np.repeat(np.arange(len(rows)), length)
    both = mask.ravel()[:, None] & mask.ravel()
    np.testing.assert_array_equal(shown, both & (row[:, None] == row))


@LAW
@given(LENGTHS, st.integers(1, 5))
def test_a_pack_of_like_parts_splits_into_them(lens, parts):
    cuts = padded_cuts(lens, 0)
    one = reference.get_attn_mask_q(cuts, cuts)
    many = padded_cuts(lens * parts, 0)
    found = reference.split_columns(reference.get_attn_mask_q(many, many), parts, int(many[-1]))
    assert found.shape == (parts, 1, len(one), 2)
    for part in found:
        np.testing.assert_array_equal(part[0], one)


@LAW
@given(st.lists(st.tuples(MORE, MORE, MORE, MORE), max_size=8))
def test_slots_without_gaps_change_nothing(rows):
    """And with gaps, a sequence's columns are those that it has without."""
    q_lens, q_gaps, k_lens, k_gaps = np.reshape(rows, (-1, 4)).T.astype(int)
    q, k = padded_cuts(q_lens, 0), padded_cuts(k_lens, 0)
    slots = padded_cuts(q_lens + q_gaps, 0), padded_cuts(k_lens + k_gaps, 0)
    plain = reference.get_attn_mask_q(q, k)
    tight = reference.get_attn_mask_q(*reference.cu_seqlens_from_slots(q, q, k, k))
    np.testing.assert_array_equal(tight, plain)
    wide = reference.get_attn_mask_q(*reference.cu_seqlens_from_slots(q, slots[0], k, slots[1]))
    for b in range(len(rows)):
        own = wide[slots[1][b] : slots[1][b] + k_lens[b]] - slots[0][b]
        np.testing.assert_array_equal(own, plain[k[b] : k[b + 1]] - q[b])
