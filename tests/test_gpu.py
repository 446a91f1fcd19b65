"""The operator on a GPU: equality with the reference, frameworks, streams, graphs, forms of out."""

import numpy as np
import pytest
from strategies import Pack, cuts, random_pack

import maskq_cupy
from maskq_cupy import compiler, reference

pytestmark = pytest.mark.gpu


def check(cupy, pack):
    given = pack.on_gpu(cupy)
    result = maskq_cupy.get_attn_mask_q(*given.arguments(), **given.rule)
    assert type(result) is cupy.ndarray
    assert result.dtype == np.int32
    assert result.flags.c_contiguous
    expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
    np.testing.assert_array_equal(cupy.asnumpy(result), expected, err_msg=repr(pack))


@pytest.mark.parametrize("seed", range(10))
def test_random_packs(cupy, seed):
    rng = np.random.default_rng(seed)
    for _ in range(220):
        check(cupy, random_pack(rng, tokens=int(rng.choice([50, 600, 5000, 40000]))))


@pytest.mark.parametrize("sizes", [{"few_strips": 0}, {"few_strips": 0, "many_strips": 0}])
def test_intervals_as_if_of_more_rows(cupy, monkeypatch, sizes):
    """By the kernels of packs larger than these."""
    monkeypatch.setattr(compiler, "SIZES", compiler.SIZES._replace(**sizes))
    rng = np.random.default_rng(20)
    for _ in range(300):
        tokens = int(rng.choice([50, 600, 5000, 40000]))
        check(cupy, random_pack(rng, tokens=tokens, intervals=True))


