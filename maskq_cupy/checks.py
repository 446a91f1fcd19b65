"""What the arguments of a call must look like, and the errors that say so.

Forms (type, rank, length) are host-side facts of any array and are checked on every call.
Values are checked where they are at hand: always on the host, on a GPU under ``validate=True``.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np

from maskq_cupy import forest
from maskq_cupy.facts import Facts, is_read_only_by_capsule
from maskq_cupy.rule import INT32_MAX

INDEX_DTYPES = ("int32", "int64")
FLAG_DTYPES = ("bool", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))
SLICES = "int32 of shape (N, 2) or (b, h, N, 2)"
COLUMNS = "int32 of shape (N, 2) or (1, 1, N, 2)"
CU_SEQLENS = "int32 or int64 of shape (B + 1,)"
INTERVALS = "int32 or int64 of shape (Q, 2) or (2 * Q,)"
SPANS = "int32 or int64 of shape (S, 2)"
FORMS = {
    "cu_seqlens_q": CU_SEQLENS,
    "cu_seqlens_k": CU_SEQLENS,
    "attn_mask_kv": INTERVALS,
    "spans": SPANS,
}


def form_error(
    name: str,
    expected: str,
    dtype: str,
    shape: Sequence[int],
    dtypes: Sequence[str] = INDEX_DTYPES,
) -> Exception:
    """Return a TypeError for another element type than these, else a ValueError for the shape."""
    kind = ValueError if dtype in dtypes else TypeError
    return kind(f"{name} must be {expected}, got {dtype} of shape {tuple(shape)}")


def check_cu_seqlens_form(name: str, dtype: str, shape: Sequence[int]) -> None:
    """Require int32 or int64 of shape (B + 1,)."""
    if dtype not in INDEX_DTYPES or len(shape) != 1 or shape[0] < 1:
        raise form_error(name, CU_SEQLENS, dtype, shape)


def check_same_batch(length_q: int, length_k: int) -> None:
    """Require that cu_seqlens_q cuts at least as many sequences as cu_seqlens_k."""
    if length_q < length_k:
        raise ValueError(
            "cu_seqlens_q must be at least as long as cu_seqlens_k, "
            f"got {length_q} and {length_k} entries"
        )


def check_intervals_form(dtype: str, shape: Sequence[int]) -> int:
    """Require int32 or int64 of shape (Q, 2) or (2 * Q,); return Q."""
    paired = len(shape) == 2 and shape[1] == 2
    flat = len(shape) == 1 and shape[0] % 2 == 0
    if dtype not in INDEX_DTYPES or not (paired or flat):
        raise form_error("attn_mask_kv", INTERVALS, dtype, shape)
    return shape[0] if paired else shape[0] // 2


def check_intervals_given(attn_mask_kv: object) -> None:
    """Require that there are intervals, where they are not optional."""
    if attn_mask_kv is None:
        raise TypeError(f"attn_mask_kv must be {INTERVALS}, got None")


def check_token_num(value: object, name: str = "kv_token_num") -> int:
    """Require an int in [0, 2**31 - 1]; return it."""
    return check_int(value, name, expected="an int or None")


def check_int(value: object, name: str, lowest: int = 0, expected: str = "an int") -> int:
    """Require an int in [lowest, 2**31 - 1]; return it.

    While torch traces, its symbolic ints stand for any.
    """
    if type(value) is int and lowest <= value <= INT32_MAX:
        return value  # by far the most: at once
    if not is_int(value):
        wait = ": give an int: int(x) of a GPU array waits" if hasattr(value, "shape") else ""
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}{wait}")
    if not isinstance(value, (int, np.integer)):
        return value  # type: ignore[return-value]  # torch.SymInt
    count = int(value)
    if not lowest <= count <= INT32_MAX:
        raise ValueError(f"{name} must be in [{lowest}, 2**31 - 1], got {count}")
    return count


def is_int(value: object) -> bool:
    """Is it an int of Python, of NumPy, or one of torch while it traces? Bools are none."""
    if isinstance(value, (int, np.integer)):
        return not isinstance(value, bool)
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.SymInt)


def check_block_size(block_size: object) -> tuple[int, int]:
    """Require one or two ints of at least 1; return (rows, columns) of a tile."""
    if type(block_size) is int and 1 <= block_size <= INT32_MAX:
        return block_size, block_size
    sizes = block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)
    if len(sizes) != 2:
        raise ValueError(f"block_size must be an int or (rows, columns), got {block_size!r}")
    rows, columns = (check_int(size, "block_size", lowest=1) for size in sizes)
    return rows, columns


def check_columns_form(dtype: str, shape: Sequence[int], name: str = "columns") -> int:
    """Require int32 of shape (N, 2), or (1, 1, N, 2) as FlashMask wants it; return N."""
    paired = len(shape) == 2 or (len(shape) == 4 and shape[0] == shape[1] == 1)
    if dtype != "int32" or not paired or shape[-1] != 2:
        raise form_error(name, COLUMNS, dtype, shape, ["int32"])
    return shape[-2]


def check_slices_form(dtype: str, shape: Sequence[int], name: str = "columns") -> int:
    """Require int32 of shape (N, 2) or (b, h, N, 2); return N."""
    if dtype != "int32" or len(shape) not in (2, 4) or shape[-1] != 2:
        raise form_error(name, SLICES, dtype, shape, ["int32"])
    return shape[-2]


def check_columns_values(columns: np.ndarray, row_num: int) -> None:
    """Require bounds of rows that there are: 0 <= UTE <= LTS <= row_num, of every column."""
    lts, ute = np.moveaxis(columns, -1, 0)
    wrong = np.argwhere((ute < 0) | (ute > lts) | (lts > row_num))
    if wrong.size:
        *at, c = map(int, wrong[0])
        within = f" of slice {tuple(at)}" if np.prod(columns.shape[:-2]) > 1 else ""
        bounds = columns[(*at, c)].tolist()
        raise ValueError(
            f"columns must have 0 <= UTE <= LTS <= q_token_num = {row_num}, "
            f"got [LTS, UTE] = {bounds} of column {c}{within}"
        )


def check_width(width: object, row_tiles: int, column_tiles: int) -> tuple[int, int]:
    """Require None or one or two ints of at least 1; return (w_kv, w_q), cut to the tiles."""
    if width is None:
        return column_tiles, row_tiles
    widths = width if isinstance(width, (tuple, list)) else (width, width)
    if len(widths) != 2:
        raise ValueError(f"width must be an int or (w_kv, w_q), got {width!r}")
    w_kv, w_q = (check_int(w, "width", lowest=1) for w in widths)
    return min(w_kv, column_tiles), min(w_q, row_tiles)


def check_needed_form(dtype: str, shape: Sequence[int]) -> None:
    """Require int32 of shape (2,)."""
    if dtype != "int32" or tuple(shape) != (2,):
        raise form_error("needed", "int32 of shape (2,)", dtype, shape, ["int32"])


def check_width_values(width: tuple[int, int], by_row: np.ndarray, by_column: np.ndarray) -> None:
    """Require room for each tile's lists, by their counts (2, b, h, tiles): partial, full."""
    needed = tuple(int(counts.max(initial=0)) for counts in (by_row, by_column))
    for side, room, most, counts in zip(
        ("row", "column"), width, needed, (by_row, by_column), strict=True
    ):
        if most <= room:
            continue
        kind, *at, tile = (int(i) for i in np.argwhere(counts == most)[0])
        within = f" of slice {tuple(at)}" if counts.shape[1:3] != (1, 1) else ""
        raise ValueError(
            f"width must be at least {needed}, got {width}: {side} tile {tile}{within} has {most} "
            f"{('partial', 'full')[kind]} tiles"
        )


