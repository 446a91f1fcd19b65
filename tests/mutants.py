# ruff: noqa: E402, E501
"""Breaks the kernels on purpose, one place at a time, and shows that the CPU suite notices.

    python tests/mutants.py [word ...]     those whose reason or text has one of the words; else all

Prints a line a mutant, and exits with 1 if one survived. A survivor is a test that is missing.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import numpy as np
from on_cpu import calls, emulator
from strategies import random_pack
from test_hostile import hostile_pack
from test_kernels_on_cpu import (
    many_tiles_a_group,
    rows_far_from_columns,
    stepped_packs,
    tile_edges,
)

from maskq_cupy import compile

SECONDS = 15  # a mutant that has not returned by then hangs, and is noticed


class Mutant(NamedTuple):
    """A text that occurs once in the kernels, what it is broken to, and what that is.

    ``by`` is the build that notices: plain by wrong columns, address by accesses outside the arrays
    or undefined behaviour from hostile values, thread by races.
    """

    file: str
    old: str
    new: str
    why: str
    by: str = "plain"


SEARCH, STAIRCASE = "search.cuh", "staircase.cuh"
RULE, INTERVALS, COLUMNS = "columns_rule.cu", "columns_intervals.cu", "columns.cuh"

# fmt: off
MUTANTS = [
    # Searches
    Mutant(SEARCH, "values[middle] <= key", "values[middle] < key", "bound"),
    Mutant(SEARCH, "lo = middle + 1;", "lo = middle + 2;", "off-by-one"),
    Mutant(SEARCH, "else hi = middle;", "else hi = middle - 1;", "off-by-one"),
    Mutant(SEARCH, "lo + (lane + 1) * step - 1;", "lo + lane * step;", "off-by-one"),
    Mutant(SEARCH, "probe < hi && values[probe] <= key", "values[min(probe, hi - 1)] <= key", "clip"),
    Mutant(SEARCH, "hi = min(hi, lo + step - 1);", "hi = lo + step - 1;", "clip", "address"),
    Mutant(SEARCH, "range.lo + ended_before_first * step", "range.lo + (ended_before_first + 1) * step", "off-by-one"),
    Mutant(SEARCH, "(ended_before_last + 1) * step - 1", "ended_before_last * step", "off-by-one"),
    Mutant(SEARCH, "(hi - lo + WARP_THREADS - 1)", "(hi - lo)", "rounding"),
    Mutant(SEARCH, "candidate < hi && ends[candidate] <= last", "ends[candidate] <= last", "clip", "address"),
    Mutant(SEARCH, "ends[candidate] <= last", "ends[candidate] < last", "bound"),
    Mutant(SEARCH, "? b + ended_num : hi;", "? b + ended_num : b + ended_num;", "fallback"),
    Mutant(SEARCH, "if (range.hi - range.lo > length / 2) break;", "", "hang"),
    Mutant(SEARCH, "probe < range.hi ? cuts[probe + 1] : INT32_MAX_VALUE", "cuts[probe + 1]", "clip", "address"),
    Mutant(SEARCH, "min(range.hi + 1, batch)", "range.hi + 1", "clip", "address"),
    Mutant(SEARCH, "(unsigned long long)i * stride", "i", "stride"),
    Mutant(SEARCH, "    }\n    __syncthreads();\n}", "    }\n}", "barrier", "thread"),
    # Storing columns
    Mutant(COLUMNS, "sizeof(int2)) % 2", "sizeof(int2)) % 1", "alignment", "address"),
    Mutant(COLUMNS, "bool has_b = column + 1 < column_num", "bool has_b = column < column_num", "bound", "address"),
    Mutant(COLUMNS, "else if (has_a) columns[column] = a;", "", "tail"),
    Mutant(COLUMNS, "else if (has_b) columns[column + 1] = b;", "", "head"),
    # The rule
    Mutant(RULE, "keys_after + 1 + rule.right", "keys_after + rule.right", "off-by-one"),
    Mutant(RULE, "max((int)(keys_after - rule.left), 0)", "(int)(keys_after - rule.left)", "clip"),
    Mutant(RULE, "keys_after + 1 + rule.right, (unsigned)q_len)", "keys_after + 1 + rule.right, ~0u)", "clip"),
    Mutant(RULE, "sink ? q_end : q_end - rows_from_lts", "q_end - rows_from_lts", "sinks"),
    Mutant(RULE, "< rule.sinks;", "<= rule.sinks;", "off-by-one"),
    Mutant(RULE, "(int)(q_end - rows_from_ute));", "(int)(q_end - rows_from_lts));", "swap"),
    Mutant(RULE, "next = min(b + 1, batch)", "next = b + 1", "padding", "address"),
    Mutant(RULE, "b = __shfl_sync(FULL_MASK, b_b, WARP_THREADS - 1);", "b = b_b;", "lane"),
    Mutant(RULE, "2 * WARP_THREADS - 1 - lead, last_column", "WARP_THREADS - 1 - lead, last_column", "range"),
    Mutant(RULE, "column_num + lead - 1) - lead;", "column_num - 1) - lead;", "off-by-one"),
    # Scans
    Mutant(STAIRCASE, "if (lane >= distance) v = max(v, other);", "if (lane > distance) v = max(v, other);", "lane"),
    Mutant(STAIRCASE, "lane + distance < WARP_THREADS", "lane + distance < WARP_THREADS - 1", "lane"),
    Mutant(STAIRCASE, "if (w < warp) before", "if (w <= warp) before", "warp"),
    Mutant(STAIRCASE, "if (w > warp) after", "if (w > warp + 1) after", "warp"),
    Mutant(STAIRCASE, "if (lane == 0) before = -1;", "", "lane"),
    Mutant(STAIRCASE, "__shfl_up_sync(FULL_MASK, through_lane, 1)", "through_lane", "lane"),
    Mutant(STAIRCASE, "warp_max[warp] = through_lane;\n    __syncthreads();", "warp_max[warp] = through_lane;", "barrier", "thread"),
    Mutant(STAIRCASE, "warp_min[warp] = from_lane;\n    __syncthreads();", "warp_min[warp] = from_lane;", "barrier", "thread"),
    # Rows to staircases
    Mutant(INTERVALS, "min(max(key, 0LL), (long long)kv_len)", "min(key, (long long)kv_len)", "clip"),
    Mutant(INTERVALS, "min(max(key, 0LL), (long long)kv_len)", "max(key, 0LL)", "clip"),
    Mutant(INTERVALS, "bool sees = s < e;", "bool sees = s <= e;", "bound"),
    Mutant(INTERVALS, ": kv_end;", ": kv_start;", "swap"),
    Mutant(INTERVALS, "if (b == batch || row + i >= row_num)", "if (row + i >= row_num)", "bound"),
    Mutant(INTERVALS, "bool exists = row + i < row_num;", "bool exists = true;", "bound", "address"),
    Mutant(INTERVALS, "two_rows[0], high = two_rows[1]", "two_rows[0], high = two_rows[0]", "load"),
    Mutant(INTERVALS, "int v = max(warp_running_max(*edge), so_far);", "int v = warp_running_max(*edge);", "carry"),
    Mutant(INTERVALS, "if (tile < tile_end) *edge = v;", "*edge = v;", "bound", "thread"),
    Mutant(INTERVALS, "__syncthreads();\n        link_tiles", "link_tiles", "barrier", "thread"),
    # Columns off the staircases
    Mutant(INTERVALS, "max(group, 1u) - 1", "group", "off-by-one"),
    Mutant(INTERVALS, "upper_bound(*this, first, end - 1, column)", "upper_bound(*this, first, end, column)", "off-by-one"),
    Mutant(INTERVALS, "stored.last_row(tile) + 1, column", "stored.last_row(tile), column", "off-by-one"),
    Mutant(INTERVALS, "rows + i + 1", "rows + i", "off-by-one"),
    Mutant(INTERVALS, "step.at[i] <= column_last", "step.at[i] < column_last", "bound"),
    Mutant(INTERVALS, "max(step.at[i], column_first) - column_first", "step.at[i] - column_first", "clip"),
    Mutant(INTERVALS, "WARP_THREADS - 1) next = NO_ROW;", "WARP_THREADS - 2) next = NO_ROW;", "lane"),
    Mutant(INTERVALS, "max(lts.at[i], ute.at[i])", "lts.at[i]", "order"),
    Mutant(INTERVALS, "__syncwarp();", "", "barrier", "thread"),
    Mutant(INTERVALS, "rows + i + 1);\n        }\n    }\n    __syncthreads();", "rows + i + 1);\n        }\n    }", "barrier", "thread"),
]
# fmt: on


def kernels():
    """Return each kernel file's text."""
    folder = compile.kernel_folder()
    return {path.name: path.read_text() for path in sorted(folder.glob("*.cu*"))}


