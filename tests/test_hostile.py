"""Arrays of the right form and any values whatever, unchecked: every kernel returns, and touches
nothing but its arrays.

MASKQ_SEED and MASKQ_HOSTILE_PACKS choose other packs and more of them; both are printed.
"""

import functools
import importlib
import math
import os

import numpy as np
import pytest
import test_cu_seqlens
import test_excess
import test_tree
from on_cpu import calls, emulator
from strategies import Pack, cuts, random_intervals, random_lengths, random_parents, random_rule
from test_blocks import Call as TilesCall
from test_blocks import add_call as add_tiles_call
from test_blocks import random_block_size, random_width
from test_kernels_on_cpu import BY_KERNELS

import maskq_cupy
from maskq_cupy import compiler, plan

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("MASKQ_SEED", "0"))
PACKS = int(os.environ.get("MASKQ_HOSTILE_PACKS", "0"))  # 0: as many as each test says


def hostile_pack(rng, tokens, intervals=None):
    """Return a pack of up to `tokens` rows and columns; its sequences fill a window or not."""
    batch = int(rng.choice([0, 1, 2, 31, 32, 33, 64, 1023, 1025, tokens]))
    q, k = (hostile_cuts(rng, batch, int(rng.integers(0, tokens + 1))) for _ in range(2))
    column_num = int(rng.integers(1, tokens + 1))
    if intervals is None:
        intervals = rng.random() >= 0.4
    if not intervals:
        good = np.sort(rng.integers(0, column_num + 1, batch + 1))
        rule = random_rule(rng, good, column_num)
        if rng.random() < 0.5:
            rule["spans"] = hostile_spans(rng, tokens)
        return Pack(q, k, None, column_num, rule)
    return Pack(q, k, hostile_intervals(rng, q, int(rng.integers(1, tokens + 1))), column_num, {})


def hostile_cuts(rng, batch, total):
    """Return batch + 1 words, int32 or int64: random bits, extremes, or cuts with faults."""
    dtype = rng.choice([np.int32, np.int64])
    good = np.sort(rng.integers(0, total + 1, batch + 1))
    kind = rng.choice(
        ["bits", "extremes", "decreasing", "jumps", "shuffled", "far", "equal", "good"]
    )
    if kind == "bits":
        return random_bits(rng, batch + 1, dtype)
    if kind == "extremes":
        return rng.choice(extremes(dtype), batch + 1)
    if kind == "decreasing":
        good = good[::-1]
    elif kind == "jumps":
        jumps = rng.random(batch + 1) < rng.choice([0.01, 0.1, 0.5])
        return np.where(jumps, rng.choice(extremes(dtype), batch + 1), good.astype(dtype))
    elif kind == "shuffled":
        good = rng.permutation(good)
    elif kind == "far":  # a wrong start, wrong totals
        good = good * int(rng.choice([2, 1000])) + int(rng.choice([-(2**31), -total, 5, 2**30]))
    elif kind == "equal":
        good[:] = rng.choice(extremes(np.int32))
    return np.clip(good, *limits(np.int32)).astype(dtype)


def hostile_spans(rng, tokens):
    """Return (S, 2) words, int32 or int64, as cuts are hostile; they fill a window or not."""
    num = int(rng.choice([1, 31, 32, 33, 300, tokens]))
    return hostile_cuts(rng, 2 * num - 1, int(rng.integers(0, tokens + 1))).reshape(-1, 2)


def hostile_intervals(rng, q, row_num):
    """Return (row_num, 2) words: random bits, extremes, or intervals of some other pack."""
    dtype = rng.choice([np.int32, np.int64])
    kind = rng.choice(["bits", "extremes", "of another pack"])
    if kind == "bits":
        return random_bits(rng, 2 * row_num, dtype).reshape(-1, 2)
    if kind == "extremes":
        return rng.choice(extremes(dtype), (row_num, 2))
    q_lens, k_lens = random_lengths(rng, row_num)
    intervals = random_intervals(rng, cuts(q_lens), cuts(k_lens))
    return np.resize(np.append(intervals, [[0, 1]], axis=0), (row_num, 2)).astype(dtype)