def check_dense_size(row_num: int, column_num: int, limit: int, slices: int = 1) -> None:
    """Require at most `limit` pairs, which cost a byte each."""
    pairs = slices * row_num * column_num
    if pairs > limit:
        times = f"{slices} slices of " if slices != 1 else ""
        raise ValueError(
            f"a dense mask of {times}{row_num} rows x {column_num} columns is {pairs} bytes, above "
            f"limit={limit}: give a higher limit, or use to_blocks"
        )


def check_cu_seqlens_values(name: str, cu_seqlens: np.ndarray) -> None:
    """Require values that start at 0, never decrease and end within int32."""
    if cu_seqlens[0] != 0:
        raise ValueError(f"{name} must start at 0, got {name}[0] = {cu_seqlens[0]}")
    drops = np.flatnonzero(cu_seqlens[1:] < cu_seqlens[:-1])
    if drops.size:
        i = int(drops[0]) + 1
        raise decrease_error(name, i, int(cu_seqlens[i - 1]), int(cu_seqlens[i]))
    if cu_seqlens[-1] > INT32_MAX:
        raise ValueError(f"{name} must end within int32, got {name}[-1] = {cu_seqlens[-1]}")


def decrease_error(name: str, i: int, before: int, value: int) -> ValueError:
    return ValueError(
        f"{name} must not decrease, got {name}[{i}] = {value} after {name}[{i - 1}] = {before}"
    )


def check_parent_form(dtype: str, shape: Sequence[int], segment_num: int) -> None:
    """Require int32 or int64 of shape (B,), one entry a segment."""
    if dtype not in INDEX_DTYPES or tuple(shape) != (segment_num,):
        raise form_error("parent", parent_form(segment_num), dtype, shape)


