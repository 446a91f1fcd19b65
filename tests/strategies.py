"""Random packs: lengths with empties anywhere, more rows than keys, padding, decode, giants."""

from typing import NamedTuple

import numpy as np


class Pack(NamedTuple):
    cu_seqlens_q: np.ndarray
    cu_seqlens_k: np.ndarray
    attn_mask_kv: np.ndarray | None
    kv_token_num: int
    rule: dict

    def arguments(self):
        return (self.cu_seqlens_q, self.cu_seqlens_k, self.attn_mask_kv, self.kv_token_num)

    def on_gpu(self, cupy):
        """Return the pack with its arrays, those of its rule too, on CuPy's current device."""
        arrays = [None if array is None else cupy.asarray(array) for array in self[:3]]
        rule = {name: cupy.asarray(v) if name == "spans" else v for name, v in self.rule.items()}
        return Pack(*arrays, self.kv_token_num, rule)


def cuts(lengths, dtype=np.int32):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def random_pack(rng, tokens=600, intervals=None, dtype=None):
    """Return a random pack of up to about `tokens` rows and columns, half of them of intervals."""
    q_lens, k_lens = random_lengths(rng, int(rng.integers(0, tokens + 1)))
    dtypes = [dtype or rng.choice([np.int32, np.int64]) for _ in range(3)]
    q, k = cuts(q_lens, dtypes[0]), cuts(k_lens, dtypes[1])
    padding = int(rng.choice([0, 0, 1, 17, 300]))
    if intervals is None:
        intervals = rng.random() < 0.5
    mask, rule = None, {}
    if intervals:
        mask = random_intervals(rng, q, k).astype(dtypes[2])
        mask = np.concatenate(
            [mask, rng.integers(-5, 5, (int(rng.choice([0, 0, 9])), 2), dtypes[2])]
        )
    else:
        rule = random_rule(rng, k, int(k[-1]) + padding)
    if rng.random() < 0.3:  # a scheduler pads cu_seqlens_q to its largest batch
        q = np.concatenate([q, rng.integers(-9, 9, 3).astype(q.dtype)])
    return Pack(q, k, mask, int(k[-1]) + padding, rule)


