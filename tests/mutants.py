# ruff: noqa: E402, E501
"""Breaks the kernels on purpose, one place at a time, and shows that the CPU suite notices.

    python tests/mutants.py [word ...]     those whose file, text or reason has one of the words; else all

Prints a line a mutant, and exits with 1 if one survived. A survivor is a test that is missing.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import numpy as np
import test_blocks
import test_cu_seqlens
import test_excess
import test_tree
from on_cpu import calls, emulator
from strategies import random_pack
from test_hostile import hostile_pack, hostile_tree, misled_searches
from test_kernels_on_cpu import (
    large_packs,
    many_tiles_a_group,
    rows_far_from_columns,
    tile_edges,
)

from maskq_cupy import compiler

SECONDS = 40  # a mutant that has not returned by then hangs, and is noticed
TOKENS = [40, 600, 2000]  # of hostile packs


class Mutant(NamedTuple):
    """A text that occurs once in the kernels, what it is broken to, and what that is.

    ``by`` is the build that notices: plain by wrong results, address by accesses outside the arrays
    or undefined behaviour from hostile values, thread by races.
    """

    file: str
    old: str
    new: str
    why: str
    by: str = "plain"


SEARCH, SEQUENCES, ROWS, STAIRCASE = "search.cuh", "sequences.cuh", "rows.cuh", "staircase.cuh"
COLUMNS, COLUMN_TILES, SUBTREES = "columns.cuh", "column_tiles.cuh", "tree.cuh"
RULE, INTERVALS, TREE = "columns_rule.cu", "columns_intervals.cu", "columns_tree.cu"
EXCESS, TILES = "excess.cu", "tile_lists.cu"
RUNS, PADDED, FORMS = "token_runs.cu", "padded.cu", "forms.cu"

# fmt: off
MUTANTS = [
    # Searches
    Mutant(SEARCH, "probe < hi && values[probe] <= key", "probe < hi && values[probe] < key", "bound"),
    Mutant(SEARCH, "probe < hi && values[probe] <= key", "values[probe] <= key", "clip", "address"),
    Mutant(SEARCH, "lo + (Group::index() + 1) * step - 1", "lo + Group::index() * step", "off-by-one"),
    Mutant(SEARCH, "values[probe] <= key) * step", "values[probe] <= key) * step + 1", "off-by-one"),
    Mutant(SEARCH, "hi = min(hi, lo + step - 1)", "hi = lo + step - 1", "clip", "address"),
    Mutant(SEARCH, "hi = min(hi, lo + step - 1)", "hi = min(hi, lo + step - 2)", "off-by-one"),
    Mutant(SEARCH, "while (hi - lo >= entries)", "while (hi - lo > entries)", "bound"),
    Mutant(SEARCH, "most = max(most, hi[i] - lo[i])", "most = hi[i] - lo[i]", "longest"),
    Mutant(SEARCH, "for (; most > 0; most /= 2)", "for (; most > 1; most /= 2)", "rounds"),
    Mutant(SEARCH, "values[min(middle, hi[i] - 1)] <= key[i]", "values[min(middle, hi[i] - 1)] < key[i]", "bound"),
    Mutant(SEARCH, "values[min(middle, hi[i] - 1)]", "values[middle]", "clip", "address"),
    Mutant(SEARCH, "lo[i] < hi[i] && at_or_below", "at_or_below", "ended"),
    Mutant(SEARCH, "lo[i] = middle + 1;", "lo[i] = middle + 2;", "off-by-one"),
    # The sequences of a block
    Mutant(SEQUENCES, "return cuts[b + 1];", "return cuts[b];", "off-by-one"),
    Mutant(SEQUENCES, "range.lo + (threadIdx.x + 1) * step - 1", "range.lo + threadIdx.x * step", "off-by-one"),
    Mutant(SEQUENCES, "probe < range.hi ? of.ends[probe] : NO_END", "of.ends[probe]", "clip", "address"),
    Mutant(SEQUENCES, "range.lo + ended_before_first * step", "range.lo + (ended_before_first + 1) * step", "off-by-one"),
    Mutant(SEQUENCES, "__syncthreads_count(end <= positions.last)", "__syncthreads_count(end <= positions.first)", "last"),
    Mutant(SEQUENCES, "min(range.hi, range.lo + (ended_before_last + 1) * step - 1)", "range.lo + (ended_before_last + 1) * step - 1", "clip", "address"),
    Mutant(SEQUENCES, "if (range.hi - range.lo > length / 2) break;", "", "hang"),
    # The window of sequences
    Mutant(SEQUENCES, "first(0u - WARP_THREADS)", "first(0)", "start"),
    Mutant(SEQUENCES, "if (of.batch < WARP_THREADS) load(0);", "if (of.batch < WARP_THREADS) load(1);", "early load"),
    Mutant(SEQUENCES, "if (of.batch < WARP_THREADS) load(0);", "load(of.batch);", "early load"),
    Mutant(SEQUENCES, "min(first + threadIdx.x % WARP_THREADS, of.batch)", "first + threadIdx.x % WARP_THREADS", "clip", "address"),
    Mutant(SEQUENCES, "__ballot_sync(FULL_MASK, own.end <= position)", "__ballot_sync(FULL_MASK, own.end < position)", "bound"),
    Mutant(SEQUENCES, "b = first + passed;", "b = first + passed + 1;", "off-by-one"),
    Mutant(SEQUENCES, "if (passed == WARP_THREADS) {", "if (passed > WARP_THREADS) {", "jump"),
    Mutant(SEQUENCES, "unsigned hi = max(b, range.hi);", "unsigned hi = range.hi;", "clip", "address"),
    Mutant(SEQUENCES, "hi, position, WARP_THREADS);", "hi, position, 2 * WARP_THREADS);", "entries"),
    Mutant(SEQUENCES, "if (of_last == WARP_THREADS) {", "if (of_last > WARP_THREADS) {", "move"),
    Mutant(SEQUENCES, "if (of_last == WARP_THREADS) return find_across(span, position, use);", "", "across"),
    Mutant(SEQUENCES, "find_lanes(min(ended(span.first), of_last), of_last, position, lane);\n        for", "find_lanes(of_last, of_last, position, lane);\n        for", "count"),
    Mutant(SEQUENCES, "find_lanes(min(ended(span.first), of_last), of_last, position, lane);\n            for", "find_lanes(of_last, of_last, position, lane);\n            for", "count"),
    Mutant(SEQUENCES, "true);\n        return of_last;", "true);\n        return of_last + 1;", "off-by-one"),
    Mutant(SEQUENCES, "position[i] >= span.first && position[i] < next", "position[i] < next", "is it"),
    Mutant(SEQUENCES, "position[i] >= span.first && position[i] < next", "position[i] >= span.first", "is it"),
    Mutant(SEQUENCES, "position[i] >= span.first && position[i] < next", "position[i] >= span.first && position[i] <= next", "bound"),
    Mutant(SEQUENCES, "if (next > span.last) return of_last;", "if (next >= span.last) return of_last;", "bound"),
    Mutant(SEQUENCES, "move_to(next);", "move_to(next + 1);", "off-by-one"),
    Mutant(SEQUENCES, "move_to(span.first);", "move_to(span.last);", "move"),
    Mutant(SEQUENCES, "b < to; ++b)", "b + 1 < to; ++b)", "off-by-one"),
    Mutant(SEQUENCES, "lane[i] += end <= position[i]", "lane[i] += end < position[i]", "bound"),
    Mutant(SEQUENCES, "span.first = next;", "span.first = next + 1;", "off-by-one"),
    # Storing columns
    Mutant(COLUMNS, "sizeof(int2)) % 2", "sizeof(int2)) % 1", "alignment", "address"),
    Mutant(COLUMNS, "column < column_num, column + 1 < column_num", "column < column_num, column < column_num", "bound", "address"),
    Mutant(COLUMNS, "else if (has_a) columns[column] = a;", "", "tail"),
    Mutant(COLUMNS, "else if (has_b) columns[column + 1] = b;", "", "head"),
    # The rule
    Mutant(RULE, "min(keys_after + 1 + rule.right, q_len)", "min(keys_after + rule.right, q_len)", "off-by-one"),
    Mutant(RULE, "min(keys_after + 1 + rule.right, q_len)", "keys_after + 1 + rule.right", "clip"),
    Mutant(RULE, "max((int)(keys_after - rule.left), 0)", "(int)(keys_after - rule.left)", "clip"),
    Mutant(RULE, "sink ? own.q_end : own.q_end - rows_from_lts", "own.q_end - rows_from_lts", "sinks"),
    Mutant(RULE, "column - own.kv_start < rule.sinks", "column - own.kv_start <= rule.sinks", "off-by-one"),
    Mutant(RULE, "make_int2(lts, (int)(own.q_end - rows_from_ute))", "make_int2(lts, (int)(own.q_end - rows_from_lts))", "swap"),
    Mutant(RULE, "next = min(b + 1, batch), kv_end", "next = b + 1, kv_end", "clip", "address"),
    # Tiles of columns
    Mutant(COLUMN_TILES, "min(start + size, end) - 1 - lead", "min(start + size, end) - 2 - lead", "off-by-one"),
    Mutant(COLUMN_TILES, "Span own = {max(start, lead) - lead", "Span own = {max(start, lead)", "lead"),
    Mutant(COLUMN_TILES, "Span of_block = {max(block, lead) - lead", "Span of_block = {max(block + 2 * size, lead) - lead", "span"),
    Mutant(COLUMN_TILES, "min(block + WARPS * size, end)", "min(block + size, end)", "span"),
    Mutant(COLUMN_TILES, "end = column_num + lead", "end = column_num", "lead"),
    Mutant(RULE, "start + 2 * WARP_THREADS - 1 - lead", "start + 2 * WARP_THREADS - 1", "lead"),
    Mutant(RULE, "column = start + 2 * lane - lead;", "column = start + 2 * lane;", "lead"),
    Mutant(RULE, "if (last < own.end)", "if (last <= own.end)", "off-by-one"),
    Mutant(RULE, "b = min(column + 1, last)", "b = min(column, last)", "pair"),
    Mutant(RULE, "pair[i] = is_it ? bounds : pair[i];", "pair[i] = bounds;", "is it"),
    Mutant(RULE, "rule_columns.of_lane(window.own, of_last)", "rule_columns.of_lane(window.own, of_last + 1)", "lane"),
    Mutant(RULE, "WARP_THREADS;\n        first = last + 1;", "WARP_THREADS;\n        first = last + 2;", "off-by-one"),
    # Scans
    Mutant(STAIRCASE, "max(v, __shfl_up_sync(FULL_MASK, v, distance))", "max(v, __shfl_up_sync(FULL_MASK, v, 1))", "lane"),
    Mutant(STAIRCASE, "distance < WARP_THREADS; distance *= 2)\n        v = min", "distance < WARP_THREADS / 2; distance *= 2)\n        v = min", "lane"),
    Mutant(STAIRCASE, "v.at[i] = min(v.at[i], v.at[i + 1]);", ";", "scan"),
    Mutant(STAIRCASE, "if (warp < threadIdx.x / WARP_THREADS) before", "if (warp <= threadIdx.x / WARP_THREADS) before", "warp"),
    Mutant(STAIRCASE, "if (warp > threadIdx.x / WARP_THREADS) behind", "if (warp > threadIdx.x / WARP_THREADS + 1) behind", "warp"),
    Mutant(STAIRCASE, "edges.at[threadIdx.x / WARP_THREADS] = v.at[PER_THREAD - 1]", "edges.at[threadIdx.x / WARP_THREADS] = v.at[0]", "edge"),
    Mutant(STAIRCASE, "__syncthreads();\n    fold_max_before", "fold_max_before", "barrier", "thread"),
    # Rows to staircases
    Mutant(ROWS, "s = min(max(start, 0), kv_len)", "s = min(start, kv_len)", "clip"),
    Mutant(ROWS, "e = min(max(end, 0), kv_len)", "e = max(end, 0)", "clip"),
    Mutant(ROWS, "min(max(key, 0LL), (long long)INT32_MAX_VALUE)", "key", "clip"),
    Mutant(ROWS, ": own.kv_end;", ": own.kv_start;", "swap"),
    Mutant(ROWS, "start = s < e ?", "start = s <= e ?", "bound"),
    Mutant(ROWS, "if (b >= batch) return", "if (b > batch) return", "bound", "address"),
    Mutant(ROWS, "if (row + i >= intervals.row_num) continue;", "", "bound", "address"),
    Mutant(ROWS, "row + PER_THREAD <= intervals.row_num", "row < intervals.row_num", "bound", "address"),
    Mutant(ROWS, "two_rows[0], high = two_rows[1]", "two_rows[0], high = two_rows[0]", "load"),
    Mutant(ROWS, "!intervals.is_int64 && intervals.is_aligned", "!intervals.is_int64", "alignment", "address"),
    Mutant(ROWS, "return {NO_END, NO_ROW, NO_ROW};", "return {NO_END, 0, 0};", "padding"),
    Mutant(ROWS, "if (span.last < own.end)", "if (span.last <= own.end)", "off-by-one"),
    Mutant(ROWS, "first + PER_THREAD * WARP_THREADS - 1, last_row", "first + PER_THREAD * WARP_THREADS - 2, last_row", "off-by-one"),
    Mutant(ROWS, "rows[i] = min(row + i, last_row)", "rows[i] = min(row, last_row)", "row"),
    Mutant(ROWS, "start.at[i] = is_it ? s : start.at[i];", "start.at[i] = s;", "is it"),
    Mutant(ROWS, "window.of.of_lane(window.own, of_last)", "window.of.of_lane(window.own, of_last + 1)", "lane"),
    Mutant(INTERVALS, "stairs.last_row(tile_end - 1)}", "stairs.last_row(stairs.first_tile(group))}", "span"),
    Mutant(INTERVALS, "shared.max_edges[tile % 2]", "shared.max_edges[0]", "parity", "thread"),
    Mutant(INTERVALS, "max(warp_running_max(edge ? *edge : -1), so_far)", "max(warp_running_max(edge ? *edge : -1), min(so_far, -1))", "carry"),
    Mutant(INTERVALS, "int v = min(warp_running_min_from_right(edge", "int v = max(warp_running_min_from_right(edge", "carry"),
    Mutant(INTERVALS, "tile < tile_end ? stairs.ends", "tile <= tile_end ? stairs.ends", "bound", "thread"),
    Mutant(INTERVALS, "bool exists = end >= first_tile + from_right", "bool exists = end + 1 >= first_tile + from_right", "bound", "address"),
    Mutant(INTERVALS, "__syncthreads();\n    if (row_num > TILE)", "if (row_num > TILE)", "barrier", "thread"),
    Mutant(INTERVALS, "__syncthreads();\n        link_tiles", "link_tiles", "barrier", "thread"),
    # Columns off the staircases
    Mutant(STAIRCASE, "hi = stored.last_row(tile) + 1;", "hi = stored.last_row(tile);", "off-by-one"),
    Mutant(STAIRCASE, "min(lo, group_num - 1)", "lo", "clip", "address"),
    Mutant(STAIRCASE, "max(lo, 1u) - 1", "lo", "off-by-one"),
    Mutant(STAIRCASE, "stored.tile_end(group) - 1 + BEHIND", "stored.tile_end(group) - 1", "off-by-one"),
    Mutant(STAIRCASE, "group > 0 ? group_edges[group - 1] : -1", "-1", "group"),
    Mutant(STAIRCASE, "before = max(before, (*this)[tile - 1])", "before = before", "tile"),
    Mutant(STAIRCASE, "group + 1 < group_num ? group_edges[group + 1] : NO_ROW", "NO_ROW", "group"),
    Mutant(STAIRCASE, "behind = min(behind, (*this)[tile + 1])", "behind = behind", "tile"),
    Mutant(INTERVALS, "atomicMax(marks + at, rows + i + 1)", "atomicMax(marks + at, rows + i)", "off-by-one"),
    Mutant(INTERVALS, "if (at < next_at) atomicMax", "if (at <= next_at) atomicMax", "bound"),
    Mutant(INTERVALS, "min(max(step, column_first), column_last + 1) - column_first", "min(max(step, column_first), column_last) - column_first", "off-by-one"),
    Mutant(INTERVALS, "min(max(step, column_first), column_last + 1) - column_first", "min(step, column_last + 1) - column_first", "clip", "address"),
    Mutant(INTERVALS, "next <= here.column_first ||", "next <= here.column_first + 1 ||", "off-by-one"),
    Mutant(INTERVALS, "threadIdx.x / 2 * (tile_num - 1)", "threadIdx.x % 2 * (tile_num - 1)", "near"),
    Mutant(INTERVALS, "lane == WARP_THREADS - 1) next = NO_ROW", "lane == WARP_THREADS - 2) next = NO_ROW", "lane"),
    Mutant(INTERVALS, "max(lts.at[i], ute.at[i])", "lts.at[i]", "order"),
    Mutant(INTERVALS, "put_four(shared.lts + own, lts);\n        __syncwarp();", "put_four(shared.lts + own, lts);", "barrier", "thread"),
    Mutant(INTERVALS, "put_four(shared.lts + own, {});\n        __syncthreads();", "put_four(shared.lts + own, {});", "barrier", "thread"),
    Mutant(INTERVALS, "(tile + 1) % 2]);\n        __syncthreads();", "(tile + 1) % 2]);", "barrier", "thread"),
    Mutant(INTERVALS, "shared.lts_edges);\n        __syncthreads();", "shared.lts_edges);", "barrier", "thread"),
    # Trees
    Mutant(TREE, "unsigned at = min(b, pack.batch)", "unsigned at = b", "clip", "address"),
    Mutant(TREE, "next = min(b + 1, pack.batch);", "next = b + 1;", "clip", "address"),
    Mutant(TREE, "b < pack.batch ? segments.parents[b] : -1", "segments.parents[b]", "clip", "address"),
    Mutant(TREE, "b < pack.batch ? pack.k[next] : NO_END", "pack.k[next]", "padding"),
    Mutant(TREE, "narrow<OfBlock>(SequenceEnds{pack.k}, first, end, column, SLACK);", "narrow<OfBlock>(SequenceEnds{pack.k}, first, end, column + 1, 1);", "search"),
    Mutant(TREE, "window.start = own.b == 0 ? 0 : start;", "window.start = 0;", "held"),
    Mutant(TREE, "if (threadIdx.x == BLOCK_THREADS - 1) end = NO_END;", "", "last", "address"),
    Mutant(TREE, "blockIdx.x * WARPS * size - tile.lead", "blockIdx.x * WARPS * size", "lead"),
    Mutant(TREE, "warp <= WARPS; ++warp)", "warp < WARPS; ++warp)", "part"),
    Mutant(TREE, "column = warp == 0 ? tile.of_block.first : block + warp * size", "column = block + warp * size", "lead"),
    Mutant(TREE, "start <= column && column < end", "start < column && column < end", "bound"),
    Mutant(TREE, "write_any(window.begins[warp], threadIdx.x);\n        }\n        __syncthreads();", "write_any(window.begins[warp], threadIdx.x);\n        }", "barrier", "thread"),
    Mutant(TREE, "own.kv_start <= span.last", "own.kv_start < span.last", "bound"),
    Mutant(TREE, "own.kv_end > span.first", "own.kv_end > span.first + 1", "bound"),
    Mutant(TREE, "warp + r < WARPS ?", "warp + r <= WARPS ?", "bound", "address"),
    Mutant(TREE, "lanes_below(parent, own.b - lane)", "lanes_below(parent, own.b - lane + 1)", "off-by-one"),
    Mutant(TREE, "below &= (FULL_MASK - 1) << lane", "below &= FULL_MASK << lane", "own"),
    Mutant(TREE, "run = below != 0 ? r : run", "run = r", "run"),
    Mutant(TREE, "(unsigned)__ffs((int)hits) - 2", "(unsigned)__ffs((int)hits) - 1", "off-by-one"),
    Mutant(TREE, "is_asked && hits == 0", "false", "far"),
    Mutant(TREE, "unsigned run = of_warp(own.b - threadIdx.x) / RUN;", "unsigned run = of_warp(own.b - threadIdx.x) / RUN + 8;", "minima"),
    Mutant(TREE, "window.minima);\n            __syncthreads();", "window.minima);", "barrier", "thread"),
    Mutant(TREE, "WARP_THREADS - 1 - (unsigned)__clz((int)far)", "(unsigned)__ffs((int)far) - 1", "order"),
    Mutant(TREE, "max(from, first + at + 1)", "first + at", "own"),
    Mutant(TREE, "if (lane == at) window.at[threadIdx.x].row_end = row_end;", "window.at[threadIdx.x].row_end = row_end;", "lane"),
    Mutant(TREE, "row_end = row_end;\n        }\n        __syncthreads();", "row_end = row_end;\n        }", "barrier", "thread"),
    Mutant(TREE, "unsigned half = (num + 1) / 2;", "unsigned half = num / 2 + 1;", "search", "address"),
    Mutant(TREE, "window.at[lo + half - 1].end <= column", "window.at[lo + half - 1].end < column", "bound"),
    Mutant(TREE, "lo = min(window.begins[warp], hi)", "lo = window.begins[warp]", "clip", "address"),
    Mutant(TREE, "max(start, tile.lead) - tile.lead", "start - tile.lead", "lead"),
    Mutant(TREE, "column + i - span.first <= span.last - span.first", "column + i <= span.last", "window"),
    Mutant(TREE, "own.end <= column + i && lo < hi", "own.end < column + i && lo < hi", "bound"),
    Mutant(TREE, "own.end <= column + i && lo < hi", "own.end <= column + i", "clip", "address"),
    Mutant(TREE, "if (window.at[lo].end <= column + i) find", "if (false) find", "empties"),
    Mutant(TREE, "min(own.end - (column + i), own.q_len)", "(own.end - (column + i))", "clip"),
    Mutant(TREE, "column, has[0], has[1], pair", "column, true, has[1], pair", "head"),
    Mutant(TREE, "column, has[0], has[1], pair", "column, has[0], true, pair", "tail", "address"),
    Mutant(TREE, "window.start <= span.first && span.first < end", "span.first < end", "held"),
    Mutant(TREE, "window.start <= span.first && span.first < end", "window.start <= span.first", "held"),
    Mutant(TREE, "is_far = block.link(own, span);\n        __syncthreads();", "is_far = block.link(own, span);", "barrier", "thread"),
    Mutant(TREE, "max(end, span.first + 1) - 1", "end - 1", "hang", "address"),
    Mutant(TREE, "span.first = last + 1;", "span.first = last + 2;", "off-by-one"),
    Mutant(TREE, "write_minima(segments.parents, run, end, minima);\n    __syncthreads();", "write_minima(segments.parents, run, end, minima);", "barrier", "thread"),
    Mutant(TREE, "run + lane < end ? minima[run + lane] : INT32_MAX_VALUE", "minima[run + lane]", "clip", "address"),
    Mutant(TREE, "minima[segments.level_1.num + blockIdx.x]", "minima[segments.level_1.num]", "level"),
    Mutant(SUBTREES, "(int)((unsigned)parent - first), -1)", "(int)((unsigned)parent - first), 0)", "rank"),
    Mutant(SUBTREES, "-1), WARP_THREADS - 1) + 1)", "-1), WARP_THREADS - 2) + 1)", "rank"),
    Mutant(SUBTREES, "bit < WARP_THREADS; bit *= 2)", "bit < WARP_THREADS / 2; bit *= 2)", "bits"),
    Mutant(SUBTREES, "(own & ~ones) | (~(own ^ ones) & at_most)", "(own & ~ones) | (own & at_most)", "compare"),
    Mutant(SUBTREES, "at_most & __ballot_sync(FULL_MASK, rank < WARP_THREADS)", "at_most", "rank"),
    Mutant(SUBTREES, "(run + r) * RUN + lane", "run * RUN + lane", "run"),
    Mutant(SUBTREES, "i < entries.num ? entries[(unsigned)i] : INT32_MAX_VALUE", "entries[(unsigned)i]", "clip", "address"),
    Mutant(SUBTREES, "lane == 0 && run + r < end", "lane == 0", "clip", "address"),
    Mutant(SUBTREES, "run += WARPS * MINIMA_AT_ONCE", "run += 2 * WARPS * MINIMA_AT_ONCE", "stride"),
    Mutant(SUBTREES, "if (!level_2.first) return", "if (false) return", "level"),
    Mutant(SUBTREES, "min((i + RUN - 1) / RUN * RUN, num)", "(i + RUN - 1) / RUN * RUN", "clip", "address"),
    Mutant(SUBTREES, "value[r] = i < end ?", "value[r] = i <= end ?", "clip", "address"),
    Mutant(SUBTREES, "value[r] < b", "value[r] <= b", "bound"),
    Mutant(SUBTREES, "from + r * RUN + __ffs((int)hits) - 1", "from + r * RUN + __ffs((int)hits)", "off-by-one"),
    Mutant(SUBTREES, "from + r * RUN + __ffs((int)hits) - 1", "from + __ffs((int)hits) - 1", "run"),
    Mutant(SUBTREES, "if (segment < end || end == parents.num) return segment;", "if (segment < end) return segment;", "end"),
    Mutant(SUBTREES, "run_below((int)b, end / RUN)", "run_below((int)b, end / RUN + 1)", "climb"),
    Mutant(SUBTREES, "first_below<RUNS_AT_ONCE>(b, end / RUN, level_2.num)", "first_below<RUNS_AT_ONCE>(b, end / RUN + 1, level_2.num)", "climb"),
    Mutant(SUBTREES, "if (run < end || end == level_1.num) return run;", "if (run < end) return run;", "end"),
    Mutant(SUBTREES, "min(run * RUN + RUN, parents.num)", "run * RUN + RUN", "clip", "address"),
    Mutant(SUBTREES, "min(above * RUN + RUN, level_1.num)", "above * RUN + RUN", "clip", "address"),
    Mutant(SUBTREES, "distance = WARP_THREADS / 2; distance > 0; distance /= 2)\n        v = min", "distance = WARP_THREADS / 4; distance > 0; distance /= 2)\n        v = min", "scan"),
    # The excess
    Mutant(EXCESS, "max((long long)end.at[i] - start.at[i], 0LL)", "((long long)end.at[i] - start.at[i])", "clip"),
    Mutant(EXCESS, "max((long long)shown_end.at[i] - shown_start.at[i], 0LL)", "((long long)shown_end.at[i] - shown_start.at[i])", "clip"),
    Mutant(EXCESS, "max((long long)shown_end.at[i]", "max((long long)end.at[i]", "swap"),
    Mutant(EXCESS, "shown != own_keys && rows == 0", "shown != own_keys", "first"),
    Mutant(EXCESS, "row_num - (row + i)", "row_num - row", "first"),
    Mutant(EXCESS, "up.stored.last_row(tile_end - 1)", "up.stored.last_row(first_tile)", "span"),
    Mutant(EXCESS, "atomicMax(&found.rows, rows)", "atomicAdd(&found.rows, rows)", "first"),
    Mutant(EXCESS, "if (threadIdx.x == 0) found = {0, 0};", "", "start"),
    Mutant(EXCESS, "if (threadIdx.x == 0 && found.rows != 0) {", "if (found.rows != 0) {", "thread"),
    Mutant(EXCESS, "if (rows) atomicMax(rows, found.rows);", "atomicMax(rows, found.rows);", "null"),
    Mutant(EXCESS, "if (rows) atomicMax(rows, found.rows);", "if (rows) atomicAdd(rows, found.rows);", "first"),
    Mutant(EXCESS, "__syncthreads();\n    if (threadIdx.x == 0 && found", "if (threadIdx.x == 0 && found", "barrier", "thread"),
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
    # Runs of tokens
    Mutant(RUNS, "row_length == num ? token == 0 : token % row_length == 0", "token == 0", "rows"),
    Mutant(RUNS, "if (!by_positions) return value != before;", "return value != before;", "positions"),
    Mutant(RUNS, "value <= before || (unsigned long long)value", "(unsigned long long)value", "wrap"),
    Mutant(RUNS, "(!of_spans && !has_padding) || values[num - 1]", "!has_padding || values[num - 1]", "open"),
    Mutant(RUNS, "values[num - 1] != other_id", "values[num - 1] == other_id", "open"),
    Mutant(RUNS, "min(first_token + WORD_BITS * i + lane, tokens.num - 1)", "first_token + WORD_BITS * i + lane", "clip", "address"),
    Mutant(RUNS, "tokens.values[max(token, 1u) - 1]", "tokens.values[token - 1]", "clip", "address"),
    Mutant(RUNS, "token < tokens.num && tokens.begins(token", "tokens.begins(token", "bound"),
    Mutant(RUNS, "begins && (!tokens.of_spans || value[i] != tokens.other_id)", "begins", "text"),
    Mutant(RUNS, "if (first >= tokens.num) continue;", "", "bound", "address"),
    Mutant(RUNS, "begins && token > 0 && before[i]", "begins && before[i]", "first"),
    Mutant(RUNS, "before[i] != tokens.other_id;", "true;", "text"),
    Mutant(RUNS, "group.starts += (unsigned)__popc(start_bits);", "group.starts = (unsigned)__popc(start_bits);", "sum"),
    Mutant(RUNS, "group.end = first + WORD_BITS - 1 -", "group.end = first + WORD_BITS -", "off-by-one"),
    Mutant(RUNS, "min(first_tile + group_tiles, tile_num)", "first_tile + group_tiles", "clip"),
    Mutant(RUNS, "if (is_last) group.end = tokens.num;", "", "end"),
    Mutant(RUNS, "__syncthreads();  // shared is 0", "", "barrier", "thread"),
    Mutant(RUNS, "    __syncthreads();\n    if (threadIdx.x == 0) groups[blockIdx.x] =", "    if (threadIdx.x == 0) groups[blockIdx.x] =", "barrier", "thread"),
    Mutant(RUNS, "g < group_num; g += BLOCK_THREADS", "g + 1 < group_num; g += BLOCK_THREADS", "off-by-one"),
    Mutant(RUNS, "g < group_num; g += BLOCK_THREADS", "g < BLOCK_THREADS; g += BLOCK_THREADS", "bound", "address"),
    Mutant(RUNS, "if (g < own_group) sum.before", "if (g <= own_group) sum.before", "bound"),
    Mutant(RUNS, "sum.end = max(sum.end, group.y);", "sum.end = group.y;", "max"),
    Mutant(RUNS, "if (run < entry_num) words[(unsigned long long)run <<", "words[(unsigned long long)run <<", "clip", "address"),
    Mutant(RUNS, "unsigned run = starts_before - 1;\n        if (run < entry_num)", "unsigned run = starts_before - 1;\n", "clip", "address"),
    Mutant(RUNS, "bool exists = word < end;", "bool exists = true;", "bound", "address"),
    Mutant(RUNS, "bits != 0; bits &= bits - 1)\n            list.put_start(run++", "bits != 0; bits &= bits - 1)\n            list.put_start(run", "count"),
    Mutant(RUNS, "before + (unsigned)__popc(start_bits & ((1u << bit) - 1))", "before + (unsigned)__popc(start_bits)", "count"),
    Mutant(RUNS, "run += (unsigned)__popc(starts & ((1u << lane) - 1));", "run += (unsigned)__popc(starts);", "count"),
    Mutant(RUNS, "lane >= distance) v += before", "lane > distance) v += before", "scan"),
    Mutant(RUNS, "warp_starts[2][WARPS]", "warp_starts[1][WARPS]", "size", "address"),
    Mutant(RUNS, "warp_starts[round % 2][warp] = up_to;", "warp_starts[0][warp] = up_to;", "parity"),
    Mutant(RUNS, "if (w < warp) before_warp +=", "if (w <= warp) before_warp +=", "bound"),
    Mutant(RUNS, "before += warp_starts[round % 2][w];", "", "carry"),
    Mutant(RUNS, "before_warp + up_to - in_word, first_token", "before_warp + up_to, first_token", "scan"),
    Mutant(RUNS, "start_bits = next_start_bits;", "", "carry"),
    Mutant(RUNS, "stop_bits = next_stop_bits;", "", "carry"),
    Mutant(RUNS, "runs.of_spans && all.end == token_num) runs", "runs.of_spans) runs", "open"),
    Mutant(RUNS, "runs.put_stop(all.starts, token_num);", "runs.put_stop(all.starts + 1, token_num);", "off-by-one"),
    Mutant(RUNS, "(unsigned long long)all.starts + thread;", "(unsigned long long)thread;", "behind"),
    Mutant(RUNS, "for (; entry < entry_num; entry += step)", "for (; entry < entry_num; entry += entry_num)", "step"),
    # Masks and slots
    Mutant(PADDED, "(0 - address) % sizeof(int4)", "0 * address", "alignment", "address"),
    Mutant(PADDED, "begin + lead < end ? begin + lead : end", "begin + lead", "clip", "address"),
    Mutant(PADDED, "max(from_end, row_length - first)", "row_length - first", "max"),
    Mutant(PADDED, "end = max(end, last + 1);", "end = max(end, last);", "off-by-one"),
    Mutant(PADDED, "return (unsigned)(byte >> item_shift);", "return (unsigned)byte;", "items"),
    Mutant(PADDED, "unsigned from_left = 3 - i;", "unsigned from_left = i;", "first"),
    Mutant(PADDED, "31 - (unsigned)__clz((int)words[i])", "(unsigned)__ffs((int)words[i]) - 1", "last"),
    Mutant(PADDED, "own < chunk_num ? chunks[own] : make_int4(0, 0, 0, 0)", "chunks[own]", "bound", "address"),
    Mutant(PADDED, "at += CHUNKS_AT_ONCE * BLOCK_THREADS", "at += 2 * CHUNKS_AT_ONCE * BLOCK_THREADS", "step"),
    Mutant(PADDED, "front < first_chunk && row.bytes[front] != 0", "false", "front"),
    Mutant(PADDED, "threadIdx.x < sizeof(int4) && tail < end &&", "threadIdx.x + 1 < sizeof(int4) && tail + 1 < end &&", "tail"),
    Mutant(PADDED, "bounds.end = max(bounds.end, __shfl_down_sync(FULL_MASK, bounds.end, distance));", "", "scan"),
    Mutant(PADDED, "unsigned first = row_length - bounds.from_end, end = max(bounds.end, first);", "unsigned first = row_length - bounds.from_end, end = bounds.end;", "no tokens"),
    Mutant(PADDED, "if (part == 0 && is_key) cut = 0;", "", "front"),
    Mutant(PADDED, "part == 2 || (part == 3 && !is_key)", "part == 2", "tail"),
    Mutant(PADDED, "part == 4 || (part == 3 && is_key)", "part == 4", "tail"),
    Mutant(PADDED, "(int)(row * row_length + cut)", "(int)cut", "row"),
    Mutant(PADDED, "if (row >= batch) return;\n    if (threadIdx.x == 0)", "if (threadIdx.x == 0)", "no rows", "address"),
    Mutant(PADDED, "begin + part_bytes < row_bytes ? begin + part_bytes : row_bytes", "begin + part_bytes", "clip", "address"),
    Mutant(PADDED, "atomicMax(&of_block.end, own.end);", "", "fold"),
    Mutant(PADDED, "    __syncthreads();\n    if (threadIdx.x >= WARP_THREADS) return;", "    if (threadIdx.x >= WARP_THREADS) return;", "barrier", "thread"),
    Mutant(PADDED, "if (row >= batch) return;\n    wait_for", "wait_for", "bound", "address"),
    Mutant(PADDED, "part < parts; part += WARP_THREADS", "part < 1; part += WARP_THREADS", "parts"),
    Mutant(PADDED, "max(bounds.from_end, some.x)", "some.x", "max"),
    Mutant(PADDED, "min(slot + max(length, 0LL), slot_end)", "slot + max(length, 0LL)", "cut"),
    Mutant(PADDED, "if (sequence >= batch) return;", "", "bound", "address"),
    Mutant(PADDED, "rows[at] = rows[at + 1] = row_ends.x;", "rows[at] = rows[at + 1] = row_ends.y;", "gap"),
    Mutant(PADDED, "keys[at + 1] = keys[at + 2] = key_ends.y;", "keys[at + 1] = key_ends.x, keys[at + 2] = key_ends.y;", "gap"),
    # Columns in equal parts
    Mutant(FORMS, "(long long)(column / part_columns) * part_rows", "0", "rows"),
    Mutant(FORMS, "min(max(bounds.x - first_row, 0LL), (long long)part_rows)", "max(bounds.x - first_row, 0LL)", "clip"),
    Mutant(FORMS, "min(max(bounds.y - first_row, 0LL)", "min((bounds.y - first_row)", "clip"),
    Mutant(FORMS, "has_first && has_next && lead == column_lead(columns)", "has_first && has_next", "alignment", "address"),
    Mutant(FORMS, "if (has_next) second = columns[next];", "second = columns[next];", "bound", "address"),
    Mutant(FORMS, "in_part(second, next, part_columns", "in_part(second, column, part_columns", "part"),
]
# fmt: on


def kernels():
    """Return each kernel file's text."""
    folder = compiler.kernel_folder()
    return {path.name: path.read_text() for path in sorted(folder.glob("*.cu*"))}


