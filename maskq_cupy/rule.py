"""The rule of a call: which keys a row sees, as numbers that every value of the arguments fits in.

Row ``i`` of a sequence has the position ``p = i + offset``, with ``offset = kv_len - q_len``, or 0
where the diagonal begins at the top left. It sees the keys ``[p - left, p + right + 1)``, and, with
sinks, the first ``sinks`` keys below that upper end. Causal, full and sliding-window attention are
this one rule with other numbers. Blocks and chunks round its two ends; spans widen them.
"""

import operator
from typing import Any, NamedTuple

import numpy as np

INT32_MAX = 2**31 - 1

# A distance of INT32_MAX reaches past any sequence whose length fits in int32.
UNBOUNDED = INT32_MAX


class Rule(NamedTuple):
    """``left``, ``right`` and ``sinks`` in keys, each in [0, INT32_MAX]; then its modifiers.

    ``causal_block`` and ``chunk_size`` are in [1, INT32_MAX], or 0 where there is none.
    """

    left: int
    right: int
    sinks: int
    causal_block: int = 0
    chunk_size: int = 0
    is_top_left: bool = False


CAUSAL = Rule(UNBOUNDED, 0, 0)
FULL = Rule(UNBOUNDED, UNBOUNDED, 0)


def resolve_rule(
    causal: bool = True,
    window: tuple[int, int] | None = None,
    num_sink_tokens: int = 0,
    align: str = "bottom_right",
    causal_block: int | None = None,
    chunk_size: int | None = None,
    spans_given: bool = False,
    intervals_given: bool = False,
) -> Rule:
    """Return the rule that the arguments of ``get_attn_mask_q`` ask for.

    Raises ValueError or TypeError where they contradict each other or are malformed.
    """
    has_no_sinks = type(num_sink_tokens) is int and num_sink_tokens == 0
    is_plain = causal is True and window is None and has_no_sinks
    is_unmodified = align == "bottom_right" and causal_block is None and chunk_size is None
    if is_plain and is_unmodified and not (spans_given and intervals_given):
        return CAUSAL
    if not isinstance(causal, (bool, np.bool_)):
        raise TypeError(f"causal must be True or False, got {causal!r}")
    if align not in ("bottom_right", "top_left"):
        kind = ValueError if isinstance(align, str) else TypeError
        raise kind(f"align must be 'bottom_right' or 'top_left', got {align!r}")
    sinks = _count(num_sink_tokens, "num_sink_tokens", lowest=0)
    if intervals_given:
        _forbid_with_intervals(causal, window, sinks, align, causal_block, chunk_size)
        if spans_given:
            raise _excluded("spans", "leave spans alone")
        return CAUSAL
    left, right = _distances(causal, window)
    if causal_block is not None and not causal:
        raise ValueError(f"causal_block needs causal=True, got causal_block={causal_block!r}")
    block, chunk = 0, 0
    if causal_block is not None:
        block = _count(causal_block, "causal_block", lowest=1)
    if chunk_size is not None:
        chunk = _count(chunk_size, "chunk_size", lowest=1)
    if sinks and window is None and chunk_size is None:
        raise ValueError(
            "num_sink_tokens needs window= or chunk_size=, whose left bound it lifts, "
            f"got {sinks} sinks and neither"
        )
    return Rule(left, right, sinks, block, chunk, align == "top_left")


def _forbid_with_intervals(
    causal: bool, window: object, sinks: int, align: str, causal_block: object, chunk_size: object
) -> None:
    """Raise for the first argument that intervals do not go with, if there is one."""
    if sinks:
        raise ValueError(
            "num_sink_tokens does not go with attn_mask_kv: use window= or chunk_size=, "
            "or set LTS of those columns to 1 + the last row that sees anything"
        )
    if not causal:
        raise _excluded("causal=False", "leave causal alone")
    given = {"window": window, "causal_block": causal_block, "chunk_size": chunk_size}
    if align != "bottom_right":
        given["align"] = align
    for name, value in given.items():
        if value is not None:
            raise _excluded(name, f"got {name}={value!r}")


def _excluded(what: str, rest: str) -> ValueError:
    return ValueError(f"attn_mask_kv excludes {what}: the intervals say it all, {rest}")


def _distances(causal: bool, window: Any) -> tuple[int, int]:
    """Return how far a row sees to the left and to the right of its diagonal."""
    if window is None:
        return UNBOUNDED, 0 if causal else UNBOUNDED
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise ValueError(f"window must be (left, right), two ints >= -1, got {window!r}")
    left = _count(window[0], "window[0]", lowest=-1)
    right = _count(window[1], "window[1]", lowest=-1)
    if causal and right > 0:
        raise ValueError(
            f"window=(left, right) must have right -1 or 0 under causal=True, got {window!r}"
        )
    return _distance(left), 0 if causal else _distance(right)


def _count(value: object, name: str, lowest: int) -> int:
    """Return an int of at least `lowest`; one that no length can be stands for any larger one."""
    if type(value) is int and lowest <= value <= UNBOUNDED:
        return value
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an int >= {lowest}, got {value!r}")
    if count < lowest:
        raise ValueError(f"{name} must be an int >= {lowest}, got {count}")
    return min(count, UNBOUNDED)


def _distance(keys: int) -> int:
    return UNBOUNDED if keys == -1 else keys
