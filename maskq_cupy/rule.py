"""The rule of a call: which keys a row sees, as two distances from the diagonal.

Row ``i`` of a sequence sees the keys ``[i + offset - left, i + offset + right + 1)``, with
``offset = kv_len - q_len``, and, with sinks, the first ``sinks`` keys below that upper end.
Causal, full and sliding-window attention are this one rule with other numbers.
"""

import operator
from typing import NamedTuple

INT32_MAX = 2**31 - 1

# A distance of INT32_MAX reaches past any sequence whose length fits in int32.
UNBOUNDED = INT32_MAX


class Rule(NamedTuple):
    """``left``, ``right`` and ``sinks`` in keys, each in [0, INT32_MAX]."""

    left: int
    right: int
    sinks: int


def resolve_rule(
    causal: bool, window: tuple[int, int] | None, num_sink_tokens: int, intervals_given: bool
) -> Rule:
    """Return the rule that the arguments of ``get_attn_mask_q`` ask for.

    Raises ValueError or TypeError where they contradict each other or are malformed.
    """
    if window is None and num_sink_tokens == 0 and causal is True:
        return CAUSAL
    if not isinstance(causal, bool):
        raise TypeError(f"causal must be True or False, got {causal!r}")
    if intervals_given and window is not None:
        raise ValueError(
            f"attn_mask_kv excludes window: the intervals say it all, got window={window!r}"
        )
    if intervals_given and not causal:
        raise ValueError(
            "attn_mask_kv excludes causal=False: the intervals say it all, leave causal alone"
        )
    sinks = _count(num_sink_tokens, "num_sink_tokens", lowest=0)
    if window is None:
        if sinks:
            raise ValueError(
                "num_sink_tokens needs a window whose left bound it lifts, "
                f"got {sinks} sinks and no window"
            )
        return CAUSAL if causal else FULL
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise ValueError(f"window must be (left, right), two ints >= -1, got {window!r}")
    left = _count(window[0], "window[0]", lowest=-1)
    right = _count(window[1], "window[1]", lowest=-1)
    if causal and right > 0:
        raise ValueError(
            f"window=(left, right) must have right -1 or 0 under causal=True, got {window!r}"
        )
    if causal:
        right = 0
    return Rule(_distance(left), _distance(right), min(sinks, UNBOUNDED))


CAUSAL = Rule(UNBOUNDED, 0, 0)
FULL = Rule(UNBOUNDED, UNBOUNDED, 0)


def _count(value: object, name: str, lowest: int) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int >= {lowest}, got {value!r}") from None
    if count < lowest:
        raise ValueError(f"{name} must be an int >= {lowest}, got {count}")
    return count


def _distance(keys: int) -> int:
    return UNBOUNDED if keys == -1 else min(keys, UNBOUNDED)
