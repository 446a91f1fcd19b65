"""The reference against the brute-force oracle, and the contract's worked values."""

import numpy as np
import oracle
import pytest
from strategies import cuts, random_intervals, random_lengths, random_rule

from maskq_cupy import reference

WORKED = [
    ([0, 3, 5], [0, 3, 7], None, [3, 3, 3, 5, 5, 5, 5], [0, 1, 2, 3, 3, 3, 4]),
    ([0, 4], [0, 2], None, [4, 4], [2, 3]),
    ([0, 1, 2, 3], [0, 5, 8, 12], None, [1] * 5 + [2] * 3 + [3] * 4, [0] * 5 + [1] * 3 + [2] * 4),
    ([0, 3], [0, 3], [[0, 0], [0, 2], [0, 3]], [3, 3, 3], [1, 1, 2]),
    ([0], [0], None, [], []),
    ([0, 0, 2, 2], [0, 4, 4, 6], None, [0] * 4 + [2] * 2, [0] * 4 + [2] * 2),
]


@pytest.mark.parametrize(("q", "k", "mask", "lts", "ute"), WORKED)
def test_worked_values(q, k, mask, lts, ute):
    columns = reference.get_attn_mask_q(q, k, mask)
    assert columns.dtype == np.int32
    assert columns.flags.c_contiguous
    assert columns.shape == (k[-1], 2)
    np.testing.assert_array_equal(columns.reshape(-1, 2).T, [lts, ute])


def test_padding_columns_are_seen_by_nobody():
    columns = reference.get_attn_mask_q([0, 3], [0, 2], kv_token_num=5)
    np.testing.assert_array_equal(columns[2:], [[3, 3]] * 3)
    columns = reference.get_attn_mask_q([0, 2], [0, 2], [[0, 1], [0, 2]], kv_token_num=4)
    np.testing.assert_array_equal(columns[2:], [[2, 2]] * 2)


def test_padded_cu_seqlens_q_and_rows_are_not_read():
    mask = [[0, 1], [0, 2], [-9, 99]]
    columns = reference.get_attn_mask_q([0, 2, -5], [0, 2], mask)
    np.testing.assert_array_equal(columns, [[2, 0], [2, 1]])


def small_packs(seed, count=150):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        q_lens, k_lens = random_lengths(rng, int(rng.integers(0, 40)))
        yield rng, q_lens.tolist(), k_lens.tolist()


def check_invariants(columns, q, k):
    b = np.repeat(np.arange(len(k) - 1), np.diff(k))
    lts, ute = columns[: len(b)].T
    assert (q[b] <= ute).all()
    assert (ute <= lts).all()
    assert (lts <= q[b + 1]).all()


@pytest.mark.parametrize("seed", range(4))
def test_rules_are_exact(seed):
    for rng, q_lens, k_lens in small_packs(seed):
        q, k = cuts(q_lens), cuts(k_lens)
        rule = random_rule(rng, k, int(k[-1]))
        columns = reference.get_attn_mask_q(q, k, **rule)
        check_invariants(columns, q, k)
        seen = oracle.visible(q_lens, k_lens, **rule)
        np.testing.assert_array_equal(oracle.shown(columns, q[-1]), seen, err_msg=f"{q} {k} {rule}")


@pytest.mark.parametrize("seed", range(4))
def test_intervals_show_the_least_superset(seed):
    for rng, q_lens, k_lens in small_packs(seed + 100):
        q, k = cuts(q_lens), cuts(k_lens)
        mask = random_intervals(rng, q, k)
        columns = reference.get_attn_mask_q(q, k, mask)
        check_invariants(columns, q, k)
        shown = oracle.shown(columns, q[-1])
        assert not (oracle.visible(q_lens, k_lens, mask) & ~shown).any()
        np.testing.assert_array_equal(shown, oracle.superset(q_lens, k_lens, mask))
        flat = reference.get_attn_mask_q(q, k, mask.reshape(-1))
        np.testing.assert_array_equal(flat, columns)


def test_sorted_intervals_are_exact():
    """Starts and ends never decrease; rows that see nothing are at a sequence's head or tail."""
    for rng, q_lens, k_lens in small_packs(200):
        q, k = cuts(q_lens), cuts(k_lens)
        mask = np.zeros((q[-1], 2), int)
        for b, (q_len, kv_len) in enumerate(zip(q_lens, k_lens, strict=True)):
            starts = np.sort(rng.integers(0, kv_len + 1, q_len))
            lengths = rng.integers(1, kv_len + 2, q_len)
            mask[q[b] : q[b + 1]] = np.stack(
                [starts, np.maximum.accumulate(starts + lengths)], axis=1
            )
            mask[q[b] : q[b] + rng.integers(0, 2)] = 0
            mask[q[b + 1] - rng.integers(0, 2) : q[b + 1]] = 5, 2
        columns = reference.get_attn_mask_q(q, k, mask)
        seen = oracle.visible(q_lens, k_lens, mask)
        np.testing.assert_array_equal(oracle.shown(columns, q[-1]), seen, err_msg=f"{q} {k} {mask}")


@pytest.mark.parametrize("wide", [2**31 - 1, 2**31, 2**62])
def test_wide_windows_do_not_overflow(wide):
    q, k = [0, 5, 9], [0, 8, 9]
    causal = reference.get_attn_mask_q(q, k)
    np.testing.assert_array_equal(reference.get_attn_mask_q(q, k, window=(wide, 0)), causal)
    full = reference.get_attn_mask_q(q, k, causal=False)
    both = reference.get_attn_mask_q(q, k, causal=False, window=(wide, wide))
    np.testing.assert_array_equal(both, full)
    mask = np.array([[-wide, wide - 1]] * 9)
    np.testing.assert_array_equal(reference.get_attn_mask_q(q, k, mask), full)
