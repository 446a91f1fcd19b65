"""The packs that are timed, and what their columns must be."""

from typing import NamedTuple

import numpy as np
from strategies import cuts

from maskq_cupy import reference
from maskq_cupy.rule import resolve_rule

RULES = {"causal": {}, "window": {"window": (100, 0)}}
MODIFIED = {
    "top left": {"align": "top_left"},
    "blocks": {"causal_block": 32},
    "chunks": {"chunk_size": 8192},
    "chunks and sinks": {"chunk_size": 1000, "window": (4096, 0), "num_sink_tokens": 4},
}
SPANS = {"one span": 1, "1,000 spans": 1000}
ANYWHERE = ", cut anywhere"  # of a case of intervals
ALL_CHECKED = 2**20  # columns, up to which each is compared; of larger packs as many


class Pack(NamedTuple):
    """A pack of n rows and as many columns in b sequences; ``case`` is its rule or its intervals.

    cu is both cu_seqlens_q and cu_seqlens_k.
    """

    n: int
    b: int
    case: str
    cu: np.ndarray
    intervals: np.ndarray | None
    rule: dict


def documents(n, b):
    """Return the cuts of b documents of n tokens, cut at random."""
    return cuts(np.random.default_rng(0).multinomial(n, np.full(b, 1 / b)))


def cut_anywhere(n, b):
    """Return the cuts of b documents of n tokens, at any places: some are short, some long."""
    places = np.random.default_rng(0).integers(0, n + 1, b - 1)
    return np.concatenate([[0], np.sort(places), [n]]).astype(np.int32)


def rule_pack(n, b, case):
    return Pack(n, b, case, documents(n, b), None, RULES[case])


def modified_pack(n, b, case):
    """Return a pack of a rule with a modifier, or of so many spans over half of the columns."""
    if case in MODIFIED:
        return Pack(n, b, case, documents(n, b), None, MODIFIED[case])
    edges = np.linspace(0, n, 2 * SPANS[case] + 1).astype(np.int32)
    return Pack(n, b, case, documents(n, b), None, {"spans": edges[:-1].reshape(-1, 2)})


def interval_pack(n, b, case):
    """Return a pack with intervals: "sorted" are causal, "random" are any two keys of the document.

    Between them, sorted ends that step at each row, and ends of which few are a running maximum.
    The documents are about as long as each other, but those that are "cut anywhere".
    """
    cu = cut_anywhere(n, b) if case.endswith(ANYWHERE) else documents(n, b)
    lens = np.diff(cu)
    if case.startswith("sorted"):
        end = np.arange(1, n + 1, dtype=np.int32) - np.repeat(cu[:-1], lens)
        return Pack(n, b, case, cu, np.stack([np.zeros_like(end), end], axis=1), {})
    draw = np.random.default_rng(1).random((2, n), dtype=np.float32)
    keys = (draw * np.repeat(lens + 1, lens)).astype(np.int32)
    return Pack(n, b, case, cu, np.stack([keys.min(axis=0), keys.max(axis=0)], axis=1), {})


def checked_columns(n):
    """Return which columns are compared: all, or the first, the last and as many at random."""
    if n <= ALL_CHECKED:
        return np.arange(n)
    end = ALL_CHECKED // 4
    drawn = np.random.default_rng(2).integers(0, n, 2 * end)
    return np.concatenate([np.arange(end), drawn, np.arange(n - end, n)])


def expected(pack, column):
    """Return the reference's columns: of all, and of large packs what it computes of these."""
    if pack.n <= ALL_CHECKED:
        columns = reference.get_attn_mask_q(pack.cu, pack.cu, pack.intervals, pack.n, **pack.rule)
        return columns[column]
    cu = pack.cu.astype(np.int64)
    if pack.case.startswith("random"):
        lts, ute = reference._interval_columns(cu, cu, column, pack.intervals)
    else:  # sorted intervals are the causal rule's
        rule = dict(pack.rule)
        spans = rule.pop("spans", None)
        lts, ute = reference._rule_columns(cu, cu, column, resolve_rule(**rule), spans)
    return np.stack([lts, ute], axis=1).astype(np.int32)


def check(pack, outs):
    """Compare what was written, (any, N, 2), with the reference."""
    column = checked_columns(pack.n)
    wrong = outs.get()[:, column] != expected(pack, column)
    assert not wrong.any(), f"{wrong.any(axis=(0, 2)).sum()} columns, {pack.n=}, {pack.b=}"