def mutated(mutant):
    """Return the inlined sources, with the mutant in them."""
    sources = {name: compile.source(name) for name in kernels() if name.endswith(".cu")}
    return {name: text.replace(mutant.old, mutant.new) for name, text in sources.items()}


def how_noticed(mutant, folder):
    """Return how the CPU suite notices the mutant, in a word or two, or None if it does not."""
    executable = emulator.build(folder, mutant.by, mutated(mutant), ["-w"])
    judge = calls.check if mutant.by == "plain" else calls.run
    try:
        for packs, steps in suites(mutant.by):
            judge(executable, packs, SECONDS, steps)
    except AssertionError:
        return "wrong columns"
    except subprocess.TimeoutExpired:
        return "hangs"
    except RuntimeError as error:
        for report in ("AddressSanitizer", "runtime error", "data race", "guards"):
            if report in str(error):
                return report
        return "crashes"
    return None


def suites(by):
    """Yield the suite's packs, with their steps, the quickest to notice first."""
    rng = np.random.default_rng(0)
    part = 5 if by == "thread" else 1  # threads under their sanitizer are slow
    yield [random_pack(rng) for _ in range(40)], None
    yield list(tile_edges())[::part], None
    yield stepped_packs()[::part], 4
    yield list(rows_far_from_columns())[::part], None
    yield [random_pack(rng) for _ in range(200 // part)], None
    if by != "plain":
        window = emulator.CONSTANTS["WINDOW_SEQUENCES"]
        yield [hostile_pack(rng, tokens, window) for tokens in [40, 600] * 50], None
    yield [many_tiles_a_group(1)], None
    if by == "plain":
        yield [many_tiles_a_group(33)], None


def main(words):
    chosen = [m for m in MUTANTS if not words or any(w in m.why or w in m.old for w in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, mutant in enumerate(chosen, start=1):
            begin = time.perf_counter()
            noticed = how_noticed(mutant, folder)
            seconds = time.perf_counter() - begin
            survivors += noticed is None
            line = " ".join(mutant.old.split())
            print(
                f"{i:3} {mutant.file:20} {mutant.why:11} {noticed or 'SURVIVED':16} "
                f"{seconds:5.1f} s  {line:.60}",
                flush=True,
            )
    print(f"{len(chosen)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
