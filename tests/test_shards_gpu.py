"""Shards on a GPU: values, chunks from anywhere, graphs, bad input, hostile bits, attention."""

import math
import re

import numpy as np
import pytest
from strategies import cuts, random_pack
from test_hostile import call_guarded, on_the_gpu
from test_shards import WORKED, hostile_call, random_calls

import maskq_cupy
from maskq_cupy import compiler, cp, reference

pytestmark = pytest.mark.gpu

MANY = 16 * compiler.SIZES.block_threads  # chunks that a block counts itself


@pytest.mark.parametrize(("columns", "rows", "keys", "lts", "ute"), WORKED)
def test_worked_values(cupy, columns, rows, keys, lts, ute):
    given = cupy.asarray(columns)
    for dtype in (np.int32, np.int64):
        on_gpu = [None if c is None else cupy.asarray(np.array(c, dtype)) for c in (rows, keys)]
        for row_chunks in (rows, on_gpu[0]):
            for key_chunks in (keys, on_gpu[1]):
                local = maskq_cupy.shard_columns(given, row_chunks, key_chunks, key_num=len(lts))
                assert type(local) is cupy.ndarray
                assert local.dtype == np.int32
                np.testing.assert_array_equal(local.get().T, [lts, ute])


def right_shard(call):
    """Return the reference's shard, cut or filled to key_num as chunks on a GPU may ask."""
    right = reference.shard_columns(call["columns"], call["rows"], call["keys"])
    key_num = call["key_num"]
    if key_num is None:
        return right
    q = len(cp.chunk_rows(call["rows"]))
    padded = np.full((*right.shape[:-2], key_num, 2), q, np.int32)
    both = min(key_num, right.shape[-2])
    padded[..., :both, :] = right[..., :both, :]
    return padded


def test_random_shards(cupy):
    rng = np.random.default_rng(0)
    calls = [call for n in (40, 600, 9000) for call in random_calls(rng, 60, n)]
    for call in calls:
        columns, rows, keys = call["columns"], call["rows"], call["keys"]
        right = right_shard(call)
        given = cupy.asarray(columns)
        key_num = right.shape[-2]
        on_gpu = [None if c is None else cupy.asarray(c) for c in (rows, keys)]
        local = maskq_cupy.shard_columns(given, *on_gpu, key_num=key_num)
        np.testing.assert_array_equal(local.get(), right, strict=True)
        out = cupy.full_like(local, -77)
        if columns.ndim == 2:
            out = out[None, None]
        assert maskq_cupy.shard_columns(given, rows, on_gpu[1], out=out) is out
        np.testing.assert_array_equal(out.get().reshape(right.shape), right)
        if call["key_num"] is None:
            local = maskq_cupy.shard_columns(given, on_gpu[0], keys)
            np.testing.assert_array_equal(local.get(), right, strict=True)
        for size in (1, 128, 5000):
            needed = maskq_cupy.needed_keys(local, size)
            np.testing.assert_array_equal(
                needed.get(), reference.needed_keys(local.get(), size), strict=True
            )


def many_chunks(rng, num):
    """Return so many chunks of one or two rows with gaps between them, and all of their rows."""
    lengths = rng.integers(1, 3, num)
    starts = np.cumsum(lengths + rng.integers(0, 3, num)) - lengths
    return np.stack([starts, starts + lengths], axis=1)


@pytest.mark.parametrize(
    "num", [1, 2, 3, 32, 255, 257, 1023, 1025, MANY - 1, MANY, MANY + 1, 20_000]
)
@pytest.mark.parametrize("n", [1000, 70_001, 2**19 + 5])
def test_sizes_of_chunks_and_shards(cupy, num, n):
    """Around the entries of a table, the chunks of a block, the columns of a launch."""
    rng = np.random.default_rng(num)
    rows, keys = many_chunks(rng, num), rng.permutation(many_chunks(rng, num))
    row_num = int(rows[-1, 1]) + 2
    columns = np.sort(rng.integers(0, row_num, (n, 2)).astype(np.int32), axis=0)
    given = cupy.asarray(columns)
    for key_chunks in (None, keys):
        right = reference.shard_columns(columns, rows, key_chunks)
        local = maskq_cupy.shard_columns(given, rows, key_chunks)
        np.testing.assert_array_equal(local.get(), right)


