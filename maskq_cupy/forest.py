"""Forests of segments in depth-first order, each with its parent's number, or -1 for a root."""

import numpy as np


def subtree_ends(parent: np.ndarray) -> np.ndarray:
    """Return for each segment the first one behind it whose parent is before it, or B."""
    segment_num = len(parent)
    segment = np.arange(segment_num)
    least = [parent]  # least[i][b] is the least parent of 2**i segments from b on
    for i in range(max(segment_num - 1, 0).bit_length()):
        wider = least[-1].copy()
        np.minimum(wider[: -(2**i)], wider[2**i :], out=wider[: -(2**i)])
        least.append(wider)
    ends = segment + 1
    for i, parents in reversed(list(enumerate(least))):
        inside = ends < segment_num
        inside[inside] = parents[ends[inside]] >= segment[inside]
        ends = np.where(inside, np.minimum(ends + 2**i, segment_num), ends)
    return ends


def depth_first_order(parent: np.ndarray) -> np.ndarray:
    """Return the segments in depth-first order, siblings in theirs; those on no root's tree miss.

    parent: in [-1, B), in any order.
    """
    parents = parent.tolist()
    first_child = [-1] * (len(parents) + 1)  # the roots are the children of -1, the last entry
    next_sibling = [-1] * len(parents)
    for b in reversed(range(len(parents))):
        above = parents[b]
        next_sibling[b], first_child[above] = first_child[above], b
    order, stack = [], [first_child[-1]]
    while stack:
        b = stack.pop()
        if b != -1:
            order.append(b)
            stack += next_sibling[b], first_child[b]
    return np.array(order, np.int64)


def member_of_cycle(parent: np.ndarray, order: np.ndarray) -> int:
    """Return a segment that is its own ancestor, where the depth-first order misses some."""
    b = int(np.setdiff1d(np.arange(len(parent)), order)[0])
    for _ in range(len(parent)):
        b = int(parent[b])
    return b