@pytest.mark.parametrize("batch", [1, 31, 32, 33, 255, 256, 257, 4096, 65_536, 65_537, 100_000])
@pytest.mark.parametrize("mean", [1, 7, 300])
def test_batches(cupy, batch, mean):
    rng = np.random.default_rng(batch)
    k_lens = rng.integers(0, 2 * mean + 1, min(batch, 10_000_000 // mean))
    q_lens = np.where(rng.random(len(k_lens)) < 0.5, np.minimum(k_lens, 1), k_lens)
    q, k = cuts(q_lens), cuts(k_lens)
    ends = np.repeat(k_lens - q_lens, q_lens) + np.arange(q[-1]) - np.repeat(q[:-1], q_lens) + 1
    mask = np.stack([np.maximum(ends - 40, 0), ends], axis=1).astype(np.int32)
    check(cupy, Pack(q, k, None, int(k[-1]), {}))
    check(cupy, Pack(q, k, None, int(k[-1]) + 5, {"window": (40, 0), "num_sink_tokens": 2}))
    check(cupy, Pack(q, k, mask, int(k[-1]) + 5, {}))


@pytest.mark.parametrize("tokens", [2**20 - 1, 2**20 + 1, 2**24 + 3])
def test_giants(cupy, tokens):
    lens = cuts([tokens])
    rng = np.random.default_rng(tokens)
    ends = np.arange(tokens) + 1
    ends[rng.random(tokens) < 0.01] = 7
    starts = np.maximum(ends - 100, 0)
    starts[rng.random(tokens) < 0.0001] = 3
    for mask in (None, np.stack([starts, ends], axis=1)):
        check(cupy, Pack(lens, lens, mask, tokens, {}))


def test_rows_far_from_columns(cupy):
    """A block's columns spread over many row tiles, which it searches rather than reads."""
    rows, keys = 3_000_000, 5000
    ends = np.sort(np.random.default_rng(3).integers(0, keys + 1, rows))
    mask = np.stack([np.maximum(ends - 9, 0), ends], axis=1).astype(np.int32)
    check(cupy, Pack(cuts([rows]), cuts([keys]), mask, keys, {}))


def test_largest(cupy):
    """2**27 columns, against what causal attention of equal documents must be."""
    n, document = 2**27, 2**20
    cu = cupy.asarray(cuts(np.full(n // document, document)))
    pairs = cupy.empty((n, 2), np.int32)
    by_rule = maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=n)
    for begin in range(0, n, document):
        rows = np.arange(document, dtype=np.int32)
        expected = np.stack([np.full(document, begin + document), begin + rows], axis=1)
        np.testing.assert_array_equal(cupy.asnumpy(by_rule[begin : begin + document]), expected)
        pairs[begin : begin + document].set(
            np.stack([np.zeros(document), rows + 1], axis=1).astype(np.int32)
        )
    by_intervals = maskq_cupy.get_attn_mask_q(cu, cu, pairs, n)
    for begin in range(0, n, document):
        part = slice(begin, begin + document)
        np.testing.assert_array_equal(cupy.asnumpy(by_intervals[part]), cupy.asnumpy(by_rule[part]))


# Frameworks


def to_torch(array):
    return pytest.importorskip("torch").from_numpy(array).cuda()


def to_jax(array):
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return jax.device_put(array, jax.devices("gpu")[0])


def to_numba(array):
    return pytest.importorskip("numba.cuda").to_device(array)


def to_paddle(array):
    paddle = pytest.importorskip("paddle")
    if not paddle.device.is_compiled_with_cuda():
        pytest.skip("paddle is built without CUDA")
    return paddle.to_tensor(array, place=paddle.CUDAPlace(0))


@pytest.mark.parametrize("dtypes", [("i4", "i4", "i4"), ("i8", "i4", "i8"), ("i4", "i8", "i4")])
@pytest.mark.parametrize("to_framework", [to_torch, to_jax, to_numba, to_paddle])
def test_frameworks_in(cupy, to_framework, dtypes):
    rng = np.random.default_rng(5)
    for _ in range(20):
        pack = random_pack(rng, intervals=True)
        given = [to_framework(a.astype(t)) for a, t in zip(pack[:3], dtypes, strict=True)]
        result = maskq_cupy.get_attn_mask_q(*given, pack.kv_token_num)
        host = [a.astype(t) for a, t in zip(pack[:3], dtypes, strict=True)]
        expected = reference.get_attn_mask_q(*host, pack.kv_token_num)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


def test_host_input(cupy):
    rng = np.random.default_rng(6)
    for _ in range(50):
        pack = random_pack(rng)
        result = maskq_cupy.get_attn_mask_q(*pack.arguments(), **pack.rule)
        expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    assert maskq_cupy.get_attn_mask_q([0, 3, 5], [0, 3, 7]).shape == (7, 2)


def test_reads_back_the_number_of_columns(cupy):
    for dtype in (np.int32, np.int64):
        cu = cupy.asarray([0, 3, 7], dtype)
        assert maskq_cupy.get_attn_mask_q(cu, cu).shape == (7, 2)


def test_frameworks_out(cupy):
    columns = maskq_cupy.get_attn_mask_q([0, 3, 5], [0, 3, 7])
    expected = cupy.asnumpy(columns)
    torch = pytest.importorskip("torch")
    tensor = torch.from_dlpack(columns)
    assert tensor.data_ptr() == columns.data.ptr
    np.testing.assert_array_equal(tensor.cpu(), expected)
    jax = pytest.importorskip("jax")
    np.testing.assert_array_equal(np.asarray(jax.dlpack.from_dlpack(columns)), expected)


# out, scratch


def outs(cupy, n):
    yield cupy.full((n, 2), -7, np.int32)
    yield cupy.full((1, 1, n, 2), -7, np.int32)
    yield cupy.full((n + 1, 2), -7, np.int32)[1:]  # 8-byte aligned
    torch = pytest.importorskip("torch")
    yield torch.full((n, 2), -7, dtype=torch.int32, device="cuda")
    yield torch.full((1, 1, n, 2), -7, dtype=torch.int32, device="cuda")
    yield pytest.importorskip("numba.cuda").to_device(np.full((n, 2), -7, np.int32))


@pytest.mark.parametrize("n", [1, 6, 7, 1024, 4097])
def test_out(cupy, n):
    cu = cupy.asarray([0, n // 2, n], np.int32)
    pairs = np.stack([np.zeros(n), np.arange(n) + 1], axis=1).astype(np.int32)
    for mask in (None, pairs):
        expected = reference.get_attn_mask_q([0, n // 2, n], [0, n // 2, n], mask)
        device_mask = None if mask is None else cupy.asarray(mask)
        for out in outs(cupy, n):
            assert maskq_cupy.get_attn_mask_q(cu, cu, device_mask, out=out) is out
            got = np.asarray(out.get() if hasattr(out, "get") else cupy.asnumpy(cupy.asarray(out)))
            np.testing.assert_array_equal(got.reshape(n, 2), expected)


def test_scratch(cupy):
    rows = 9000  # so many that a call needs scratch memory
    mask = np.stack([np.zeros(rows), np.arange(rows) + 1], axis=1).astype(np.int32)
    cu, device_mask = cupy.asarray([0, rows], np.int32), cupy.asarray(mask)
    scratch = cupy.empty(maskq_cupy.scratch_nbytes(rows), np.uint8)
    result = maskq_cupy.get_attn_mask_q(cu, cu, device_mask, rows, scratch=scratch)
    expected = reference.get_attn_mask_q([0, rows], [0, rows], mask)
    np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    with pytest.raises(ValueError, match=r"scratch must .* of at least \d+ bytes"):
        maskq_cupy.get_attn_mask_q(cu, cu, device_mask, rows, scratch=scratch[:-16])


# Streams, graphs, devices


def test_side_stream(cupy):
    """Results are right on a side stream, on the current one after it, and through DLPack."""
    pack = random_pack(np.random.default_rng(9), tokens=40000, intervals=True)
    expected = reference.get_attn_mask_q(*pack.arguments())
    arrays = pack.on_gpu(cupy)[:3]
    side = cupy.cuda.Stream(non_blocking=True)
    for stream in (side, side.ptr):
        result = maskq_cupy.get_attn_mask_q(*arrays, pack.kv_token_num, stream=stream)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    with side:
        result = maskq_cupy.get_attn_mask_q(*arrays, pack.kv_token_num)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


def test_waits_for_torch(cupy):
    """Input that torch is still writing on a stream of its own is waited for."""
    torch = pytest.importorskip("torch")
    side = torch.cuda.Stream()
    n = 4096
    right = torch.tensor([0, n // 2, n], dtype=torch.int32, device="cuda")
    expected = reference.get_attn_mask_q([0, n // 2, n], [0, n // 2, n])
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(side):
            cu = torch.zeros(3, dtype=torch.int32, device="cuda")
            torch.cuda._sleep(20_000_000)
            cu.copy_(right)
            result = maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=n)
            cu.zero_()  # waits for the launch in turn
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


@pytest.mark.parametrize("intervals", [False, True])
def test_graph(cupy, intervals):
    """A captured call replays with inputs changed in place."""
    rng = np.random.default_rng(11)
    n, batch = 9000, 40
    k = cupy.zeros(batch + 1, np.int32)
    q = cupy.zeros(batch + 1, np.int32)
    mask = cupy.zeros((n, 2), np.int32) if intervals else None
    out = cupy.empty((n, 2), np.int32)
    scratch = cupy.empty(maskq_cupy.scratch_nbytes(n), np.uint8)
    maskq_cupy.get_attn_mask_q(q, k, mask, out=out, scratch=scratch)  # compiles
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        maskq_cupy.get_attn_mask_q(q, k, mask, out=out, scratch=scratch)
        graph = stream.end_capture()
    for _ in range(200):
        lens = rng.multinomial(n - 10, np.ones(batch) / batch)
        host_q, host_k = cuts(lens), cuts(rng.permutation(lens))
        host_mask = rng.integers(-1, 200, (n, 2)).astype(np.int32) if intervals else None
        with stream:
            q.set(host_q)
            k.set(host_k)
            if intervals:
                mask.set(host_mask)
            out.fill(-1)
            graph.launch()
            got = cupy.asnumpy(out)
        expected = reference.get_attn_mask_q(host_q, host_k, host_mask, n)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("the result is allocated: give out=", {"out": None}),
        ("scratch memory is allocated: give scratch= of", {"scratch": None}),
        ("kv_token_num is read back: give it, or out=", {"out": None, "kv_token_num": None}),
        ("validate=True waits", {"validate": True}),
        ("host input is copied", {"cu_seqlens_q": [0, 9000], "cu_seqlens_k": [0, 9000]}),
    ],
)
def test_capture_refuses(cupy, message, change):
    n = 9000
    cu, mask = cupy.asarray([0, n], np.int32), cupy.zeros((n, 2), np.int32)
    arguments = {
        "cu_seqlens_q": cu,
        "cu_seqlens_k": cu,
        "attn_mask_kv": np.zeros((n, 2), np.int32) if "cu_seqlens_q" in change else mask,
        "kv_token_num": n,
        "out": cupy.empty((n, 2), np.int32),
        "scratch": cupy.empty(maskq_cupy.scratch_nbytes(n), np.uint8),
    }
    maskq_cupy.get_attn_mask_q(cu, cu, mask, n)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=message):
            maskq_cupy.get_attn_mask_q(**arguments | change)
        stream.end_capture()
    result = maskq_cupy.get_attn_mask_q(cu, cu, mask, n)
    assert (cupy.asnumpy(result) == n).all()


def test_out_of_jax_is_refused(cupy):
    """JAX takes its arrays for constants."""
    out = to_jax(np.zeros((3, 2), np.int32))
    q = cupy.asarray([0, 3], np.int32)
    with pytest.raises(ValueError, match=r"^out must be writable, got a read-only "):
        maskq_cupy.get_attn_mask_q(q, q, out=out)


def test_every_function_on_another_device(cupy, second):
    """The current device is not the data's, and stays current."""
    q, mask, parent = np.array([0, 2, 5]), np.array([[0, 1], [0, 2]] * 2 + [[1, 3]]), [-1, 0]
    columns = reference.get_attn_mask_q(q, q, mask)
    with second:
        on_second = [cupy.asarray(array) for array in (q, mask, parent, columns)]
    q_there, mask_there, parent_there, columns_there = on_second
    blocks = maskq_cupy.to_blocks(columns_there, 5, 2)
    for result, expected in (
        (maskq_cupy.get_attn_mask_q(q_there, q_there, mask_there), columns),
        (maskq_cupy.tree_attn_mask_q(parent_there, q_there, q_there),
         reference.tree_attn_mask_q(parent, q, q)),
        (maskq_cupy.excess_pairs(q_there, q_there, mask_there),
         reference.excess_pairs(q, q, mask)),
        (maskq_cupy.to_four_columns(columns_there, 5), reference.to_four_columns(columns, 5)),
        (maskq_cupy.to_dense(columns_there, 5), reference.to_dense(columns, 5)),
        *zip(blocks, reference.to_blocks(columns, 5, 2), strict=True),
    ):  # fmt: skip
        assert result.device == second
        assert cupy.cuda.runtime.getDevice() == 0
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


def test_random_packs_on_another_device(cupy, second):
    rng = np.random.default_rng(12)
    for _ in range(20):
        pack = random_pack(rng)
        with second:
            given = pack.on_gpu(cupy)
        result = maskq_cupy.get_attn_mask_q(*given.arguments(), **given.rule)
        assert result.device.id == 1
        expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


# Values on the GPU


@pytest.mark.parametrize(
    ("message", "q", "k", "n"),
    [
        (r"cu_seqlens_q must start at 0, got cu_seqlens_q\[0\] = 1", [1, 3], [0, 3], 3),
        (r"cu_seqlens_k\[2\] = 2 after cu_seqlens_k\[1\] = 3", [0, 3, 3], [0, 3, 2], 3),
        (r"kv_token_num must be at least cu_seqlens_k\[B\], got 2 below 3", [0, 3], [0, 3], 2),
        (
            r"attn_mask_kv must have at least cu_seqlens_q\[B\] rows, got 3 below 4",
            [0, 4],
            [0, 3],
            3,
        ),
    ],
)
def test_validate(cupy, message, q, k, n):
    q, k = cupy.asarray(q, np.int32), cupy.asarray(k, np.int64)
    mask = cupy.zeros((3, 2), np.int32)
    maskq_cupy.get_attn_mask_q(q, k, mask, n)  # garbage at worst
    with pytest.raises(ValueError, match=message):
        maskq_cupy.get_attn_mask_q(q, k, mask, n, validate=True)
