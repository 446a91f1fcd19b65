# ruff: noqa: E402, E501
"""Breaks the kernels on purpose, one place at a time, and shows that the CPU suite notices.

    python tests/mutants.py               those of the kernel files that the branch changes
    python tests/mutants.py --since REV   those of the files that differ from a revision
    python tests/mutants.py WORD ...      those whose file, text or reason has one of the words
    python tests/mutants.py --all

Prints a line a mutant, and exits with 1 if one survived. A survivor is a test that is missing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import numpy as np
import test_blocks
import test_cu_seqlens
import test_excess
import test_shards
import test_tree
from on_cpu import calls, emulator
from strategies import random_pack
from test_hostile import hostile_pack, hostile_tree, misled_searches
from test_kernels_on_cpu import (
    BY_KERNELS,
    OF_MORE_ROWS,
    large_packs,
    many_tiles_a_group,
    rows_far_from_columns,
    sequences_of_many_tiles,
    span_edges,
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
COLUMN_SEQUENCES, MODIFIED = "column_sequences.cuh", "columns_modified_rule.cu"
EXCESS, TILES, OF_TILES = "excess.cu", "tile_lists.cu", "tiles.cuh"
NARROW = "narrow_lists.cu"
SCANS, MARKS = "scans.cuh", "marks.cuh"
FEW_ROWS, MANY_ROWS = "columns_few_rows.cu", "columns_many_rows.cu"
CHUNKS, SHARD = "chunks.cuh", "shard.cu"
RUNS, PADDED, FORMS = "token_runs.cu", "padded.cu", "forms.cu"

# fmt: off
MUTANTS = [
    # Searches
    Mutant(SEARCH, "probe < hi && values[probe] <= key", "probe < hi && values[probe] < key", "bound"),
    Mutant(SEARCH, "probe < hi && values[probe] <= key", "values[probe] <= key", "clip", "address"),
    Mutant(SEARCH, "lo + (Team::index() + 1) * step - 1", "lo + Team::index() * step", "off-by-one"),
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
    Mutant(SEQUENCES, "probe < range.hi ? source.ends[probe] : NO_END", "source.ends[probe]", "clip", "address"),
    Mutant(SEQUENCES, "range.lo + ended_before_first * step", "range.lo + (ended_before_first + 1) * step", "off-by-one"),
    Mutant(SEQUENCES, "__syncthreads_count(end <= positions.last)", "__syncthreads_count(end <= positions.first)", "last"),
    Mutant(SEQUENCES, "min(range.hi, range.lo + (ended_before_last + 1) * step - 1)", "range.lo + (ended_before_last + 1) * step - 1", "clip", "address"),
    Mutant(SEQUENCES, "if (range.hi - range.lo > length / 2) break;", "", "hang"),
    # The window of sequences
    Mutant(SEQUENCES, "first(0u - WARP_THREADS)", "first(0)", "start"),
    Mutant(SEQUENCES, "if (source.batch < WARP_THREADS) warp_load(0);", "if (source.batch < WARP_THREADS) warp_load(1);", "early load"),
    Mutant(SEQUENCES, "if (source.batch < WARP_THREADS) warp_load(0);", "warp_load(source.batch);", "early load"),
    Mutant(SEQUENCES, "min(first + threadIdx.x % WARP_THREADS, source.batch)", "first + threadIdx.x % WARP_THREADS", "clip", "address"),
    Mutant(SEQUENCES, "__ballot_sync(FULL_MASK, lane_sequence.end <= position)", "__ballot_sync(FULL_MASK, lane_sequence.end < position)", "bound"),
    Mutant(SEQUENCES, "b = first + passed;", "b = first + passed + 1;", "off-by-one"),
    Mutant(SEQUENCES, "if (passed == WARP_THREADS) {", "if (passed > WARP_THREADS) {", "jump"),
    Mutant(SEQUENCES, "unsigned hi = max(b, range.hi);", "unsigned hi = range.hi;", "clip", "address"),
    Mutant(SEQUENCES, "hi, position, WARP_THREADS);", "hi, position, 2 * WARP_THREADS);", "entries"),
    Mutant(SEQUENCES, "if (last_lane == WARP_THREADS) {", "if (last_lane > WARP_THREADS) {", "move"),
    Mutant(SEQUENCES, "if (last_lane == WARP_THREADS) return warp_find_across(span, position, visit);", "", "across"),
    Mutant(SEQUENCES, "warp_find_lanes(min(warp_count_ended(span.first), last_lane), last_lane, position, lane);\n        for", "warp_find_lanes(last_lane, last_lane, position, lane);\n        for", "count"),
    Mutant(SEQUENCES, "warp_find_lanes(min(warp_count_ended(span.first), last_lane), last_lane, position, lane);\n            for", "warp_find_lanes(last_lane, last_lane, position, lane);\n            for", "count"),
    Mutant(SEQUENCES, "true);\n        return last_lane;", "true);\n        return last_lane + 1;", "off-by-one"),
    Mutant(SEQUENCES, "position[i] >= span.first && position[i] < next", "position[i] < next", "is it"),
    Mutant(SEQUENCES, "position[i] >= span.first && position[i] < next", "position[i] >= span.first", "is it"),
    Mutant(SEQUENCES, "position[i] >= span.first && position[i] < next", "position[i] >= span.first && position[i] <= next", "bound"),
    Mutant(SEQUENCES, "if (next > span.last) return last_lane;", "if (next >= span.last) return last_lane;", "bound"),
    Mutant(SEQUENCES, "warp_move_to(next);", "warp_move_to(next + 1);", "off-by-one"),
    Mutant(SEQUENCES, "warp_move_to(span.first);", "warp_move_to(span.last);", "move"),
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
    Mutant(RULE, "is_sink ? sequence.q_end : sequence.q_end - rows_from_lts", "sequence.q_end - rows_from_lts", "sinks"),
    Mutant(RULE, "column - sequence.kv_start < rule.sinks", "column - sequence.kv_start <= rule.sinks", "off-by-one"),
    Mutant(RULE, "make_int2(lts, (int)(sequence.q_end - rows_from_ute))", "make_int2(lts, (int)(sequence.q_end - rows_from_lts))", "swap"),
    Mutant(COLUMN_SEQUENCES, "next = min(b + 1, batch), kv_end", "next = b + 1, kv_end", "clip", "address"),
    Mutant(COLUMN_SEQUENCES, "with_kv_start ?", "!with_kv_start ?", "start"),
    # The rule with modifiers
    Mutant(MODIFIED, "(__umulhi(2 * key, reciprocal) >> shift) * size", "(__umulhi(key, reciprocal) >> shift) * size", "division"),
    Mutant(MODIFIED, "(__umulhi(2 * key, reciprocal) >> shift) * size", "__umulhi(2 * key, reciprocal) * size", "division"),
    Mutant(MODIFIED, "return words[2 * s + 1];", "return words[2 * s + 2];", "ends", "address"),
    Mutant(MODIFIED, "return words[2 * s + 1];", "return words[2 * s];", "ends"),
    Mutant(MODIFIED, "return {ends[s], words[2 * s]};", "return {ends[s], words[2 * s + 1]};", "starts"),
    Mutant(MODIFIED, "if (s >= batch) return {NO_END, NO_END};", "", "bound", "address"),
    Mutant(MODIFIED, "if (s >= batch) return {NO_END, NO_END};", "if (s >= batch) return {NO_END, 0};", "padding"),
    Mutant(MODIFIED, "rule.is_top_left ? q_len : sequence.end - sequence.kv_start", "sequence.end - sequence.kv_start", "align"),
    Mutant(MODIFIED, "if (j < rule.sinks) behind = NO_END;", "if (j <= rule.sinks) behind = NO_END;", "off-by-one"),
    Mutant(MODIFIED, "if (j < rule.sinks) behind = NO_END;", "", "sinks"),
    Mutant(MODIFIED, "first = (int)(j - rule.right);", "first = (int)j;", "right"),
    Mutant(MODIFIED, "if (rule.blocks.size > 0) first", "if (rule.blocks.size > 1) first = first; else first", "blocks"),
    Mutant(MODIFIED, "unsigned behind = j + rule.left + 1;", "unsigned behind = j + rule.left;", "off-by-one"),
    Mutant(MODIFIED, "first = max(first, (int)start);", "first = (int)start;", "chunks"),
    Mutant(MODIFIED, "first = max(first, (int)start);", "", "chunks"),
    Mutant(MODIFIED, "behind = min(behind, start + rule.chunks.size);", "", "chunks"),
    Mutant(MODIFIED, "is_asked && span.start <= column", "is_asked && span.start < column", "bound"),
    Mutant(MODIFIED, "max(span.start, sequence.kv_start) - sequence.kv_start", "span.start - sequence.kv_start", "clip"),
    Mutant(MODIFIED, "min(span.end, sequence.end) - sequence.kv_start", "span.end - sequence.kv_start", "clip"),
    Mutant(MODIFIED, "behind = max(behind, min(span.end", "behind = (min(span.end", "window"),
    Mutant(MODIFIED, "first = min(first, (int)(max(", "first = ((int)(max(", "window"),
    Mutant(MODIFIED, "(unsigned)min(first, (int)row_end)", "(unsigned)first", "clip"),
    Mutant(MODIFIED, "row_end - min(behind, row_end)", "row_end - behind", "clip"),
    Mutant(MODIFIED, "(int)row_end), q_len);", "(int)row_end), NO_END);", "clip"),
    Mutant(MODIFIED, "row_end - min(behind, row_end), q_len)", "row_end - min(behind, row_end), NO_END)", "clip"),
    Mutant(MODIFIED, "if (sequence.end > span.last) return;", "if (sequence.end >= span.last) return;", "off-by-one"),
    Mutant(MODIFIED, "found[i] = holds ? one : found[i];", "found[i] = one;", "is it"),
    Mutant(MODIFIED, "window.source.warp_shuffle(window.lane_sequence, lane);", "window.source.warp_shuffle(window.lane_sequence, lane + 1);", "lane"),
    Mutant(MODIFIED, "of_spans.window.range = block_narrow_sequences(of_spans.window.source, tile.block_columns);", "of_spans.window.range = {0, 0};", "range"),
    Mutant(MODIFIED, "of_sequences.window.range = block_narrow_sequences(of_sequences.window.source, tile.block_columns);", "of_sequences.window.range = {0, 0};", "range"),
    Mutant(MODIFIED, "start - lead + 2 * WARP_THREADS - 1", "start + 2 * WARP_THREADS - 1", "lead"),
    Mutant(MODIFIED, "at = start + 2 * lane, column = at - lead;", "at = start + 2 * lane, column = at;", "lead"),
    Mutant(MODIFIED, "last < min(of_sequences.sequence.end, near.start)", "last <= min(of_sequences.sequence.end, near.start)", "near"),
    Mutant(MODIFIED, "last < min(of_sequences.sequence.end, near.start)", "last < near.start", "near"),
    Mutant(MODIFIED, "last < min(of_sequences.sequence.end, near.end)", "last < of_sequences.sequence.end", "near"),
    Mutant(MODIFIED, "last < min(of_sequences.sequence.end, near.end)", "last < near.end", "near"),
    Mutant(MODIFIED, "min(column + 1, last)};", "min(column, last)};", "pair"),
    Mutant(MODIFIED, "first = last + 1;\n        start", "first = last + 2;\n        start", "off-by-one"),
    Mutant(MODIFIED, "min(range.hi + 1, spans.batch) - range.lo", "range.hi - range.lo", "off-by-one"),
    Mutant(MODIFIED, "if (num > SpanMarks::MOST) return false;", "", "room"),
    Mutant(MODIFIED, "if (s < num) {", "{", "clip", "address"),
    Mutant(MODIFIED, "range.lo * (2 * stride)", "range.lo * 2", "stride"),
    Mutant(MODIFIED, "span[i].end = word[stride];", "span[i].end = word[1];", "stride"),
    Mutant(MODIFIED, "words + (unsigned long long)s * (2 * stride);", "words + s * 2;", "stride"),
    Mutant(MODIFIED, "spans.ends[spans.batch - 1] - 1)", "spans.ends[spans.batch - 1] / 2)", "fill"),
    Mutant(MODIFIED, "spans.ends[spans.batch - 1] - 1)", "spans.ends[spans.batch] - 1)", "clip", "address"),
    Mutant(MODIFIED, "window.warp_find_lanes(from, to, column, lane);", "window.warp_find_lanes(from, from, column, lane);", "lanes"),
    Mutant(MODIFIED, "unsigned first = max(each.start, tile.block_columns.first);", "unsigned first = each.start;", "clip", "address"),
    Mutant(MODIFIED, "first + tile.lead - block_front();", "first - block_front();", "lead"),
    Mutant(MODIFIED, "first >= each.end || first", "first", "empty"),
    Mutant(MODIFIED, "first >= each.end || first > tile.block_columns.last", "first >= each.end", "clip", "address"),
    Mutant(MODIFIED, "if (at == 0) atomicExch(&marks.first_start, each.start);", "", "start"),
    Mutant(MODIFIED, "marks.begins[threadIdx.x] = 0;\n    __syncthreads();", "marks.begins[threadIdx.x] = 0;", "barrier", "thread"),
    Mutant(MODIFIED, "__syncthreads();\n    return true;", "return true;", "barrier", "thread"),
    Mutant(MODIFIED, " & ((1u << own) - 1);", ";", "later"),
    Mutant(MODIFIED, "word & FULL_MASK >> (31 - position % 32)", "word", "later"),
    Mutant(MODIFIED, "has && block_front() + position - tile.lead < end", "has", "behind"),
    Mutant(MODIFIED, "has && block_front() + position - tile.lead < end", "has && block_front() + position - tile.lead <= end", "off-by-one"),
    Mutant(MODIFIED, "at == 0 ? marks.first_start : ", "", "start"),
    Mutant(MODIFIED, "block_front() + at - tile.lead;", "block_front() + at;", "lead"),
    # Tiles of columns
    Mutant(COLUMN_TILES, "min(start + size, end) - 1 - lead", "min(start + size, end) - 2 - lead", "off-by-one"),
    Mutant(COLUMN_TILES, "Span warp_columns = {max(start, lead) - lead", "Span warp_columns = {max(start, lead)", "lead"),
    Mutant(COLUMN_TILES, "Span block_columns = {max(block, lead) - lead", "Span block_columns = {max(block + 2 * size, lead) - lead", "span"),
    Mutant(COLUMN_TILES, "min(block + WARPS * size, end)", "min(block + size, end)", "span"),
    Mutant(COLUMN_TILES, "end = column_num + lead", "end = column_num", "lead"),
    Mutant(COLUMN_TILES, "columns.last - columns.first == 2 * WARP_THREADS - 1", "columns.last - columns.first >= 2 * WARP_THREADS - 2", "whole", "address"),
    Mutant(COLUMN_TILES, "column = at - tile.lead;", "column = at;", "lead"),
    Mutant(COLUMN_TILES, "min(column + 1, last)}};", "min(column, last)}};", "pair"),
    Mutant(COLUMN_TILES, "pair[i] = holds ? found : pair[i];", "pair[i] = found;", "is it"),
    Mutant(COLUMN_TILES, "window.warp_require(tile.warp_columns.first);", "", "even"),
    Mutant(COLUMN_TILES, "window.range = block_narrow_sequences(window.source, tile.block_columns);", "window.range = {0, 0};", "range"),
    Mutant(RULE, "start + 2 * WARP_THREADS - 1 - lead", "start + 2 * WARP_THREADS - 1", "lead"),
    Mutant(RULE, "column = start + 2 * lane - lead;", "column = start + 2 * lane;", "lead"),
    Mutant(RULE, "if (last < sequence.end)", "if (last <= sequence.end)", "off-by-one"),
    Mutant(RULE, "b = min(column + 1, last)", "b = min(column, last)", "pair"),
    Mutant(RULE, "pair[i] = holds ? bounds : pair[i];", "pair[i] = bounds;", "is it"),
    Mutant(RULE, "rule_columns.warp_shuffle(window.lane_sequence, last_lane)", "rule_columns.warp_shuffle(window.lane_sequence, last_lane + 1)", "lane"),
    Mutant(RULE, "WARP_THREADS;\n        first = last + 1;", "WARP_THREADS;\n        first = last + 2;", "off-by-one"),
    # Scans
    Mutant(SCANS, "max(v, __shfl_up_sync(FULL_MASK, v, distance))", "max(v, __shfl_up_sync(FULL_MASK, v, 1))", "lane"),
    Mutant(SCANS, "distance < WARP_THREADS; distance *= 2)\n        v = min", "distance < WARP_THREADS / 2; distance *= 2)\n        v = min", "lane"),
    Mutant(SCANS, "v.at[i] = min(v.at[i], v.at[i + 1]);", ";", "scan"),
    Mutant(SCANS, "if (warp < threadIdx.x / WARP_THREADS) before", "if (warp <= threadIdx.x / WARP_THREADS) before", "warp"),
    Mutant(SCANS, "if (warp > threadIdx.x / WARP_THREADS) behind", "if (warp > threadIdx.x / WARP_THREADS + 1) behind", "warp"),
    Mutant(SCANS, "edges.at[threadIdx.x / WARP_THREADS] = v.at[PER_THREAD - 1]", "edges.at[threadIdx.x / WARP_THREADS] = v.at[0]", "edge"),
    Mutant(SCANS, "__syncthreads();\n    fold_max_before(end", "fold_max_before(end", "barrier", "thread"),
    # Rows to staircases
    Mutant(ROWS, "s = min(max(start, 0), kv_len)", "s = min(start, kv_len)", "clip"),
    Mutant(ROWS, "e = min(max(end, 0), kv_len)", "e = max(end, 0)", "clip"),
    Mutant(ROWS, "min(max(key, 0LL), (long long)INT32_MAX_VALUE)", "key", "clip"),
    Mutant(ROWS, ": sequence.kv_end;", ": sequence.kv_start;", "swap"),
    Mutant(ROWS, "start = s < e ?", "start = s <= e ?", "bound"),
    Mutant(ROWS, "if (b >= batch) return", "if (b > batch) return", "bound", "address"),
    Mutant(ROWS, "row + PER_THREAD <= intervals.row_num", "row < intervals.row_num", "bound", "address"),
    Mutant(ROWS, "two_rows[0], high = two_rows[1]", "two_rows[0], high = two_rows[0]", "load"),
    Mutant(ROWS, "!intervals.is_int64 && intervals.is_aligned", "!intervals.is_int64", "alignment", "address"),
    Mutant(ROWS, "return {NO_END, NO_ROW, NO_ROW};", "return {NO_END, 0, 0};", "padding"),
    Mutant(ROWS, "start.at[i] = holds ? s : start.at[i];", "start.at[i] = s;", "is it"),
    Mutant(ROWS, "window.source.warp_shuffle(window.lane_sequence, last_lane)", "window.source.warp_shuffle(window.lane_sequence, last_lane + 1)", "lane"),
    Mutant(INTERVALS, "stairs.last_row(tile_end - 1)}", "stairs.last_row(stairs.first_tile(group))}", "span"),
    Mutant(INTERVALS, "shared.max_edges[tile % 2]", "shared.max_edges[0]", "parity", "thread"),
    Mutant(INTERVALS, "max(warp_running_max(edge ? *edge : -1), so_far)", "max(warp_running_max(edge ? *edge : -1), min(so_far, -1))", "carry"),
    Mutant(INTERVALS, "int v = min(warp_running_min_from_right(edge", "int v = max(warp_running_min_from_right(edge", "carry"),
    Mutant(INTERVALS, "tile < tile_end ? stairs.ends", "tile <= tile_end ? stairs.ends", "bound", "thread"),
    Mutant(INTERVALS, "bool exists = end >= first_tile + from_right", "bool exists = end + 1 >= first_tile + from_right", "bound", "address"),
    Mutant(ROWS, "if (row + i < intervals.row_num) load", "load", "bound", "address"),
    Mutant(ROWS, "if (span.last >= sequence.end)", "if (span.last > sequence.end)", "off-by-one"),
    Mutant(ROWS, "within(first + STRIP - 1)", "within(first + STRIP - 2)", "off-by-one"),
    Mutant(ROWS, "rows[i] = max(min(row + i, span.last), span.first)", "rows[i] = max(min(row, span.last), span.first)", "row"),
    Mutant(ROWS, "only == window.warp_count_ended(span.first)", "only <= window.warp_count_ended(span.first) + 1", "border"),
    # Marks
    Mutant(MARKS, "before = max(before, columns.first);", "", "clip", "address"),
    Mutant(MARKS, "int at = min(end.at[i], columns.last + 1)", "int at = end.at[i]", "clip", "address"),
    Mutant(MARKS, "if (at > before) atomicMin", "if (at >= before) atomicMin", "bound", "address"),
    Mutant(MARKS, "atomicMin(ute + (at - 1 - columns.first), (int)(row + i))", "atomicMin(ute + (at - 1 - columns.first), (int)row)", "row"),
    Mutant(MARKS, "behind = min(behind, columns.last + 1);", "", "clip", "address"),
    Mutant(MARKS, "int at = max(start.at[i], columns.first)", "int at = start.at[i]", "clip", "address"),
    Mutant(MARKS, "(int)row + i + 1)", "(int)row + i)", "off-by-one"),
    Mutant(MARKS, "row + i >= first_row && row + i < row_end", "row + i < row_end", "other row"),
    Mutant(MARKS, "row + i >= first_row && row + i < row_end", "row + i >= first_row", "other row"),
    Mutant(MARKS, "return start <= 0 && end > 0", "return end > 0", "flat"),
    Mutant(MARKS, "return start <= 0 && end > 0", "return start <= 0", "flat"),
    Mutant(MARKS, "q_start > q_end || q_end > intervals.row_num", "q_start > q_end", "bound", "address"),
    Mutant(MARKS, "if (first >= end) return false;", "", "clip", "address"),
    Mutant(MARKS, "min(sequence.kv_end, tile.columns.last + 1)", "min(sequence.kv_end, tile.columns.last)", "off-by-one"),
    Mutant(MARKS, "(int)(flat ? sequence.q_end : sequence.q_start)", "0", "base"),
    Mutant(MARKS, "put_four(shared.ute + thread_first, ute);\n    __syncwarp();", "put_four(shared.ute + thread_first, ute);", "barrier", "thread"),
    # Columns of few rows
    Mutant(FEW_ROWS, "put_four(shared.lts + PER_THREAD * threadIdx.x, {});\n    __syncthreads();", "put_four(shared.lts + PER_THREAD * threadIdx.x, {});", "barrier", "thread"),
    Mutant(FEW_ROWS, "block_mark_rows(tile, warp, intervals);\n    __syncthreads();", "block_mark_rows(tile, warp, intervals);", "barrier", "thread"),
    Mutant(FEW_ROWS, "publish_max(lts, lts_edges);\n    __syncthreads();", "publish_max(lts, lts_edges);", "barrier", "thread"),
    Mutant(FEW_ROWS, "which ? min(b + 1, pack.batch) : b", "b", "row"),
    Mutant(FEW_ROWS, "strip += WARPS) {", "strip += WARPS + 1) {", "strip"),
    Mutant(FEW_ROWS, "fold_max_before(lts, lts_edges);\n    for (int i = 0; i < PER_THREAD; ++i) lts.at[i] = max(lts.at[i], ute.at[i]);", "fold_max_before(lts, lts_edges);", "order"),
    # Columns of many rows
    Mutant(MANY_ROWS, "{group_first * STRIP, min(group_end * STRIP, row_num) - 1}", "{group_first * STRIP, group_first * STRIP}", "span"),
    Mutant(MANY_ROWS, "all.x = max(all.x, warp_max(max_of(end)))", "all.x = warp_max(max_of(end))", "carry"),
    Mutant(MANY_ROWS, "all.y = min(all.y, least)", "all.y = least", "carry"),
    Mutant(MANY_ROWS, "if (step < last_steps) kept =", "if (false) kept =", "step"),
    Mutant(MANY_ROWS, "edges.ends[at] = max(kept.end, before)", "edges.ends[at] = kept.end", "link"),
    Mutant(MANY_ROWS, "edges.starts[at] = behind;", "edges.starts[at] = kept.start;", "link"),
    Mutant(MANY_ROWS, "bool exists = at < strip_end", "bool exists = at <= strip_end", "bound", "address"),
    Mutant(MANY_ROWS, "group_edges[blockIdx.x].x = max(before, all.x)", "group_edges[blockIdx.x].x = all.x", "group"),
    Mutant(MANY_ROWS, "edges.strip_end(group) - 1 + OVERSHOOT", "edges.strip_end(group) - 2 + OVERSHOOT", "off-by-one"),
    Mutant(MANY_ROWS, "group == 0 ? -1 : group_edges[group - 1]", "-1", "group"),
    Mutant(MANY_ROWS, "if (strip >= edges.strip_num()) return NO_ROW;", "", "bound", "address"),
    Mutant(MANY_ROWS, "if (strip - first > last - first) continue;", "if (strip - first >= last - first) continue;", "bound"),
    Mutant(MANY_ROWS, "found.lo == sequences.lo && found.hi == sequences.hi) return;", "found.lo == sequences.lo) return;", "stale"),
    Mutant(MANY_ROWS, "needs_starts = !is_level;", ";", "stale"),
    Mutant(MANY_ROWS, "rows.sequence = {};", "", "stale"),
    Mutant(MANY_ROWS, "lts.at[i] = max(lts.at[i], ute.at[i]);\n        warp_store", ";\n        warp_store", "order"),
    Mutant(MANY_ROWS, "shared.lts + warp_first};", "shared.lts};", "warp"),
    # Columns off the staircases
    Mutant(STAIRCASE, "hi = stored.last_row(tile) + 1;", "hi = stored.last_row(tile);", "off-by-one"),
    Mutant(STAIRCASE, "min(lo, group_num - 1)", "lo", "clip", "address"),
    Mutant(STAIRCASE, "max(lo, 1u) - 1", "lo", "off-by-one"),
    Mutant(STAIRCASE, "stored.tile_end(group) - 1 + OVERSHOOT", "stored.tile_end(group) - 1", "off-by-one"),
    Mutant(STAIRCASE, "group > 0 ? group_edges[group - 1] : -1", "-1", "group"),
    Mutant(STAIRCASE, "before = max(before, (*this)[tile - 1])", "before = before", "tile"),
    Mutant(STAIRCASE, "group + 1 < group_num ? group_edges[group + 1] : NO_ROW", "NO_ROW", "group"),
    Mutant(STAIRCASE, "behind = min(behind, (*this)[tile + 1])", "behind = behind", "tile"),
    Mutant(INTERVALS, "atomicMax(marks + at, rows + i + 1)", "atomicMax(marks + at, rows + i)", "off-by-one"),
    Mutant(INTERVALS, "if (at < next_at) atomicMax", "if (at <= next_at) atomicMax", "bound"),
    Mutant(INTERVALS, "min(max(step, column_first), column_last + 1) - column_first", "min(max(step, column_first), column_last) - column_first", "off-by-one"),
    Mutant(INTERVALS, "min(max(step, column_first), column_last + 1) - column_first", "min(step, column_last + 1) - column_first", "clip", "address"),
    Mutant(INTERVALS, "next <= columns.column_first ||", "next <= columns.column_first + 1 ||", "off-by-one"),
    Mutant(INTERVALS, "threadIdx.x % WARP_THREADS == WARP_THREADS - 1) next = NO_ROW", "threadIdx.x % WARP_THREADS == WARP_THREADS - 2) next = NO_ROW", "lane"),
    Mutant(INTERVALS, "? (2u << beyond_first) - 1", "? (1u << beyond_first) - 1", "off-by-one"),
    Mutant(INTERVALS, "beyond_first >= WARP_THREADS || stairs.stored.group_shift > 0", "beyond_first >= WARP_THREADS", "group"),
    Mutant(INTERVALS, "lane <= beyond_first && !stairs", "lane < beyond_first && !stairs", "off-by-one"),
    Mutant(INTERVALS, "(int)stairs.stored.last_row(tile) + 1)", "(int)stairs.stored.last_row(tile))", "off-by-one"),
    Mutant(STAIRCASE, "group_edges[tile - 1] == group_edges[tile]", "group_edges[tile - 1] != NO_ROW", "level"),
    Mutant(STAIRCASE, "group_edges[tile + 1] == group_edges[tile]", "group_edges[tile + 1] != NO_ROW", "level"),
    Mutant(STAIRCASE, "tile + 1 < group_num && group_edges[tile + 1]", "tile + 1 <= group_num && group_edges[min(tile + 1, group_num - 1)]", "bound"),
    Mutant(INTERVALS, "by_starts);\n    for (int i = 0; i < PER_THREAD; ++i) lts.at[i] = max(lts.at[i], ute.at[i]);", "by_starts);", "order"),
    Mutant(INTERVALS, "put_four(shared.lts + thread_first, lts);\n    __syncwarp();", "put_four(shared.lts + thread_first, lts);", "barrier", "thread"),
    Mutant(INTERVALS, "put_four(shared.lts + thread_first, {});\n        __syncthreads();", "put_four(shared.lts + thread_first, {});", "barrier", "thread"),
    Mutant(INTERVALS, "(tile + 1) % 2]);\n        }\n        __syncthreads();", "(tile + 1) % 2]);\n        }", "barrier", "thread"),
    Mutant(INTERVALS, "shared.lts_edges);\n    __syncthreads();", "shared.lts_edges);", "barrier", "thread"),
    # Trees
    Mutant(TREE, "unsigned at = min(b, pack.batch)", "unsigned at = b", "clip", "address"),
    Mutant(TREE, "next = min(b + 1, pack.batch);", "next = b + 1;", "clip", "address"),
    Mutant(TREE, "b < pack.batch ? segments.parents[b] : -1", "segments.parents[b]", "clip", "address"),
    Mutant(TREE, "b < pack.batch ? pack.k[next] : NO_END", "pack.k[next]", "padding"),
    Mutant(TREE, "block_narrow(SequenceEnds{pack.k}, first, end, column, SLACK);", "block_narrow(SequenceEnds{pack.k}, first, end, column + 1, 1);", "search"),
    Mutant(TREE, "window.start = loaded.b == 0 ? 0 : start;", "window.start = 0;", "held"),
    Mutant(TREE, "if (threadIdx.x == BLOCK_THREADS - 1) end = NO_END;", "", "last", "address"),
    Mutant(TREE, "blockIdx.x * WARPS * size - tile.lead", "blockIdx.x * WARPS * size", "lead"),
    Mutant(TREE, "warp <= WARPS; ++warp)", "warp < WARPS; ++warp)", "part"),
    Mutant(TREE, "column = warp == 0 ? tile.block_columns.first : block + warp * size", "column = block + warp * size", "lead"),
    Mutant(TREE, "start <= column && column < end", "start < column && column < end", "bound"),
    Mutant(TREE, "write_any(window.begins[warp], threadIdx.x);\n        }\n        __syncthreads();", "write_any(window.begins[warp], threadIdx.x);\n        }", "barrier", "thread"),
    Mutant(TREE, "loaded.kv_start <= span.last", "loaded.kv_start < span.last", "bound"),
    Mutant(TREE, "loaded.kv_end > span.first", "loaded.kv_end > span.first + 1", "bound"),
    Mutant(TREE, "warp + r < WARPS ?", "warp + r <= WARPS ?", "bound", "address"),
    Mutant(TREE, "warp_lanes_below(parent, loaded.b - lane)", "warp_lanes_below(parent, loaded.b - lane + 1)", "off-by-one"),
    Mutant(TREE, "below &= (FULL_MASK - 1) << lane", "below &= FULL_MASK << lane", "own"),
    Mutant(TREE, "run = below != 0 ? r : run", "run = r", "run"),
    Mutant(TREE, "(unsigned)__ffs((int)hits) - 2", "(unsigned)__ffs((int)hits) - 1", "off-by-one"),
    Mutant(TREE, "is_asked && hits == 0", "false", "far"),
    Mutant(TREE, "unsigned run = warp_uniform(loaded.b - threadIdx.x) / RUN;", "unsigned run = warp_uniform(loaded.b - threadIdx.x) / RUN + 8;", "minima"),
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
    Mutant(TREE, "segment.end <= column + i && lo < hi", "segment.end < column + i && lo < hi", "bound"),
    Mutant(TREE, "segment.end <= column + i && lo < hi", "segment.end <= column + i", "clip", "address"),
    Mutant(TREE, "if (window.at[lo].end <= column + i) find_segment", "if (false) find_segment", "empties"),
    Mutant(TREE, "min(segment.end - (column + i), segment.ute_len)", "(segment.end - (column + i))", "clip"),
    Mutant(TREE, "(unsigned long long)b * nbytes", "(unsigned long long)b", "flags"),
    Mutant(TREE, "if (nbytes == 2) return *reinterpret_cast<const unsigned short*>(flag);", "if (nbytes == 2) return *flag;", "flags"),
    Mutant(TREE, "nbytes == 4 ? words[0] : words[0] | words[1]", "words[0]", "flags"),
    Mutant(TREE, "nbytes == 4 ? words[0] : words[0] | words[1]", "words[0] | words[1]", "flags", "address"),
    Mutant(TREE, "full.first && b < pack.batch ? full[b] : 0", "full.first ? full[b] : 0", "clip", "address"),
    Mutant(TREE, "is_full ? loaded.q_start : loaded.q_end", "loaded.q_end", "flags"),
    Mutant(TREE, "row_end = window.q_end[last];", "row_end = window.at[last].ute_end;", "flags"),
    Mutant(TREE, "column, has[0], has[1], pair", "column, true, has[1], pair", "head"),
    Mutant(TREE, "column, has[0], has[1], pair", "column, has[0], true, pair", "tail", "address"),
    Mutant(TREE, "window.start <= span.first && span.first < end", "span.first < end", "held"),
    Mutant(TREE, "window.start <= span.first && span.first < end", "window.start <= span.first", "held"),
    Mutant(TREE, "is_far = block.warp_link_near(loaded, span);\n        __syncthreads();", "is_far = block.warp_link_near(loaded, span);", "barrier", "thread"),
    Mutant(TREE, "max(end, span.first + 1) - 1", "end - 1", "hang", "address"),
    Mutant(TREE, "span.first = last + 1;", "span.first = last + 2;", "off-by-one"),
    Mutant(TREE, "block_write_minima(segments.parents, run, end, minima);\n    __syncthreads();", "block_write_minima(segments.parents, run, end, minima);", "barrier", "thread"),
    Mutant(TREE, "run + lane < end ? minima[run + lane] : INT32_MAX_VALUE", "minima[run + lane]", "clip", "address"),
    Mutant(TREE, "minima[segments.level_1.num + blockIdx.x]", "minima[segments.level_1.num]", "level"),
    Mutant(SUBTREES, "(int)((unsigned)parent - first), -1)", "(int)((unsigned)parent - first), 0)", "rank"),
    Mutant(SUBTREES, "-1), WARP_THREADS - 1) + 1)", "-1), WARP_THREADS - 2) + 1)", "rank"),
    Mutant(SUBTREES, "bit < WARP_THREADS; bit *= 2)", "bit < WARP_THREADS / 2; bit *= 2)", "bits"),
    Mutant(SUBTREES, "(lane_bit & ~ones) | (~(lane_bit ^ ones) & at_most)", "(lane_bit & ~ones) | (lane_bit & at_most)", "compare"),
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
    Mutant(SUBTREES, "warp_run_below((int)b, end / RUN)", "warp_run_below((int)b, end / RUN + 1)", "climb"),
    Mutant(SUBTREES, "warp_first_below<RUNS_AT_ONCE>(b, end / RUN, level_2.num)", "warp_first_below<RUNS_AT_ONCE>(b, end / RUN + 1, level_2.num)", "climb"),
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
    Mutant(EXCESS, "end_stairs.stored.last_row(tile_end - 1)", "end_stairs.stored.last_row(first_tile)", "span"),
    Mutant(EXCESS, "atomicMax(&found.rows, rows)", "atomicAdd(&found.rows, rows)", "first"),
    Mutant(EXCESS, "if (threadIdx.x == 0) found = {0, 0};", "", "start"),
    Mutant(EXCESS, "if (threadIdx.x == 0 && found.rows != 0) {", "if (found.rows != 0) {", "thread"),
    Mutant(EXCESS, "if (rows) atomicMax(rows, found.rows);", "atomicMax(rows, found.rows);", "null"),
    Mutant(EXCESS, "if (rows) atomicMax(rows, found.rows);", "if (rows) atomicAdd(rows, found.rows);", "first"),
    Mutant(EXCESS, "__syncthreads();\n    if (threadIdx.x == 0 && found", "if (threadIdx.x == 0 && found", "barrier", "thread"),
    # Tile lists
    Mutant(OF_TILES, "(rows.end - 1) / block_q + 1", "rows.end / block_q + 1", "off-by-one"),
    Mutant(OF_TILES, "min((unsigned)max(bounds.x, 0), row_num)", "(unsigned)max(bounds.x, 0)", "clip"),
    Mutant(OF_TILES, "+ block_q - 1) / block_q", ") / block_q", "rounding"),
    Mutant(OF_TILES, "{first, max(first, end)}", "{first, end}", "clip"),
    Mutant(OF_TILES, "highest = max(highest, __shfl_down_sync(FULL_MASK, highest, distance));", "", "scan"),
    Mutant(OF_TILES, "repeats && thread % WARP_THREADS != 0", "repeats", "lane"),
    Mutant(OF_TILES, "atomicAdd(&covering[tail - word_first], -1);", "", "difference"),
    Mutant(TILES, "if (end - first == block_k && !all_partial)\n", "if (!all_partial)\n", "ragged"),
    Mutant(TILES, "block_k && !all_partial)\n", "block_k)\n", "flag"),
    Mutant(TILES, "columns += (unsigned long long)own.slice * column_num;", "", "slice"),
    Mutant(TILES, "* slices + own.slice) * column_tiles", "* slices) * column_tiles", "slice"),
    Mutant(TILES, "if (tiles == tiles_a_slice) return", "return", "slice"),
    Mutant(TILES, "{max(all.ute, each.ute), min(all.lts, each.lts)}", "{max(all.ute, each.ute), all.lts}", "join"),
    Mutant(TILES, "{max(all.ute, each.ute), min(all.lts, each.lts)}", "{all.ute, min(all.lts, each.lts)}", "join"),
    Mutant(TILES, "extremes[warp] = of_warp;\n    __syncthreads();", "extremes[warp] = of_warp;", "barrier", "thread"),
    Mutant(TILES, "if (w < warp) v += warp_sums[w];", "", "carry"),
    Mutant(TILES, "+ WARP_THREADS - 1) / WARP_THREADS, WARPS);", ") / WARP_THREADS, WARPS);", "rounding"),
    Mutant(TILES, "end_words[threadIdx.x] = 0;  // for the next words", "", "next"),
    Mutant(TILES, "covering[threadIdx.x] = 0;\n        unsigned full_bits", "unsigned full_bits", "next"),
    Mutant(TILES, "(int)max(listed, full.end - full.first)", "(int)listed", "needed"),
    Mutant(TILES, "listed += (unsigned)partials;", "", "carry"),
    Mutant(TILES, "__syncthreads();\n        for (unsigned w = warp;", "for (unsigned w = warp;", "barrier", "thread"),
    # Narrow lists
    Mutant(NARROW, "a.first <= b.end && b.first <= a.end", "a.first <= b.end", "hole"),
    Mutant(NARROW, "return a.first / block_q <=", "return true || a.first / block_q <=", "hole"),
    Mutant(NARROW, "holes |= !are_side_by_side", "holes = !are_side_by_side", "hole"),
    Mutant(NARROW, "tile < full.first ? tile", "tile <= full.first ? tile", "off-by-one"),
    Mutant(NARROW, " && place < width", "", "room", "address"),
    Mutant(NARROW, "partial_num > width ? CUT", "partial_num > width + 1 ? CUT", "off-by-one"),
    Mutant(NARROW, "make_uint2(partial & ~full, full)", "make_uint2(partial, full)", "full"),
    Mutant(NARROW, "atomicMax(&reach->x, ~live.first)", "atomicMax(&reach->x, live.first)", "reach"),
    Mutant(NARROW, "group = chunk / GROUP_CHUNKS", "group = chunk / (2 * GROUP_CHUNKS)", "reach"),
    Mutant(NARROW, "if ((unsigned)list[middle] < base) lo", "if ((unsigned)list[middle] <= base) lo", "bound"),
    Mutant(NARROW, "partial = live_bits(tile, window.first)", "partial = 0", "cut"),
    Mutant(NARROW, "listed.partials[i] += ", "listed.partials[i] = ", "carry"),
    Mutant(NARROW, "if (held == warp) {", "if (warp == 0) {", "carry"),
    Mutant(NARROW, "columns += (unsigned long long)slice * column_num;\n        unsigned first", "unsigned first", "slice"),
    Mutant(NARROW, "bool may_be_full = end - first == block_k && ", "bool may_be_full = ", "ragged"),
    Mutant(NARROW, "listed.list + listed.start(i), min(partials, width)", "listed.list + listed.start(i), partials", "room", "address"),
    Mutant(NARROW, "__syncthreads();\n    for (unsigned c = 0; c < held; ++c)", "for (unsigned c = 0; c < held; ++c)", "barrier", "thread"),
    # Chunks
    Mutant(CHUNKS, "(int)max(min(start, highest), -highest - 1)", "(int)start", "saturate"),
    Mutant(CHUNKS, "(unsigned)((unsigned long long)end - (unsigned long long)start)", "(unsigned)(end - nearest)", "length"),
    Mutant(CHUNKS, "(unsigned)value[1] - (unsigned)value[0]", "(unsigned)value[1]", "length"),
    Mutant(CHUNKS, "if (from + i < end) chunk[i]", "chunk[i]", "clip", "address"),
    Mutant(CHUNKS, "(chunks.num + ENTRIES - 1) / ENTRIES", "chunks.num / ENTRIES", "rounding"),
    Mutant(CHUNKS, "(chunks.num + group - 1) / group", "chunks.num / group", "rounding"),
    Mutant(CHUNKS, "(num + threads - 1) / threads * group, sum", "(num / threads + 1) * group + 1, sum", "share"),
    Mutant(CHUNKS, "at + i < end && (at + i) % group == 0", "at + i < end", "group"),
    Mutant(CHUNKS, "at + i < end && (at + i) % group == 0", "(at + i) % group == 0", "clip"),
    Mutant(CHUNKS, "make_int2(chunk[i].start, (int)sum);\n                sum", "make_int2(chunk[i].start, (int)(sum + chunk[i].length));\n                sum", "exclusive"),
    Mutant(CHUNKS, "(int)((unsigned)entries[e].y + before)", "entries[e].y", "carry"),
    Mutant(CHUNKS, "make_int2(INT32_MAX_VALUE, (int)(before + sum))", "make_int2(INT32_MAX_VALUE, (int)before)", "total"),
    Mutant(CHUNKS, "stored[(unsigned long long)e * group]", "stored[e]", "group"),
    Mutant(CHUNKS, "entries[num] = stored[chunks.num];", "entries[num] = stored[chunks.num - 1];", "total"),
    Mutant(CHUNKS, "min(entry * group + group, chunks.num)", "entry * group + group", "clip", "address"),
    Mutant(CHUNKS, "if (lane >= distance) v += other;\n    }\n    return v;\n}\n\n// Warps of a block that fill", "v += other;\n    }\n    return v;\n}\n\n// Warps of a block that fill", "scan"),
    Mutant(CHUNKS, "threadIdx.x - warps.first * WARP_THREADS", "threadIdx.x", "half", "address"),
    Mutant(CHUNKS, "before -= sum;\n    __syncthreads();\n    for (unsigned w = warps.first", "before -= sum;\n    for (unsigned w = warps.first", "barrier", "thread"),
    Mutant(CHUNKS, "for (unsigned w = warps.first;", "for (unsigned w = 0;", "half"),
    Mutant(CHUNKS, "if (!table.stored) table.move_share(thread, threads, before, sum);\n    __syncthreads();", "if (!table.stored) table.move_share(thread, threads, before, sum);", "barrier", "thread"),
    # Shards
    Mutant(SHARD, "(blockIdx.x / blocks_a_slice) * column_num)", "0 * column_num)", "slice"),
    Mutant(SHARD, "(blockIdx.x / blocks_a_slice) * key_num)", "0 * key_num)", "slice"),
    Mutant(SHARD, "blockIdx.x % blocks_a_slice * 2 * BLOCK_THREADS * steps", "blockIdx.x * 2 * BLOCK_THREADS * steps", "slice"),
    Mutant(SHARD, "is_aligned(column_lead(columns) == lead)", "is_aligned(true)", "alignment", "address"),
    Mutant(SHARD, "place < key_num && place + 1 < key_num && is_aligned", "place < key_num && is_aligned", "clip", "address"),
    Mutant(SHARD, "if (place + i < key_num) pair[i] = columns[place + i];", "pair[i] = columns[place + i];", "clip", "address"),
    Mutant(SHARD, "(step * BLOCK_THREADS + threadIdx.x) - lead", "(step * BLOCK_THREADS + threadIdx.x)", "lead", "address"),
    Mutant(SHARD, "start < x && x <= next", "start < x", "segment"),
    Mutant(SHARD, "start < x && x <= next", "x <= next", "segment"),
    Mutant(SHARD, "start < x && x <= next", "start < x && x - 1 <= next", "bound"),
    Mutant(SHARD, "x > start ? (unsigned)x - (unsigned)start : 0", "(unsigned)x - (unsigned)start", "clip"),
    Mutant(SHARD, "min(inside, length)", "inside", "clip"),
    Mutant(SHARD, "if (i < chunks.num) chunk[i] = chunks[i];", "chunk[i] = chunks[i];", "clip", "address"),
    Mutant(SHARD, "first.rows_below(x) + second.rows_below(x)", "first.rows_below(x)", "second"),
    Mutant(SHARD, "if (step + 1 < steps) tile.load(tile.place(step + 1), next);", "", "step"),
    Mutant(SHARD, "if (rows.group == 1) return", "return", "group"),
    Mutant(SHARD, "unsigned lo[1] = {first + 1}, hi[1] = {end};\n            int key", "unsigned lo[1] = {first}, hi[1] = {end - 1};\n            int key", "search"),
    Mutant(SHARD, "if (chunk.start > start_below) {", "if (chunk.start >= start_below) {", "bound"),
    Mutant(SHARD, "found.next = chunk.start;", "", "next"),
    Mutant(SHARD, "found.below + found.length, chunk.length}", "found.below, chunk.length}", "carry"),
    Mutant(SHARD, "max(column.x, 0) - 1, max(column.y, 0) - 1", "max(column.x, 0), max(column.y, 0)", "bound"),
    Mutant(SHARD, "max(column.x, 0) - 1, max(column.y, 0) - 1", "column.x - 1, column.y - 1", "overflow", "address"),
    Mutant(SHARD, "if (!lts.has(column.x) || !ute.has(column.y)) {", "if (!lts.has(column.x)) {", "segment"),
    Mutant(SHARD, "if (!lts.has(column.x) || !ute.has(column.y)) {", "if (!ute.has(column.y)) {", "segment"),
    Mutant(SHARD, "if (keys.group == 1) return", "return", "group"),
    Mutant(SHARD, "unsigned lo[1] = {first + 1}, hi[1] = {end}, key[1] = {place};", "unsigned lo[1] = {first + 1}, hi[1] = {end - 1}, key[1] = {place};", "search"),
    Mutant(SHARD, "if (rest < chunk.length) return", "if (rest <= chunk.length) return", "bound"),
    Mutant(SHARD, "rest -= chunk.length;", "", "carry"),
    Mutant(SHARD, "warp_uniform(max(place + lead, lead) - lead)", "warp_uniform(place)", "lead"),
    Mutant(SHARD, "__shfl_sync(FULL_MASK, place, WARP_THREADS - 1) + 1", "__shfl_sync(FULL_MASK, place, 0) + 1", "last"),
    Mutant(SHARD, "__shfl_sync(FULL_MASK, place, WARP_THREADS - 1) + 1", "__shfl_sync(FULL_MASK, place, WARP_THREADS - 1)", "last"),
    Mutant(SHARD, "at[i] < key_num && lo[i] > 0", "lo[i] > 0", "total"),
    Mutant(SHARD, "at[i] < key_num && lo[i] > 0", "at[i] < key_num", "clip", "address"),
    Mutant(SHARD, "unsigned half = has_keys ? WARPS / 2 : WARPS;", "unsigned half = WARPS;", "half"),
    Mutant(SHARD, "has_keys ? min(keys.total(), key_num) : 0", "has_keys ? key_num : 0", "total"),
    Mutant(SHARD, "if (key[i] < column_num) loaded[i]", "if (true) loaded[i]", "clip", "address"),
    Mutant(SHARD, "else missing |= 1u << i;", "", "padding"),
    Mutant(SHARD, "make_int2(row_num, row_num)", "make_int2(0, 0)", "padding"),
    Mutant(SHARD, "if (!(missing >> i & 1)) local[i]", "local[i]", "padding"),
    Mutant(SHARD, "missing = missing_next;", "", "step"),
    Mutant(SHARD, "at < first; at += BLOCK_THREADS) before_block", "at + 1 < first; at += BLOCK_THREADS) before_block", "off-by-one"),
    Mutant(SHARD, "if (lane == WARP_THREADS - 1) atomicAdd(&warp_sums[WARPS], before_block);", "atomicAdd(&warp_sums[WARPS], before_block);", "lane"),
    Mutant(SHARD, "if (threadIdx.x == 0) warp_sums[WARPS] = 0;", "", "start"),
    Mutant(SHARD, "warp_sums[WARPS] = 0;\n    __syncthreads();", "warp_sums[WARPS] = 0;", "barrier", "thread"),
    Mutant(SHARD, "if (own + i < chunks.num) sums[own + i]", "sums[own + i]", "clip", "address"),
    Mutant(SHARD, "before += chunk[i].length;\n        if (own + i + 1 == chunks.num)", "if (own + i + 1 == chunks.num)", "carry"),
    Mutant(SHARD, "if (own + i + 1 == chunks.num) sums[chunks.num]", "if (own + i + 1 == chunks.num) sums[chunks.num - 1]", "total"),
    Mutant(SHARD, "before += warp_sums[WARPS];", "", "carry"),
    Mutant(SHARD, "blockIdx.x - row_blocks, warp_sums", "blockIdx.x, warp_sums", "block", "address"),
    # Needed keys
    Mutant(SHARD, "if (block >= needed_num) return;", "", "bound", "address"),
    Mutant(SHARD, "(block / blocks_a_slice) * column_num", "0 * column_num", "slice"),
    Mutant(SHARD, "min(block_k, column_num - first)", "block_k", "clip", "address"),
    Mutant(SHARD, "count += bounds.y < bounds.x;", "count += bounds.y <= bounds.x;", "bound"),
    Mutant(SHARD, "if (is_last) needed[block] = (int)count;", "needed[block] = (int)count;", "lane"),
    Mutant(SHARD, "if (is_last) atomicAdd(&of_block, (int)count);", "atomicAdd(&of_block, (int)count);", "lane"),
    Mutant(SHARD, "if (threadIdx.x == 0) of_block = 0;", "", "start"),
    Mutant(SHARD, "atomicAdd(&of_block, (int)count);\n    __syncthreads();", "atomicAdd(&of_block, (int)count);", "barrier", "thread"),
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
    Mutant(RUNS, "begins && before[i] != tokens.other_id;", "begins;", "text"),
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
    Mutant(RUNS, "warp_starts[round % 2][warp] = up_to;", "warp_starts[0][warp] = up_to;", "parity", "thread"),
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


def run_modified(executable, by):
    rng = np.random.default_rng(0)
    judge = calls.check if by == "plain" else calls.run
    packs = [random_pack(rng, intervals=False) for _ in range(300)]
    judge(executable, [pack for pack in packs if is_modified(pack)], SECONDS)
    judge(executable, list(filter(is_modified, span_edges())), SECONDS)
    judge(executable, list(filter(is_modified, span_edges())), SECONDS, large=True)
    judge(executable, list(filter(is_modified, large_packs())), SECONDS, large=True)
    if by != "plain":
        packs = [hostile_pack(rng, n, intervals=False) for n in TOKENS * 60]
        judge(executable, list(filter(is_modified, packs)), SECONDS)


def is_modified(pack):
    """Whether a kernel of its own writes the columns of the pack's rule."""
    names = ("chunk_size", "causal_block")
    is_top_left = pack.rule.get("align") == "top_left"
    return is_top_left or any(n in pack.rule for n in names) or len(pack.rule.get("spans", ())) > 0