def parent_form(segment_num: int) -> str:
    return f"int32 or int64 of shape (B,) = ({segment_num},)"


def check_parent_values(parent: np.ndarray) -> None:
    """Require parents before their children, and segments in depth-first order."""
    segment = np.arange(len(parent))
    astray = np.flatnonzero((parent < -1) | (parent >= segment))
    if astray.size:
        b = int(astray[0])
        raise ValueError(
            f"parent must hold -1 or a segment before its child, got parent[{b}] = {parent[b]}"
        )
    ends = forest.subtree_ends(parent)
    late = np.flatnonzero((parent >= 0) & (ends[parent] <= segment))
    if late.size:
        b = int(late[0])
        end = ends[parent[b]]
        raise ValueError(
            "parent must be in depth-first order: the segment before its child or one of that "
            f"one's ancestors, got parent[{b}] = {parent[b]}, whose subtree ended before segment "
            f"{end} with parent[{end}] = {parent[end]}"
        )


def check_tree(parent: np.ndarray) -> np.ndarray:
    """Require the parents of a forest, in any order; return its depth-first order."""
    num = len(parent)
    astray = np.flatnonzero((parent < -1) | (parent >= num))
    if astray.size:
        b = int(astray[0])
        raise ValueError(
            f"parent must hold -1 or a segment in [0, {num}), got parent[{b}] = {parent[b]}"
        )
    order = forest.depth_first_order(parent)
    if len(order) < num:
        b = forest.member_of_cycle(parent, order)
        raise ValueError(
            f"parent must have no cycle, got one through segment {b}, parent[{b}] = {parent[b]}"
        )
    return order


def full_form(segment_num: int) -> str:
    return f"bool or any int dtype of shape (B,) = ({segment_num},)"


def check_full_form(dtype: str, shape: Sequence[int], segment_num: int) -> None:
    """Require flags, one a segment: bool or any int dtype."""
    if dtype not in FLAG_DTYPES or tuple(shape) != (segment_num,):
        raise form_error("full", full_form(segment_num), dtype, shape, FLAG_DTYPES)


def check_spans_form(dtype: str, shape: Sequence[int]) -> int:
    """Require int32 or int64 of shape (S, 2), or (0,) for none; return S."""
    if dtype not in INDEX_DTYPES or not ((len(shape) == 2 and shape[1] == 2) or shape == (0,)):
        raise form_error("spans", SPANS, dtype, shape)
    return shape[0]


def check_spans_values(spans: np.ndarray, column_num: int) -> None:
    """Require spans, (S, 2), in order, none over another, in the pack's columns."""
    ends = np.append(0, spans.ravel())
    drops = np.flatnonzero(ends[1:] < ends[:-1])
    if drops.size:
        i, is_end = divmod(int(drops[0]), 2)
        got = f"spans[{i}] = {spans[i].tolist()}"
        if i and not is_end:
            got += f" after spans[{i - 1}] = {spans[i - 1].tolist()}"
        raise ValueError(
            f"spans must hold [start, end) with 0 <= start <= end <= next start, got {got}"
        )
    if ends[-1] > column_num:
        raise ValueError(
            f"spans must end within the N = {column_num} columns, "
            f"got spans[{len(spans) - 1}] = {spans[-1].tolist()}"
        )


def check_excess(pairs: int, first_row: int) -> None:
    """Require that the columns show no (row, key) pair beyond the intervals."""
    if pairs:
        raise ValueError(
            "attn_mask_kv must hold intervals that two columns show exactly, "
            f"got {pairs} (row, key) pairs shown beyond them, the first in row {first_row}"
        )


def check_totals(kv_token_num: int, kv_total: int, row_num: int | None, q_total: int) -> None:
    """Require a column for each key of the sequences, and an interval for each row."""
    if kv_token_num < kv_total:
        raise ValueError(
            f"kv_token_num must be at least cu_seqlens_k[B], got {kv_token_num} below {kv_total}"
        )
    if row_num is not None and row_num < q_total:
        raise ValueError(
            f"attn_mask_kv must have at least cu_seqlens_q[B] rows, got {row_num} below {q_total}: "
            "an array of ends alone must be stacked with its starts"
        )


def check_contiguous(name: str, array: Facts) -> None:
    if not array.contiguous:
        raise ValueError(
            f"{name} must be C-contiguous, got a strided view of shape {tuple(array.shape)}"
        )


def check_aligned(name: str, array: Facts, alignment: int) -> None:
    if array.pointer % alignment:
        raise ValueError(f"{name} must be {alignment}-byte aligned, got address {array.pointer:#x}")