class Suite(NamedTuple):
    """The kernel files that are built, and what runs them: raises where ``by`` notices a mutant."""

    files: tuple[str, ...]
    run: Callable[[Path, str], None]


def run_columns(executable, by):
    rng = np.random.default_rng(0)
    judge = calls.check if by == "plain" else calls.run
    part = 5 if by == "thread" else 1  # threads under their sanitizer are slow
    judge(executable, [random_pack(rng) for _ in range(40)], SECONDS)
    judge(executable, list(large_packs())[::-part], SECONDS, large=True)
    judge(executable, list(tile_edges())[::part], SECONDS)
    judge(executable, list(rows_far_from_columns())[::part], SECONDS)
    judge(executable, [random_pack(rng) for _ in range(200 // part)], SECONDS)
    if by != "plain":
        judge(executable, [hostile_pack(rng, n) for n in TOKENS * 30], SECONDS)
        judge(executable, list(misled_searches()), SECONDS)
    judge(executable, list(many_tiles_a_group()), SECONDS)


def run_trees(executable, by):
    rng = np.random.default_rng(0)
    test_tree.check(executable, [test_tree.random_tree(rng, 600) for _ in range(60)], SECONDS)
    edges = list(test_tree.level_edges())
    test_tree.check(executable, edges[::5] if by == "thread" else edges, SECONDS)
    test_tree.check(executable, list(test_tree.far_from_even()), SECONDS)
    if by != "plain":
        few = test_tree.FEW_SEGMENTS
        test_tree.run(executable, [hostile_tree(rng, n, few) for n in TOKENS * 30], SECONDS)


def run_excess(executable, by):
    rng = np.random.default_rng(0)
    random_packs = [test_excess.interval_pack(rng, 600) for _ in range(60)]
    test_excess.check(executable, random_packs, SECONDS)
    test_excess.check(executable, random_packs, SECONDS, large=True)
    test_excess.check(executable, list(test_excess.edges()), SECONDS)
    test_excess.check(executable, list(test_excess.edges()), SECONDS, large=True)
    if by != "plain":
        hostile = [hostile_pack(rng, n, intervals=True) for n in TOKENS * 20]
        test_excess.run(executable, hostile, SECONDS)


def run_tile_lists(executable, by):
    rng = np.random.default_rng(0)
    test_blocks.check(executable, test_blocks.random_calls(rng, 40))
    test_blocks.check(executable, test_blocks.calls_around_words_and_chunks())


def run_cu_seqlens(executable, by):
    rng = np.random.default_rng(0)
    part = 4 if by == "thread" else 1
    for most_groups in (1024, 3):
        some = test_cu_seqlens.Calls(most_groups)
        for tokens in (40, 300, 3000) * (8 // part):
            test_cu_seqlens.add_random_runs(some, rng, tokens)
            some.add_mask(test_cu_seqlens.random_mask(rng, tokens), offset=8)
            some.add_slots(test_cu_seqlens.random_slots(rng, 70, is_cut=True))
        some.check(executable, SECONDS)
    if by != "thread":
        test_cu_seqlens.runs_around_edges().check(executable, SECONDS)
        test_cu_seqlens.masks_around_edges().check(executable, SECONDS)


def run_splits(executable, by):
    rng = np.random.default_rng(0)
    splits = test_cu_seqlens.Calls()
    test_cu_seqlens.add_random_splits(splits, rng, 60)
    splits.check(executable, SECONDS)


OF_COLUMNS = Suite((RULE, INTERVALS), run_columns)
OF_TREES = Suite((TREE,), run_trees)
OF_EXCESS = Suite((INTERVALS, EXCESS), run_excess)
OF_TILE_LISTS = Suite((TILES,), run_tile_lists)
OF_CU_SEQLENS = Suite((RUNS, PADDED), run_cu_seqlens)
OF_FORMS = Suite((FORMS,), run_splits)
SUITES = {
    SEARCH: [OF_COLUMNS],
    SEQUENCES: [OF_COLUMNS],
    ROWS: [OF_COLUMNS, OF_EXCESS],
    STAIRCASE: [OF_COLUMNS, OF_EXCESS],
    COLUMNS: [OF_COLUMNS],
    COLUMN_TILES: [OF_COLUMNS],
    RULE: [OF_COLUMNS],
    INTERVALS: [OF_COLUMNS],
    SUBTREES: [OF_TREES],
    TREE: [OF_TREES],
    EXCESS: [OF_EXCESS],
    TILES: [OF_TILE_LISTS],
    RUNS: [OF_CU_SEQLENS],
    PADDED: [OF_CU_SEQLENS],
    FORMS: [OF_FORMS],
}


def mutated(mutant, files):
    """Return the files' inlined text, with the mutant in it."""
    return {file: compiler.source(file).replace(mutant.old, mutant.new) for file in files}


def how_noticed(mutant, folder):
    """Return how a suite of the mutant's file notices it, in a word or two, or None."""
    noticed = (how_suite_notices(suite, mutant, folder) for suite in SUITES[mutant.file])
    return next(filter(None, noticed), None)


def how_suite_notices(suite, mutant, folder):
    executable = emulator.build(folder, mutant.by, mutated(mutant, suite.files), ["-w"])
    try:
        suite.run(executable, mutant.by)
    except AssertionError:
        return "wrong result"
    except subprocess.TimeoutExpired:
        return "hangs"
    except RuntimeError as error:
        for report in ("AddressSanitizer", "runtime error", "data race", "guards"):
            if report in str(error):
                return report
        return "crashes"
    return None


def main(words):
    chosen = [m for m in MUTANTS if not words or any(w in part for w in words for part in m)]
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