def test_many_slices(cupy):
    rng = np.random.default_rng(1)
    columns = rng.integers(0, 3000, (5, 7, 1001, 2)).astype(np.int32)
    rows, keys = [[3, 900], [950, 2000], [2500, 2600]], [[900, 1003], [0, 500]]
    for key_chunks in (None, keys):
        for row_chunks in (rows[:2], rows):
            local = maskq_cupy.shard_columns(cupy.asarray(columns), row_chunks, key_chunks)
            right = reference.shard_columns(columns, row_chunks, key_chunks)
            np.testing.assert_array_equal(local.get(), right, strict=True)


def test_torch_in_and_out(cupy):
    torch = pytest.importorskip("torch")
    columns = reference.get_attn_mask_q([0, 3000], [0, 3000])
    chunks = cp.cp_chunks([0, 3000], [0, 3000], 2)
    given, keys = torch.as_tensor(columns).cuda(), cp.gathered_keys(chunks)
    right = reference.shard_columns(columns, chunks[1], keys)
    out = torch.empty(right.shape, dtype=torch.int32, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for key_chunks in (keys, torch.as_tensor(keys), torch.as_tensor(keys).cuda()):
            out.fill_(-77)
            assert maskq_cupy.shard_columns(given, chunks[1], key_chunks, out=out) is out
            np.testing.assert_array_equal(out.cpu(), right)
        needed = torch.empty(-(-len(right) // 128), dtype=torch.int32, device="cuda")
        maskq_cupy.needed_keys(out, out=needed)
        np.testing.assert_array_equal(needed.cpu(), reference.needed_keys(right))


@pytest.mark.parametrize("num", [2, 8, MANY + 100])
def test_replays_in_a_graph_with_other_chunks(cupy, num):
    """The numbers of chunks are fixed, the values are not: filled up with empty ones."""
    rng = np.random.default_rng(2)
    maskq_cupy.warm_up()
    n = 3000
    columns = cupy.zeros((n, 2), np.int32)
    rows, keys = cupy.zeros((num, 2), np.int64), cupy.zeros((num, 2), np.int64)
    out, in_order = cupy.empty((n + 50, 2), np.int32), cupy.empty((n, 2), np.int32)
    scratch = cupy.empty(maskq_cupy.shard_scratch_nbytes(num, num), np.uint8)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        maskq_cupy.shard_columns(columns, rows, keys, out=out, scratch=scratch)
        maskq_cupy.shard_columns(columns, rows, out=in_order, scratch=scratch)
        for row_chunks, options, message in [
            ([[0, 3]], {"out": in_order}, "host input is copied"),
            (rows, {}, "the result is allocated: give out="),
            (rows, {"out": in_order, "validate": True}, "validate=True waits for the GPU"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                maskq_cupy.shard_columns(columns, row_chunks, **options)
        graph = stream.end_capture()
        for _ in range(20):
            host = rng.integers(0, 2 * n, (n, 2)).astype(np.int32)
            used = int(rng.integers(0, min(num, 400) + 1))
            some = many_chunks(rng, used).reshape(-1, 2)
            last = int(some.max(initial=0))
            filled = np.concatenate([some, np.full((num - used, 2), last)])
            of_keys = np.concatenate([rng.permutation(some) % n, np.full((num - used, 2), 7)])
            of_keys = np.sort(of_keys, axis=1)
            columns.set(host)
            rows.set(filled)
            keys.set(of_keys)
            graph.launch()
            call = {"columns": host, "rows": filled, "keys": of_keys, "key_num": n + 50}
            np.testing.assert_array_equal(out.get(), right_shard(call))
            np.testing.assert_array_equal(in_order.get(), reference.shard_columns(host, filled))


# Bad input


ONE_PLACE = "the input must be all on one GPU or all on the host, got"
FORM = "must be int32 or int64 of shape"


def cases(cupy):
    """Return the arguments of bad calls, of eight columns, the error, the whole message."""
    memory = cupy.zeros(400, np.int32)
    columns, out = memory[:16].reshape(8, 2), memory[32:48].reshape(8, 2)

    def on_gpu(values):
        return cupy.asarray(values, np.int64)

    return [
        ({"columns": columns.get()}, TypeError,
         "columns must be an array on a GPU, got ndarray on the host: maskq_cupy.reference has "
         "this function for those"),
        ({"columns": columns.get(), "row_chunks": on_gpu([[0, 2]])}, TypeError,
         f"{ONE_PLACE} columns on the host, row_chunks on a GPU"),
        ({"columns": columns.reshape(1, 8, 2)}, ValueError,
         "columns must be int32 of shape (N, 2) or (b, h, N, 2), got int32 of shape (1, 8, 2)"),
        ({"row_chunks": cupy.zeros(4, np.float32)}, TypeError,
         f"row_chunks {FORM} (C, 2), got float32 of shape (4,)"),
        ({"row_chunks": cupy.zeros((4, 2), int)[::2]}, ValueError,
         "row_chunks must be C-contiguous, got a strided view of shape (2, 2)"),
        ({"row_chunks": [[0, 1], [5, 3]]}, ValueError,
         "row_chunks must hold [start, end) with 0 <= start <= end, got row_chunks[1] = [5, 3]"),
        ({"key_chunks": on_gpu([[0, 8]])}, ValueError,
         "key_num or out= must be given where key_chunks are on a GPU"),
        ({"out": memory[32:46].reshape(7, 2)}, ValueError,
         "out must have M = 8 columns, got shape (7, 2)"),
        ({"key_chunks": [[0, 7]], "out": out}, ValueError,
         "out must have M = 7 columns, got shape (8, 2)"),
        ({"key_chunks": [[0, 7]], "key_num": 8}, ValueError, "key_num must be M = 7, got 8"),
        ({"out": out.reshape(2, 1, 4, 2)}, ValueError,
         "out must have M = 8 columns, got shape (2, 1, 4, 2)"),
        ({"out": memory[32:64].reshape(2, 1, 8, 2)}, ValueError,
         "out must be int32 of shape (8, 2) or (1, 1, 8, 2), got int32 of shape (2, 1, 8, 2)"),
        ({"columns": columns, "out": memory[8:24].reshape(8, 2)}, ValueError,
         "out must not overlap the other arrays, got 0x.. to 0x.. over 0x.. to 0x.."),
        ({"out": memory[33:49].reshape(8, 2)}, ValueError,
         "out must be 8-byte aligned, got address 0x.."),
        ({"row_chunks": on_gpu([[0, 1], [3, 5], [4, 6]]), "validate": True}, ValueError,
         "row_chunks must ascend without overlap, got row_chunks[2] = [4, 6] after row_chunks[1] "
         "= [3, 5]: the order of a rank's rows is free, sort them"),
        ({"row_chunks": on_gpu([[0, 2147483650]]), "validate": True}, ValueError,
         "row_chunks must hold at most 2**31 - 1 rows, got 2147483650"),
        ({"key_chunks": on_gpu([[0, 7]]), "key_num": 8, "validate": True}, ValueError,
         "key_chunks must hold M = 8 keys, got 7"),
        ({"key_chunks": on_gpu([[3, 2]]), "key_num": 8, "validate": True}, ValueError,
         "key_chunks must hold [start, end) with start <= end, got key_chunks[0] = [3, 2]"),
    ]  # fmt: skip


def test_bad_input(cupy):
    columns = cupy.zeros((8, 2), np.int32)
    for change, kind, message in cases(cupy):
        arguments = {"columns": columns, "row_chunks": [[0, 2]]} | change
        with pytest.raises(kind) as raised:
            maskq_cupy.shard_columns(**arguments)
        assert re.sub("0x[0-9a-f]+", "0x..", str(raised.value)) == message
    with pytest.raises(ValueError, match=r"out must be int32 of shape \(2,\) or \(1, 1, 2\)"):
        maskq_cupy.needed_keys(columns, 4, out=cupy.zeros(3, np.int32))


def test_good_values_pass_validation(cupy):
    rows, keys = cupy.asarray([[0, 2], [2, 2], [5, 6]]), cupy.asarray([[5, 9], [-3, 0]])
    columns = reference.get_attn_mask_q([0, 8], [0, 8])
    local = maskq_cupy.shard_columns(cupy.asarray(columns), rows, keys, key_num=7, validate=True)
    right = reference.shard_columns(columns, rows.get(), keys.get())
    np.testing.assert_array_equal(local.get(), right)


# Any bits


def test_hostile_bits():
    for empty, rng, tokens, _ in on_the_gpu(2000):
        call = hostile_call(rng, tokens)
        columns, rows, keys = call["columns"], call["rows"].astype(call["dtype"]), call["keys"]
        key_num = len(columns) if keys is None else max(call["key_num"], 1)
        chunk_nums = len(rows), 0 if keys is None else len(keys)
        scratch_nbytes = maskq_cupy.shard_scratch_nbytes(*chunk_nums)
        out = np.full((key_num, 2), -77, np.int32)
        call_guarded(empty, maskq_cupy.shard_columns, [columns, rows, keys], out, scratch_nbytes)
        needed = np.full(math.ceil(len(columns) / 100), -77, np.int32)
        call_guarded(
            empty, lambda columns, **given: maskq_cupy.needed_keys(columns, 100, **given),
            [columns], needed,
        )  # fmt: skip


# Attention


@pytest.fixture(scope="module")
def attend():
    torch = pytest.importorskip("torch")
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


RULES = {
    "causal": {},
    "window": {"window": (700, 0), "num_sink_tokens": 4},
    "full": {"causal": False},
}


@pytest.mark.parametrize("rule", RULES)
def test_four_ranks_in_turn(attend, rule):
    """Outputs put together and gradients summed are those of the whole pack.

    Chunks are whole tiles: a rank that has all keys in their order adds up what the whole pack
    does, in the same order, and its output has the same bits.
    """
    torch = pytest.importorskip("torch")
    flex = pytest.importorskip("maskq_cupy.flex")
    world, tokens = 4, 4096
    cu = cuts([1500, 20, 0, 1300, 1276])
    on_gpu = torch.as_tensor(cu).cuda()
    columns = torch.empty((tokens, 2), dtype=torch.int32, device="cuda")
    maskq_cupy.get_attn_mask_q(on_gpu, on_gpu, out=columns, **RULES[rule])
    torch.manual_seed(0)
    *inputs, upstream = torch.randn(4, 1, 4, tokens, 64, device="cuda").unbind()
    inputs = [x.requires_grad_() for x in inputs]
    whole = attend(*inputs, block_mask=flex.block_mask(columns, tokens))
    wanted = torch.autograd.grad(whole, inputs, upstream)
    q, k, v = inputs
    chunks = cp.cp_chunks(cu, cu, world, **RULES[rule])
    gathered = cp.gathered_keys(chunks)
    order = torch.as_tensor(cp.chunk_rows(chunks)).cuda()
    for key_chunks, keys in ((None, slice(None)), (gathered, order)):
        out = torch.empty_like(whole)
        gradients = [torch.zeros_like(x) for x in inputs]
        for some in chunks:
            rows = torch.as_tensor(cp.chunk_rows(some)).cuda()
            local = torch.empty((tokens, 2), dtype=torch.int32, device="cuda")
            maskq_cupy.shard_columns(columns, some, key_chunks, out=local)
            mask = flex.block_mask(local, len(rows))
            part = attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], block_mask=mask)
            out[:, :, rows] = part.detach()
            found = torch.autograd.grad(part, inputs, upstream[:, :, rows])
            for total, gradient in zip(gradients, found, strict=True):
                total += gradient
        if key_chunks is None:
            assert torch.equal(out, whole.detach())
        # A sum in another order, in float32.
        torch.testing.assert_close(out, whole.detach(), rtol=0, atol=1e-3)
        for total, gradient in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(total, gradient, rtol=0, atol=5e-3)


def test_ranks_add_up(cupy):
    rng = np.random.default_rng(3)
    for _ in range(20):
        pack = random_pack(rng, 3000)
        columns = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        cu_q = pack.cu_seqlens_q[: len(pack.cu_seqlens_k)]
        total = 0
        for some in cp.cp_chunks(cu_q, pack.cu_seqlens_k, 3, "per_sequence"):
            total = total + maskq_cupy.shard_columns(cupy.asarray(columns), some).get()
        np.testing.assert_array_equal(total, columns)