def check_target_form(
    name: str, target: Facts, dtype: str, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Require that a result of one of these shapes fits into an array of the caller's."""
    if target.dtype != dtype or target.shape not in shapes:
        found = tuple(target.shape)
        kind = TypeError if target.dtype != dtype else ValueError
        either = " or ".join(map(str, shapes))
        raise kind(f"{name} must be {dtype} of shape {either}, got {target.dtype} of shape {found}")


def check_target(name: str, target: Facts, alignment: int, inputs: dict[str, Facts]) -> None:
    """Require that a kernel can write to an array of the caller's while it reads the inputs."""
    if not target.contiguous:
        check_contiguous(name, target)
    if not target.writable or target.stream is None:
        _check_writable(name, target)
    if target.pointer % alignment:
        check_aligned(name, target, alignment)
    start, end = target.pointer, target.pointer + target.nbytes
    for other in inputs.values():
        if other.pointer < end and start < other.pointer + other.nbytes:
            forbid_overlap(name, target, [other])


def _check_writable(name: str, target: Facts) -> None:
    """Require that nothing says of an array that it is read-only, its DLPack capsule neither."""
    by_dlpack = target.stream is None
    if not target.writable or (by_dlpack and is_read_only_by_capsule(target.value)):
        raise ValueError(f"{name} must be writable, got a read-only {type(target.value).__name__}")


def check_scratch(memory: Facts, nbytes: int) -> None:
    """Require memory that the kernels can keep so many bytes in."""
    usable = memory.contiguous and memory.writable and memory.pointer % 16 == 0
    if memory.nbytes < nbytes or not usable:
        raise ValueError(
            "scratch must be writable, contiguous, 16-byte aligned and of at least "
            f"{nbytes} bytes, got {memory.nbytes} bytes at {memory.pointer:#x}, "
            f"contiguous={memory.contiguous}, writable={memory.writable}"
        )


def forbid_overlap(name: str, array: Facts, given: Iterable[Facts]) -> None:
    """Require that a written array shares no byte with the others."""
    start, end = array.pointer, array.pointer + array.nbytes
    for other in given:
        if other.pointer < end and start < other.pointer + other.nbytes and other is not array:
            raise ValueError(
                f"{name} must not overlap the other arrays, got {start:#x} to {end:#x} "
                f"over {other.pointer:#x} to {other.pointer + other.nbytes:#x}"
            )


CHUNKS = {
    "row_chunks": "int32 or int64 of shape (C, 2)",
    "key_chunks": "int32 or int64 of shape (K, 2)",
}


def check_chunks_form(name: str, dtype: str, shape: Sequence[int]) -> int:
    """Require what CHUNKS says; return how many chunks."""
    if dtype not in INDEX_DTYPES or len(shape) != 2 or shape[1] != 2:
        raise form_error(name, CHUNKS[name], dtype, shape)
    return shape[0]


def check_chunk_values(name: str, chunks: np.ndarray) -> None:
    """Require [start, end), start <= end, those of rows ascending from 0; not too many tokens."""
    are_rows = name == "row_chunks"
    starts, ends = chunks.T
    backwards = np.flatnonzero((starts > ends) | ((starts < 0) if are_rows else False))
    if backwards.size:
        i = int(backwards[0])
        least = "0 <= start <= end" if are_rows else "start <= end"
        raise ValueError(
            f"{name} must hold [start, end) with {least}, got {name}[{i}] = {chunks[i].tolist()}"
        )
    late = np.flatnonzero(starts[1:] < ends[:-1]) + 1
    if are_rows and late.size:
        i = int(late[0])
        raise ValueError(
            f"{name} must ascend without overlap, got {name}[{i}] = {chunks[i].tolist()} after "
            f"{name}[{i - 1}] = {chunks[i - 1].tolist()}: the order of a rank's rows is free, "
            "sort them"
        )
    total = chunk_total(chunks)
    if total > INT32_MAX:
        kind = "rows" if are_rows else "keys"
        raise ValueError(f"{name} must hold at most 2**31 - 1 {kind}, got {total}")


def check_key_num(key_num: object, known: int | None) -> None:
    """Require an int that is M, where that is known."""
    if check_int(key_num, "key_num") != known and known is not None:
        raise ValueError(f"key_num must be M = {known}, got {key_num}")


def chunk_total(chunks: np.ndarray) -> int:
    """Return the tokens of int64 chunks with start <= end, whatever their number."""
    starts, ends = chunks.view(np.uint64).T
    lengths = ends - starts  # exact below 2**64
    if lengths.size and lengths.max() > INT32_MAX:
        return sum(lengths.tolist())
    return int(lengths.sum())
