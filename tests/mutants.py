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
import test_blocks
from on_cpu import calls, emulator
from strategies import random_pack
from test_hostile import hostile_pack
from test_kernels_on_cpu import (
    large_packs,
    many_tiles_a_group,
    rows_far_from_columns,
    tile_edges,
)

from maskq_cupy import compile

SECONDS = 40  # a mutant that has not returned by then hangs, and is noticed


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
COLUMN_TILES = "column_tiles.cuh"
TILES = "tile_lists.cu"

# fmt: off
MUTANTS = [
    # Searches
    Mutant(SEARCH, "values[middle] <= key", "values[middle] < key", "bound"),
    Mutant(SEARCH, "lo = middle + 1;", "lo = middle + 2;", "off-by-one"),
    Mutant(SEARCH, "else hi = middle;", "else hi = middle - 1;", "off-by-one"),
    Mutant(SEARCH, "FULL_MASK, before)) * step", "FULL_MASK, before)) * step + 1", "off-by-one"),
    Mutant(SEARCH, "before = probe < hi && ends[probe]", "before = ends[probe]", "clip", "address"),
    Mutant(SEARCH, "candidate < range.hi ? ends[candidate] : INT32_MAX_VALUE", "ends[candidate]", "clip", "address"),
    Mutant(SEARCH, "end <= last));\n    return", "end < last));\n    return", "bound"),
    Mutant(SEARCH, "lo + before_last : range.hi", "lo + before_last : lo + before_last", "fallback"),
    Mutant(SEARCH, "return {lo + before_first,", "return {lo + before_first + 1,", "off-by-one"),
    Mutant(SEARCH, "probe < range.hi ? cuts[probe + 1] : INT32_MAX_VALUE", "cuts[probe + 1]", "clip", "address"),
    Mutant(SEARCH, "range.lo + ended_before_first * step", "range.lo + (ended_before_first + 1) * step", "off-by-one"),
    Mutant(SEARCH, "(ended_before_last + 1) * step - 1", "ended_before_last * step", "off-by-one"),
    Mutant(SEARCH, "if (range.hi - range.lo > length / 2) break;", "", "hang"),
    Mutant(SEARCH, "min(range.hi + 1, batch)", "range.hi + 1", "clip", "address"),
    Mutant(SEARCH, "if (at < cut_num) window.k[at] = k[i];", "if (at + 1 < cut_num) window.k[at] = k[i];", "off-by-one"),
    Mutant(SEARCH, "window.k[at] = k[i];\n    }\n    __syncthreads();", "window.k[at] = k[i];\n    }", "barrier", "thread"),
    # Storing columns
    Mutant(COLUMNS, "sizeof(int2)) % 2", "sizeof(int2)) % 1", "alignment", "address"),
    Mutant(COLUMNS, "bool has_b = column + 1 < column_num", "bool has_b = column < column_num", "bound", "address"),
    Mutant(COLUMNS, "else if (has_a) columns[column] = a;", "", "tail"),
    Mutant(COLUMNS, "else if (has_b) columns[column + 1] = b;", "", "head"),
    # The rule
    Mutant(RULE, "min(keys_after + 1 + rule.right, own.q_len)", "min(keys_after + rule.right, own.q_len)", "off-by-one"),
    Mutant(RULE, "min(keys_after + 1 + rule.right, own.q_len)", "keys_after + 1 + rule.right", "clip"),
    Mutant(RULE, "max((int)(keys_after - rule.left), 0)", "(int)(keys_after - rule.left)", "clip"),
    Mutant(RULE, "sink ? own.q_end : own.q_end - rows_from_lts", "own.q_end - rows_from_lts", "sinks"),
    Mutant(RULE, "column - own.kv_start < rule.sinks", "column - own.kv_start <= rule.sinks", "off-by-one"),
    Mutant(RULE, "(int)(own.q_end - rows_from_ute)", "(int)(own.q_end - rows_from_lts)", "swap"),
    Mutant(RULE, "next = min(b + 1, batch)", "next = b + 1", "clip", "address"),
    # Tiles of columns
    Mutant(COLUMN_TILES, "chunk_last < own.kv_end", "chunk_last <= own.kv_end", "off-by-one"),
    Mutant(COLUMN_TILES, "range.lo = __shfl_sync(FULL_MASK, b_b, WARP_THREADS - 1);", "range.lo = b_b;", "lane"),
    Mutant(COLUMN_TILES, "(warp * tile.steps + step)", "(warp + step)", "stride"),
    Mutant(COLUMN_TILES, "upper_bound(ends, b_a, here.hi, (int)column_b)", "b_a", "pair"),
    # Scans
    Mutant(STAIRCASE, "if (lane >= distance) v = max(v, other);", "if (lane > distance) v = max(v, other);", "lane"),
    Mutant(STAIRCASE, "lane + distance < WARP_THREADS", "lane + distance < WARP_THREADS - 1", "lane"),
    Mutant(STAIRCASE, "v.at[i] = min(v.at[i], v.at[i + 1]);", ";", "scan"),
    Mutant(STAIRCASE, "if (warp < threadIdx.x / WARP_THREADS) before", "if (warp <= threadIdx.x / WARP_THREADS) before", "warp"),
    Mutant(STAIRCASE, "if (warp > threadIdx.x / WARP_THREADS) behind", "if (warp > threadIdx.x / WARP_THREADS + 1) behind", "warp"),
    Mutant(STAIRCASE, "edges.at[threadIdx.x / WARP_THREADS] = v.at[PER_THREAD - 1]", "edges.at[threadIdx.x / WARP_THREADS] = v.at[0]", "edge"),
    Mutant(STAIRCASE, "__syncthreads();\n    fold_max_before", "fold_max_before", "barrier", "thread"),
    # Rows to staircases
    Mutant(INTERVALS, "s = min(max(start, 0), kv_len)", "s = min(start, kv_len)", "clip"),
    Mutant(INTERVALS, "e = min(max(end, 0), kv_len)", "e = max(end, 0)", "clip"),
    Mutant(INTERVALS, "min(max(key, 0LL), (long long)INT32_MAX_VALUE)", "key", "clip"),
    Mutant(INTERVALS, ": own.kv_end;", ": own.kv_start;", "swap"),
    Mutant(INTERVALS, "start = s < e ?", "start = s <= e ?", "bound"),
    Mutant(INTERVALS, "if (b >= batch) return", "if (b > batch) return", "bound", "address"),
    Mutant(INTERVALS, "if (row + i >= intervals.row_num) continue;", "", "bound", "address"),
    Mutant(INTERVALS, "row + PER_THREAD <= intervals.row_num", "row < intervals.row_num", "bound", "address"),
    Mutant(INTERVALS, "two_rows[0], high = two_rows[1]", "two_rows[0], high = two_rows[0]", "load"),
    Mutant(INTERVALS, "warp_last < own.q_end", "warp_last <= own.q_end", "off-by-one"),
    Mutant(INTERVALS, "range.lo = __shfl_sync(FULL_MASK, here.lo, WARP_THREADS - 1);", "range.lo = here.lo;", "lane"),
    Mutant(INTERVALS, "shared.max_edges[tile % 2]", "shared.max_edges[0]", "parity", "thread"),
    Mutant(INTERVALS, "max(warp_running_max(edge ? *edge : -1), so_far)", "max(warp_running_max(edge ? *edge : -1), min(so_far, -1))", "carry"),
    Mutant(INTERVALS, "int v = min(warp_running_min_from_right(edge", "int v = max(warp_running_min_from_right(edge", "carry"),
    Mutant(INTERVALS, "tile < tile_end ? stairs.ends", "tile <= tile_end ? stairs.ends", "bound", "thread"),
    Mutant(INTERVALS, "bool exists = end >= first_tile + from_right", "bool exists = end + 1 >= first_tile + from_right", "bound", "address"),
    Mutant(INTERVALS, "__syncthreads();\n    if (row_num > TILE)", "if (row_num > TILE)", "barrier", "thread"),
    Mutant(INTERVALS, "__syncthreads();\n        link_tiles", "link_tiles", "barrier", "thread"),
    # Columns off the staircases
    Mutant(INTERVALS, "stored.last_row(tile) + 1, column", "stored.last_row(tile), column", "off-by-one"),
    Mutant(INTERVALS, "group > 0 ? group_edges[group - 1] : -1", "-1", "group"),
    Mutant(INTERVALS, "before = max(before, (*this)[tile - 1])", "before = before", "tile"),
    Mutant(INTERVALS, "), rows + i + 1);", "), rows + i);", "off-by-one"),
    Mutant(INTERVALS, "step.at[i] <= here.column_last)", "step.at[i] < here.column_last)", "bound"),
    Mutant(INTERVALS, "max(step.at[i], here.column_first) - here.column_first", "step.at[i] - here.column_first", "clip"),
    Mutant(INTERVALS, "after > here.column_first", "after > here.column_first + 1", "off-by-one"),
    Mutant(INTERVALS, "lane == WARP_THREADS - 1) next = NO_ROW", "lane == WARP_THREADS - 2) next = NO_ROW", "lane"),
    Mutant(INTERVALS, "max(lts.at[i], ute.at[i])", "lts.at[i]", "order"),
    Mutant(INTERVALS, "put_four(shared.lts + own, lts);\n        __syncwarp();", "put_four(shared.lts + own, lts);", "barrier", "thread"),
    Mutant(INTERVALS, "put_four(shared.lts + own, {});\n        __syncthreads();", "put_four(shared.lts + own, {});", "barrier", "thread"),
    Mutant(INTERVALS, "(tile + 1) % 2]);\n        __syncthreads();", "(tile + 1) % 2]);", "barrier", "thread"),
    Mutant(INTERVALS, "shared.lts_edges);\n        __syncthreads();", "shared.lts_edges);", "barrier", "thread"),
    # Tile lists
    Mutant(TILES, "(row_end - 1) / block_q + 1", "row_end / block_q + 1", "off-by-one"),
    Mutant(TILES, "min((unsigned)max(bounds.x, 0), row_num)", "(unsigned)max(bounds.x, 0)", "clip"),
    Mutant(TILES, "+ block_q - 1) / block_q", ") / block_q", "rounding"),
    Mutant(TILES, "if (end - first == block_k) full", "full", "ragged"),
    Mutant(TILES, "{first, max(first, end)}", "{first, end}", "clip"),
    Mutant(TILES, "highest = max(highest, __shfl_down_sync(FULL_MASK, highest, distance));", "", "scan"),
    Mutant(TILES, "repeats && threadIdx.x % WARP_THREADS != 0", "repeats", "lane"),
    Mutant(TILES, "atomicAdd(&covering[tail - word_first], -1);", "", "difference"),
    Mutant(TILES, "listed += (unsigned)partials;", "", "carry"),
    Mutant(TILES, "__syncthreads();\n        for (unsigned w = warp;", "for (unsigned w = warp;", "barrier", "thread"),
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
        if mutant.file == TILES:
            rng = np.random.default_rng(0)
            test_blocks.check(executable, test_blocks.random_calls(rng, 40))
            test_blocks.check(executable, test_blocks.calls_around_words_and_chunks())
            return None
        for packs, large in suites(mutant.by):
            judge(executable, packs, SECONDS, large)
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
    """Yield the suite's packs, and whether they are run as large ones, the quickest first."""
    rng = np.random.default_rng(0)
    part = 5 if by == "thread" else 1  # threads under their sanitizer are slow
    yield [random_pack(rng) for _ in range(40)], False
    yield list(large_packs())[::-part], True
    yield list(tile_edges())[::part], False
    yield list(rows_far_from_columns())[::part], False
    yield [random_pack(rng) for _ in range(200 // part)], False
    if by != "plain":
        yield [hostile_pack(rng, tokens) for tokens in [40, 600, 2000] * 30], False
    yield list(many_tiles_a_group()), False


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
