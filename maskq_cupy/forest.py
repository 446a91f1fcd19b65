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