def misled_searches():
    """Packs whose cuts are right but for some that are far too high, where searches look first."""
    tokens = 1000
    for period in (16, 32, 64, 100):
        cut = np.arange(tokens + 1, dtype=np.int32)
        cut[period // 2 :: period] = 2**31 - 1
        yield Pack(cut, cut, None, tokens, {})
        yield Pack(cut, cut, np.tile([0, 1], (tokens, 1)), tokens, {})
        yield Pack(cut, cut, None, tokens, {"spans": np.stack([cut[:-1], cut[1:]], axis=1)})


def hostile_tree(rng, tokens, few_segments):
    """Return parents, cuts of rows and of columns, a number of columns, and flags or None.

    The segments are `few_segments`, whose minima no launch makes, or more or fewer.
    """
    num = int(rng.choice([0, 1, 31, 33, few_segments, few_segments + 1, 1025, tokens]))
    q, k = (hostile_cuts(rng, num, int(rng.integers(0, tokens + 1))) for _ in range(2))
    full = None
    if rng.random() < 0.5:
        full = random_bits(rng, num, rng.choice([np.uint8, np.int16, np.int32, np.int64]))
    return hostile_parents(rng, num), q, k, int(rng.integers(1, tokens + 1)), full


def hostile_parents(rng, num):
    """Return num words, int32 or int64: random bits, extremes, cycles, or a forest out of order."""
    dtype = rng.choice([np.int32, np.int64])
    segment = np.arange(num)
    kind = rng.choice(["bits", "extremes", "any", "own", "pairs", "ring", "shuffled", "good"])
    if kind == "bits":
        return random_bits(rng, num, dtype)
    if kind == "extremes":
        return rng.choice(extremes(dtype), num)
    parents = {
        "any": lambda: rng.integers(-1, num + 1, num),
        "own": lambda: segment,
        "pairs": lambda: segment ^ 1,  # each the other's
        "ring": lambda: np.roll(segment, -1),
        "shuffled": lambda: rng.permutation(random_parents(rng, num)),
        "good": lambda: random_parents(rng, num),
    }[kind]()
    return parents.astype(dtype)


def random_bits(rng, count, dtype):
    return np.frombuffer(rng.bytes(count * np.dtype(dtype).itemsize), dtype)


def limits(dtype):
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def extremes(dtype):
    lowest, highest = limits(dtype)
    values = [lowest, lowest + 1, -(2**31), -1, 0, 1, 2**30, 2**31 - 2, 2**31 - 1, highest]
    return np.array(values, dtype)


def run_many(run, make, executable, count):
    """Run as many as asked for of what make(rng, tokens) returns, up to fifty a process."""
    rng = np.random.default_rng(SEED)
    left = PACKS or count
    print(f"MASKQ_SEED={SEED} MASKQ_HOSTILE_PACKS={left}")
    while left:
        part = min(left, 50)
        made = [make(rng, int(rng.choice([1, 40, 600, 2000]))) for _ in range(part)]
        run(executable, made, timeout=120)
        left -= part


@pytest.mark.parametrize(
    ("sanitizer", "count"), [("plain", 200), ("address", 300), ("thread", 100)]
)
def test_on_the_cpu(builds, sanitizer, count):
    run_many(calls.run, hostile_pack, builds(sanitizer), count)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kernels", BY_KERNELS)
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 60), ("address", 60), ("thread", 20)])
def test_intervals_on_the_cpu(builds, sanitizer, count, kernels, large):
    """By the kernels for few rows, for neither few nor many, and for many."""
    make = functools.partial(hostile_pack, intervals=True)
    run = functools.partial(calls.run, large=large, sizes=BY_KERNELS[kernels])
    run_many(run, make, builds(sanitizer), count)


@pytest.mark.parametrize("kernels", BY_KERNELS)
@pytest.mark.parametrize("sanitizer", ["plain", "address"])
def test_misled_searches_on_the_cpu(builds, sanitizer, kernels):
    calls.run(builds(sanitizer), list(misled_searches()), timeout=120, sizes=BY_KERNELS[kernels])


@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 100), ("address", 100), ("thread", 40)])
def test_trees_on_the_cpu(builds, sanitizer, count):
    """Of few segments, whose minima a block makes itself, and of many."""
    make = functools.partial(hostile_tree, few_segments=test_tree.FEW_SEGMENTS)
    run_many(test_tree.run, make, builds(sanitizer), count)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 60), ("address", 60), ("thread", 20)])
def test_excess_on_the_cpu(builds, sanitizer, count, large):
    """A tile a group of rows, or all tiles in one as where rows are many."""
    make = functools.partial(hostile_pack, intervals=True)
    run = functools.partial(test_excess.run, large=large)
    run_many(run, make, builds(sanitizer), count)