def random_lengths(rng, tokens):
    """Return q_lens and k_lens that add up to about `tokens` each."""
    kind = rng.choice(["documents", "decode", "giant", "prefix", "many empties"])
    if kind == "giant":
        return np.array([tokens]), np.array([rng.integers(0, 2 * tokens + 1)])
    mean = int(rng.choice([1, 4, 30, 200]))
    batch = max(1, tokens // mean)
    k_lens = rng.integers(0, 2 * mean + 1, batch)
    if kind == "decode":
        q_lens = np.ones(batch, int)
    elif kind == "prefix":
        q_lens = rng.integers(0, k_lens + 1)
    elif rng.random() < 0.5:
        q_lens = k_lens.copy()
    else:
        q_lens = rng.integers(0, 2 * mean + 1, batch)
    empties = 0.7 if kind == "many empties" else 0.1
    q_lens[rng.random(batch) < empties] = 0
    k_lens[rng.random(batch) < empties] = 0
    at = rng.choice([0, batch // 2, batch])
    hole = np.zeros(int(rng.choice([0, 1, 50])), int)
    return np.insert(q_lens, at, hole), np.insert(k_lens, at, hole)


def random_rule(rng, k, n):
    """Return a rule for a pack of cu_seqlens_k and n columns, half of them with modifiers."""
    kind = rng.choice(["causal", "full", "window", "two-sided", "sinks"])
    left = int(rng.choice([-1, 0, 1, 7, 100, 2**31 - 1, 2**40]))
    rule = {
        "causal": {},
        "full": {"causal": False},
        "window": {"window": (left, int(rng.choice([-1, 0])))},
        "two-sided": {"causal": False, "window": (left, int(rng.choice([-1, 0, 3, 2**31 - 1])))},
        "sinks": {"window": (left, 0), "num_sink_tokens": int(rng.choice([1, 4, 2**33]))},
    }[kind]
    return rule if rng.random() < 0.5 else rule | random_modifiers(rng, rule, k, n)


def random_modifiers(rng, rule, k, n):
    """Return any of align=, causal_block=, chunk_size= and spans=, and sinks for chunks."""
    align, block, chunk, spans = rng.random(4) < rng.choice([0.2, 0.5, 0.9])
    found = {}
    if align:
        found["align"] = str(rng.choice(["top_left", "top_left", "bottom_right"]))
    if block and "causal" not in rule:
        found["causal_block"] = random_size(rng)
    if chunk:
        found["chunk_size"] = random_size(rng)
        if rng.random() < 0.3:
            found["num_sink_tokens"] = int(rng.choice([0, 1, 5, 300, 2**40]))
    if spans:
        found["spans"] = random_spans(rng, k, n)
    return found


def random_size(rng):
    far = [1000, 2**31 - 1, 2**31, 2**40]
    return int(rng.choice([1, 2, 3, 4, 5, 7, 16, 31, 64, 100, *far]))


def random_spans(rng, k, n):
    """Return (S, 2): over borders of sequences and over padding, empty ones among them, or none."""
    kind = rng.choice(["none", "prefixes", "few", "many", "short", "all"])
    if kind == "prefixes":
        starts = np.asarray(k[:-1], np.int64)
        spans = np.stack([starts, starts + rng.integers(0, np.diff(k) + 1)], axis=1)
    elif kind == "all":
        spans = np.array([[0, n]])
    elif kind == "short":  # a key or two, one behind the other, and empty ones
        cut = np.cumsum(rng.integers(0, 3, n + 1))
        cut = cut[cut <= n]
        spans = np.stack([cut[:-1], cut[1:]], axis=1)
    else:
        num = {"none": 0, "few": int(rng.integers(1, 5)), "many": n // 4}[kind]
        spans = np.sort(rng.integers(0, n + 1, 2 * num)).reshape(-1, 2)
    spans = spans[rng.random(len(spans)) < rng.choice([0.5, 1.0])]
    last = spans[-1:, 1:].max(initial=0)
    filling = np.full((int(rng.choice([0, 0, 1, 40])), 2), last)  # as of a graph's fixed number
    return np.concatenate([spans, filling]).astype(rng.choice([np.int32, np.int64]))


def random_intervals(rng, q, k):
    """Return (Q, 2) int64: arbitrary, sorted, out of range, or with rows that see nothing."""
    kind = rng.choice(["arbitrary", "sorted", "causal", "spans"])
    batch = len(k) - 1
    result = np.zeros((int(q[batch]), 2), np.int64)
    for b in range(batch):
        rows, kv_len = slice(q[b], q[b + 1]), int(k[b + 1] - k[b])
        q_len = rows.stop - rows.start
        if q_len == 0:
            continue
        i = np.arange(q_len)
        if kind == "causal":
            pairs = np.stack([np.zeros(q_len), i + kv_len - q_len + 1], axis=1)
        elif kind == "spans":
            span = i // int(rng.integers(1, 40)) + 1
            pairs = np.stack([np.zeros(q_len), span * 17], axis=1)
        else:
            pairs = rng.integers(-3, kv_len + 4, (q_len, 2))
            pairs.sort(axis=int(rng.choice([0, 1])) if kind == "arbitrary" else 1)
            if kind == "sorted":
                pairs.sort(axis=0)
        result[rows] = pairs
    if rng.random() < 0.2:
        extremes = [-(2**63), -(2**31), 2**31 - 1, 2**63 - 1]
        result[rng.random(result.shape) < 0.05] = rng.choice(extremes)
    return result


def random_parents(rng, segment_num):
    """Return the parents of a forest in depth-first order: chains, stars, bushes, many roots."""
    deeper, root = rng.choice([0.0, 0.3, 0.9, 1.0]), rng.choice([0.0, 0.0, 0.2])
    parents, path = np.full(segment_num, -1), []
    for b in range(segment_num):
        if path and rng.random() < root:
            path = []
        elif path and rng.random() >= deeper:
            path = path[: int(rng.integers(0, len(path))) or 1]  # a child of any ancestor
        if path:
            parents[b] = path[-1]
        path.append(b)
    return parents