def run_trees(executable, by):
    rng = np.random.default_rng(0)
    test_tree.check(executable, [test_tree.random_full_tree(rng, 600) for _ in range(60)], SECONDS)
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
    test_blocks.check(executable, list(test_blocks.random_calls(rng, 40)))
    if by != "thread":
        test_blocks.check(executable, test_blocks.calls_around_words_and_chunks())
        test_blocks.check(executable, list(test_blocks.calls_with_holes_and_far_tiles()))


def run_intervals(executable, by):
    rng = np.random.default_rng(0)
    judge = calls.check if by == "plain" else calls.run
    part = 5 if by == "thread" else 1
    for sizes in BY_KERNELS.values():
        packs = [random_pack(rng, intervals=True) for _ in range(100 // part)]
        judge(executable, packs, SECONDS, sizes=sizes)
        judge(executable, packs[::4], SECONDS, large=True, sizes=sizes)
        judge(executable, list(of_intervals(rows_far_from_columns()))[::part], SECONDS, sizes=sizes)
        judge(executable, list(of_intervals(tile_edges()))[::part], SECONDS, sizes=sizes)
        if by != "plain":
            hostile = [hostile_pack(rng, n, intervals=True) for n in TOKENS * 20]
            judge(executable, hostile, SECONDS, sizes=sizes)
    for kernels in OF_MORE_ROWS:
        sizes = BY_KERNELS[kernels]
        judge(executable, list(of_intervals(large_packs())), SECONDS, large=True, sizes=sizes)
        long = list(sequences_of_many_tiles())[::part]
        judge(executable, long, SECONDS, sizes=sizes)
        judge(executable, long, SECONDS, large=True, sizes=sizes)
        if by != "thread":
            judge(executable, list(many_tiles_a_group()), SECONDS, sizes=sizes)


def of_intervals(packs):
    return (pack for pack in packs if pack.attn_mask_kv is not None)


OF_COLUMNS = Suite((RULE, MODIFIED, INTERVALS, FEW_ROWS, MANY_ROWS), run_columns)
OF_INTERVALS = Suite((RULE, MODIFIED, INTERVALS, FEW_ROWS, MANY_ROWS), run_intervals)
OF_MODIFIED = Suite((MODIFIED,), run_modified)


def run_runs(executable, by):
    rng = np.random.default_rng(0)
    if by != "thread":
        test_cu_seqlens.runs_around_edges().check(executable, SECONDS)
    for most_groups in (1024, 3):
        some = test_cu_seqlens.Calls(most_groups)
        for tokens in (40, 300, 3000) if by == "thread" else (40, 300, 3000) * 5:
            test_cu_seqlens.add_random_runs(some, rng, tokens)
        if by == "thread":
            test_cu_seqlens.add_many_groups(some, rounds=2)
        some.check(executable, SECONDS)


def run_padded(executable, by):
    rng = np.random.default_rng(0)
    if by != "thread":
        test_cu_seqlens.masks_around_edges().check(executable, SECONDS)
    some = test_cu_seqlens.Calls()
    for i in range(5 if by == "thread" else 20):
        mask = test_cu_seqlens.random_mask(rng, (40, 300, 3000)[i % 3])
        some.add_mask(mask, offset=8 * (i % 2))
        some.add_slots(test_cu_seqlens.random_slots(rng, 70, is_cut=True))
    some.check(executable, SECONDS)


def run_splits(executable, by):
    rng = np.random.default_rng(0)
    splits = test_cu_seqlens.Calls()
    test_cu_seqlens.add_random_splits(splits, rng, 60)
    splits.check(executable, SECONDS)


OF_TREES = Suite((TREE,), run_trees)
OF_EXCESS = Suite((INTERVALS, EXCESS), run_excess)


def run_shards(executable, by):
    rng = np.random.default_rng(0)
    part = 8 if by == "thread" else 1
    edges = [*test_shards.calls_around_sizes(), *test_shards.misled_searches()]
    test_shards.check(executable, list(test_shards.random_calls(rng, 80 // part)), SECONDS)
    test_shards.check(executable, edges[::part], SECONDS)
    test_shards.check_needed(executable, rng, 80 // part)
    if by != "plain":
        hostile = [test_shards.hostile_call(rng, n) for n in TOKENS * 30]
        test_shards.run(executable, hostile[::part], SECONDS)


OF_TILE_LISTS = Suite((TILES, NARROW), run_tile_lists)
OF_SHARDS = Suite((SHARD,), run_shards)
OF_RUNS = Suite((RUNS,), run_runs)
OF_PADDED = Suite((PADDED,), run_padded)
OF_FORMS = Suite((FORMS,), run_splits)
SUITES = {
    SEARCH: [OF_COLUMNS],
    SEQUENCES: [OF_COLUMNS],
    ROWS: [OF_INTERVALS, OF_EXCESS],
    SCANS: [OF_INTERVALS, OF_EXCESS],
    STAIRCASE: [OF_INTERVALS, OF_EXCESS],
    MARKS: [OF_INTERVALS],
    FEW_ROWS: [OF_INTERVALS],
    MANY_ROWS: [OF_INTERVALS],
    COLUMNS: [OF_COLUMNS],
    COLUMN_TILES: [OF_COLUMNS],
    COLUMN_SEQUENCES: [OF_COLUMNS],
    RULE: [OF_COLUMNS],
    MODIFIED: [OF_MODIFIED],
    INTERVALS: [OF_INTERVALS],
    SUBTREES: [OF_TREES],
    TREE: [OF_TREES],
    EXCESS: [OF_EXCESS],
    TILES: [OF_TILE_LISTS],
    OF_TILES: [OF_TILE_LISTS],
    NARROW: [OF_TILE_LISTS],
    CHUNKS: [OF_SHARDS],
    SHARD: [OF_SHARDS],
    RUNS: [OF_RUNS],
    PADDED: [OF_PADDED],
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
        if "no kernel" in str(error):
            raise  # of the suite's own files, not of the mutant
        for report in ("AddressSanitizer", "runtime error", "data race", "guards"):
            if report in str(error):
                return report
        return "crashes"
    return None


def git(*arguments, root):
    """Return what git prints, or None where it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def branching_point(root=ROOT):
    """Return the commit that the branch left its upstream at, or main; None where git has none."""
    for other in ("@{upstream}", "origin/HEAD", "main"):
        if found := git("merge-base", "HEAD", other, root=root):
            return found
    return None


def changed_kernels(since, root=ROOT):
    """Return the names of kernel files that differ from a revision, committed or not."""
    changed = git("diff", "--name-only", since, "--", "kernels", root=root)
    if changed is None:
        sys.exit(f"git knows no revision {since}: --all runs all mutants")
    new = git("ls-files", "--others", "--exclude-standard", "--", "kernels", root=root)
    return {Path(path).name for path in [*changed.splitlines(), *new.splitlines()]}


def choose(options):
    """Return the mutants to run, and what they are in words."""
    since = options.since or branching_point()
    if options.words:
        has_word = [m for m in MUTANTS if any(w in part for w in options.words for part in m)]
        return has_word, f"those with {' or '.join(options.words)}"
    if options.all or since is None:
        return MUTANTS, "all"
    files = changed_kernels(since)
    of_files = [m for m in MUTANTS if m.file in files]
    return of_files, f"those of {', '.join(sorted(files)) or 'no file'}, changed since {since:.12}"


def judge(mutant):
    """Return how the mutant is noticed, and the seconds that took."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        noticed = how_noticed(mutant, folder)
    return noticed, time.perf_counter() - begin


def judgements(chosen, jobs):
    """Yield each mutant, and how it is noticed, from processes side by side."""
    if jobs == 1:
        yield from ((mutant, *judge(mutant)) for mutant in chosen)
        return
    hanging = []
    with ProcessPoolExecutor(jobs) as pool:
        for mutant, (noticed, seconds) in zip(chosen, pool.map(judge, chosen), strict=True):
            if noticed == "hangs":
                hanging.append(mutant)
            else:
                yield mutant, noticed, seconds
    # Beside others a run may only have been slow: alone it shows.
    yield from judgements(hanging, 1)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Break the kernels; the tests must notice.")
    parser.add_argument("words", nargs="*", help="of a mutant's file, text or reason")
    parser.add_argument("--since", metavar="REV", help="of files changed since, not of the branch")
    parser.add_argument("--all", action="store_true", help="all mutants")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once; a core each")
    options = parser.parse_args(arguments)
    chosen, what = choose(options)
    print(f"{len(chosen)} of {len(MUTANTS)} mutants: {what}", flush=True)
    survivors = 0
    for i, (mutant, noticed, seconds) in enumerate(judgements(chosen, options.jobs), start=1):
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
    sys.exit(main())