def hostile_tokens(rng, tokens):
    """Return ids or positions of random bits or extremes, (N,) or (b, L)."""
    dtype, length = rng.choice([np.int32, np.int64]), int(rng.choice([1, 7, 100]))
    shape = (int(rng.integers(1, tokens // length + 2)), length)
    if rng.random() < 0.5:
        found = random_bits(rng, shape[0] * length, dtype)
    else:
        found = rng.choice(extremes(dtype), shape[0] * length)
    return found if rng.random() < 0.5 else found.reshape(shape)


def hostile_slots(rng, batch):
    total = int(rng.choice([10, 1000]))
    return [hostile_cuts(rng, batch, total) for _ in range(4)]


def hostile_mask(rng, tokens):
    dtype, length = rng.choice([np.int8, np.int16, np.int64]), int(rng.choice([3, 64, 900]))
    bits = random_bits(rng, length * int(rng.integers(1, tokens // length + 2)), dtype)
    is_zero = rng.random(len(bits)) < rng.choice([0, 0.5, 1])
    return np.where(is_zero, dtype(0), bits).reshape(-1, length)


@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 60), ("address", 60), ("thread", 10)])
def test_cu_seqlens_on_the_cpu(builds, sanitizer, count):
    rng = np.random.default_rng(SEED)
    left = PACKS or count
    print(f"MASKQ_SEED={SEED} MASKQ_HOSTILE_PACKS={left}")
    while left:
        calls_of = test_cu_seqlens.Calls(most_groups=int(rng.choice([2, 1024])))
        for _ in range(min(left, 20)):
            tokens, room = hostile_tokens(rng, 600), int(rng.choice([0, 1, 50, 999]))
            calls_of.add_ids(tokens, room)
            calls_of.add_ids(tokens.ravel(), room, int(rng.choice(extremes(tokens.dtype))))
            calls_of.add_positions(tokens, room)
            calls_of.add_spans(tokens, room, int(rng.choice(extremes(tokens.dtype))))
            calls_of.add_mask(hostile_mask(rng, 2000))
            calls_of.add_slots(hostile_slots(rng, int(rng.choice([0, 1, 64, 200]))), False)
        calls_of.check(builds(sanitizer), timeout=120)
        left -= min(left, 20)


def hostile_columns(rng, tokens):
    """Return columns of random bits or extremes, a number of rows, and a size of tiles."""
    column_num, row_num = (int(n) for n in rng.integers(1, tokens + 1, 2))
    if rng.random() < 0.5:
        columns = random_bits(rng, 2 * column_num, np.int32).reshape(-1, 2)
    else:
        bounds = np.append(extremes(np.int32), row_num).astype(np.int32)
        columns = rng.choice(bounds, (column_num, 2))
    return columns, row_num, random_block_size(rng)


@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 60), ("address", 60), ("thread", 12)])
def test_columns_on_the_cpu(builds, sanitizer, count):
    """Of the kernels that read columns: tile lists, four columns, dense."""
    rng = np.random.default_rng(SEED)
    left = PACKS or count
    print(f"MASKQ_SEED={SEED} MASKQ_HOSTILE_PACKS={left}")
    while left:
        script = emulator.Script()
        for i in range(min(left, 50)):
            columns, row_num, block_size = hostile_columns(rng, int(rng.choice([1, 40, 300])))
            tiles = TilesCall(columns, row_num, block_size, random_width(rng))
            add_tiles_call(script, tiles, misaligned=i % 2 == 1)
            source = script.buffer(columns, offset=8 * (i % 2))
            four = script.buffer(np.zeros((len(columns), 4), np.int32))
            dense = script.buffer(np.zeros((row_num, len(columns)), np.uint8), offset=i % 4)
            with emulator.planning():
                script.launch(plan.four_columns_launch(source, len(columns), row_num, four))
                script.launch(plan.dense_launch(source, len(columns), row_num, dense))
                part = int(rng.integers(1, len(columns) + 1)), int(rng.integers(0, 2**31))
                parts = script.buffer(np.zeros_like(columns), offset=8 * (i // 2 % 2))
                script.launch(plan.split_launch(source, len(columns), *part, parts))
        script.run(builds(sanitizer), timeout=120)
        left -= min(left, 50)


GUARD_BYTES = 4096
GUARD = 0x5C


class Guarded:
    """Memory, uint8, with arrays in it and guards around each of them."""

    def __init__(self, memory):
        self._memory = memory
        self._free = GUARD_BYTES
        self._expected = np.full(len(memory), GUARD, np.uint8)
        self._changing = []  # parts that a kernel may write

    def array(self, host, odd=False, is_written=False):
        """Place a copy, by an element past a 16-byte boundary if odd; return the view."""
        start = self._free + (8 if is_written else host.itemsize) * odd
        part = slice(start, start + host.nbytes)
        self._expected[part] = np.frombuffer(host.tobytes(), np.uint8)
        if is_written:
            self._changing.append(part)
        self._free = (part.stop + GUARD_BYTES + 15) // 16 * 16
        assert self._free <= len(self._expected)
        return self._memory[part].view(host.dtype).reshape(host.shape)

    def upload(self):
        self._memory.set(self._expected)

    def check(self):
        """Require that all is as uploaded but what may be written."""
        found = self._memory.get()
        for part in self._changing:
            found[part] = self._expected[part]
        np.testing.assert_array_equal(found, self._expected)


class HostMemory(np.ndarray):
    def set(self, values):
        self[:] = values

    def get(self):
        return np.array(self)


def test_guards_of_gpu_memory():
    """On the host: a byte that was written outside is found."""
    memory = np.empty(4 * GUARD_BYTES, np.uint8).view(HostMemory)
    guarded = Guarded(memory)
    given = guarded.array(np.arange(5), odd=True)
    out = guarded.array(np.zeros((3, 2), np.int32), odd=True, is_written=True)
    guarded.upload()
    assert given.tolist() == [0, 1, 2, 3, 4]
    out[:] = 7
    guarded.check()
    for at in (0, out.ctypes.data - memory.ctypes.data - 1, -1):
        memory[at] ^= 1
        with pytest.raises(AssertionError):
            guarded.check()
        memory[at] ^= 1
    given[4] = 5
    with pytest.raises(AssertionError):
        guarded.check()


def call_guarded(empty, function, given, out, scratch_nbytes=None, odd=False, **options):
    """Call a function of the package with all its arrays between guards; None stays None."""
    arrays = [*given, options.get("spans"), options.get("full"), out]
    nbytes = sum(0 if a is None else a.nbytes for a in arrays) + (scratch_nbytes or 0)
    guarded = Guarded(empty(nbytes + (len(arrays) + 3) * GUARD_BYTES, np.uint8))
    given = [None if a is None else guarded.array(a, odd) for a in given]
    for name in {"spans", "full"} & {*options}:
        options[name] = guarded.array(options[name], odd)
    options["out"] = guarded.array(out, odd, is_written=True)
    if scratch_nbytes is not None:
        options["scratch"] = guarded.array(np.zeros(scratch_nbytes, np.uint8), is_written=True)
    guarded.upload()
    function(*given, **options)
    guarded.check()


def on_the_gpu(count):
    """Yield cupy's empty, a generator, a number of tokens and whether arrays are to be odd."""
    cupy = importlib.import_module("cupy")
    rng = np.random.default_rng(SEED)
    count = PACKS or count
    print(f"MASKQ_SEED={SEED} MASKQ_HOSTILE_PACKS={count}")
    for i in range(count):
        yield cupy.empty, rng, int(rng.choice([40, 3000, 9000])), i % 3 == 2


@pytest.mark.gpu
def test_on_the_gpu():
    for empty, rng, tokens, odd in on_the_gpu(10_000):
        *given, column_num, rule = hostile_pack(rng, tokens)
        mask = given[2]
        scratch_nbytes = None if mask is None else maskq_cupy.scratch_nbytes(len(mask))
        out = np.full((column_num, 2), -77, np.int32)
        call_guarded(empty, maskq_cupy.get_attn_mask_q, given, out, scratch_nbytes, odd, **rule)


@pytest.mark.gpu
def test_trees_on_the_gpu():
    for empty, rng, tokens, odd in on_the_gpu(2000):
        *given, column_num, full = hostile_tree(rng, tokens, compiler.SIZES.few_segments)
        scratch_nbytes = maskq_cupy.tree_scratch_nbytes(len(given[0]))
        out = np.full((column_num, 2), -77, np.int32)
        more = {} if full is None else {"full": full}
        call_guarded(empty, maskq_cupy.tree_attn_mask_q, given, out, scratch_nbytes, odd, **more)


@pytest.mark.gpu
def test_excess_on_the_gpu():
    for empty, rng, tokens, odd in on_the_gpu(2000):
        given = hostile_pack(rng, tokens, intervals=True)[:3]
        scratch_nbytes = maskq_cupy.excess_scratch_nbytes(len(given[2]))
        out = np.full(1, -77, np.int64)
        call_guarded(empty, maskq_cupy.excess_pairs, given, out, scratch_nbytes, odd)


@pytest.mark.gpu
def test_cu_seqlens_on_the_gpu():
    for empty, rng, tokens, odd in on_the_gpu(2000):
        given, room = hostile_tokens(rng, tokens), int(rng.choice([0, 1, 50, 9000]))
        scratch_nbytes = maskq_cupy.cu_seqlens_scratch_nbytes(given.size)
        text_id = int(rng.choice(extremes(given.dtype)))
        for function, array, shape, options in (
            (maskq_cupy.cu_seqlens_from_ids, given, (room + 1,), {}),
            (maskq_cupy.cu_seqlens_from_ids, given.ravel(), (room + 1,), {"padding_id": text_id}),
            (maskq_cupy.cu_seqlens_from_positions, given, (room + 1,), {}),
            (maskq_cupy.spans_from_ids, given, (room, 2), {"text_id": text_id}),
        ):
            function = functools.partial(function, **options)
            most = {"max_span_num" if len(shape) == 2 else "max_sequence_num": room}
            out = np.full(shape, -77, np.int32)
            call_guarded(empty, function, [array], out, scratch_nbytes, odd, **most)


def call_pair_guarded(empty, function, given, entries, odd, scratch_nbytes=0):
    """The same of what returns a pair."""
    nbytes = sum(array.nbytes for array in given) + 8 * entries + scratch_nbytes
    guarded = Guarded(empty(nbytes + (len(given) + 5) * GUARD_BYTES, np.uint8))
    given = [guarded.array(array, odd) for array in given]
    out = np.full(entries, -77, np.int32)
    options = {"out": tuple(guarded.array(out, odd, is_written=True) for _ in range(2))}
    if scratch_nbytes:
        scratch = np.zeros(scratch_nbytes, np.uint8)
        options["scratch"] = guarded.array(scratch, is_written=True)
    guarded.upload()
    function(*given, **options)
    guarded.check()


@pytest.mark.gpu
def test_cu_seqlens_pairs_on_the_gpu():
    for empty, rng, tokens, odd in on_the_gpu(2000):
        mask = hostile_mask(rng, int(rng.choice([tokens, 60_000])))
        nbytes = maskq_cupy.cu_seqlens_scratch_nbytes(mask.size)
        entries = 5 * len(mask) + 1
        function = maskq_cupy.cu_seqlens_from_padding
        call_pair_guarded(empty, function, [mask], entries, odd, nbytes)
        slots = hostile_slots(rng, int(rng.choice([0, 1, 64, 999])))
        entries = 3 * len(slots[0]) - 2
        call_pair_guarded(empty, maskq_cupy.cu_seqlens_from_slots, slots, entries, odd)


@pytest.mark.gpu
def test_columns_on_the_gpu():
    cupy = importlib.import_module("cupy")
    rng = np.random.default_rng(SEED)
    count = PACKS or 2000
    print(f"MASKQ_SEED={SEED} MASKQ_HOSTILE_PACKS={count}")
    for _ in range(count):
        columns, row_num, block_size = hostile_columns(rng, int(rng.choice([40, 1000])))
        tiles = plan.tiles(1, row_num, len(columns), block_size, random_width(rng))
        shapes, scratch_nbytes = plan.block_shapes(tiles), plan.lists_scratch_nbytes(tiles)
        nbytes = sum(4 * math.prod(shape) for shape in shapes) + scratch_nbytes
        nbytes += len(columns) * (8 + 16 + row_num) + 16 * GUARD_BYTES
        guarded = Guarded(cupy.empty(nbytes, np.uint8))
        given = guarded.array(columns)
        lists = [guarded.array(np.zeros(s, np.int32), is_written=True) for s in shapes]
        scratch = guarded.array(np.zeros(scratch_nbytes, np.uint8), is_written=True)
        four = guarded.array(np.zeros((len(columns), 4), np.int32), is_written=True)
        dense = guarded.array(np.zeros((row_num, len(columns)), np.bool_), is_written=True)
        guarded.upload()
        blocks = maskq_cupy.Blocks(*lists)
        maskq_cupy.to_blocks(
            given, row_num, block_size, width=tiles.width, out=blocks, scratch=scratch
        )
        maskq_cupy.to_four_columns(given, row_num, out=four)
        maskq_cupy.to_dense(given, row_num, out=dense)
        guarded.check()
