"""align=, causal_block=, chunk_size= and spans=: worked values, pairs of the definition, GPU."""

import numpy as np
import oracle
import pytest
from strategies import Pack, cuts, random_lengths, random_modifiers, random_rule

import maskq_cupy
from maskq_cupy import reference

WORKED = [
    ([7], [7], {"chunk_size": 4}, [4, 4, 4, 4, 7, 7, 7], [0, 1, 2, 3, 4, 5, 6]),
    ([3], [6], {"chunk_size": 4}, [1, 1, 1, 1, 3, 3], [0, 0, 0, 0, 1, 2]),
    ([7], [7], {"chunk_size": 4, "num_sink_tokens": 1}, [7, 4, 4, 4, 7, 7, 7], [*range(7)]),
    ([6], [6], {"chunk_size": 4, "causal": False}, [4, 4, 4, 4, 6, 6], [0, 0, 0, 0, 4, 4]),
    ([5, 3], [5, 3], {"causal_block": 2}, [5, 5, 5, 5, 5, 8, 8, 8], [0, 0, 2, 2, 4, 5, 5, 7]),
    ([7], [7], {"spans": [[2, 5]]}, [7] * 7, [0, 1, 2, 2, 2, 5, 6]),
    ([4], [6], {"align": "top_left"}, [4] * 6, [0, 1, 2, 3, 4, 4]),
    ([7], [7], {"spans": [[2, 5]], "window": (1, 0)}, [2, 3, 5, 5, 6, 7, 7], [0, 1, 2, 2, 2, 5, 6]),
    ([4, 3], [4, 3], {"spans": [[0, 2], [4, 7]]}, [4, 4, 4, 4, 7, 7, 7], [0, 0, 2, 3, 4, 4, 4]),
    # More rows than keys: those in front of the keys see nothing, or what their own chunk shows.
    ([5], [2], {"chunk_size": 2}, [5, 5], [3, 4]),
    ([5], [2], {"chunk_size": 2, "causal": False}, [5, 5], [3, 3]),
    ([5], [2], {"causal_block": 2}, [5, 5], [3, 3]),
    ([2], [4], {"spans": [[1, 4]]}, [2] * 4, [0, 0, 0, 0]),
    # A span over the border counts in each sequence with its part there; one over padding, too.
    ([2, 2], [2, 2], {"spans": [[1, 3]]}, [2, 2, 4, 4], [0, 1, 2, 3]),
    ([3, 3], [3, 3], {"spans": [[1, 5]]}, [3, 3, 3, 6, 6, 6], [0, 1, 1, 3, 3, 5]),
]


@pytest.mark.parametrize(("q_lens", "k_lens", "rule", "lts", "ute"), WORKED)
def test_worked_values(q_lens, k_lens, rule, lts, ute):
    columns = reference.get_attn_mask_q(cuts(q_lens), cuts(k_lens), **rule)
    np.testing.assert_array_equal(columns.T, [lts, ute])
    seen = oracle.visible(q_lens, k_lens, **rule)
    np.testing.assert_array_equal(oracle.shown(columns, sum(q_lens)), seen)


def pairs_of(lens, causal, window=(-1, -1), causal_block=1, chunk_size=10**9, sinks=0, spans=()):
    """Return the boolean (N, N) as the models' own functions of pairs say it, where Q = N.

    A window bounds q - k, blocks and chunks compare q // size with k // size, and an image is an id
    that the query and the key share.
    """
    n, document = sum(lens), np.repeat(np.arange(len(lens)), lens)
    position = np.concatenate([np.arange(length) for length in lens]).astype(int)
    image = np.full(n, -1)
    for number, (start, end) in enumerate(spans):
        image[start:end] = number
    q, k = position[:, None], position
    left, right = window
    in_front = k // causal_block <= q // causal_block
    shown = in_front if causal else (k - q <= right) | (right == -1)
    shown &= k // chunk_size <= q // chunk_size
    near = ((q - k <= left) | (left == -1)) & (k // chunk_size >= q // chunk_size)
    one_image = (image[:, None] == image) & (image != -1)
    return (shown & (near | (k < sinks)) | one_image) & (document[:, None] == document)


def test_pairs_are_as_the_models_say():
    rng = np.random.default_rng(0)
    for _ in range(600):
        lens = rng.integers(0, 12, rng.integers(1, 5)).tolist()
        n, causal, rule = sum(lens), bool(rng.random() < 0.7), {}
        if rng.random() < 0.5:
            rule["window"] = (int(rng.integers(-1, 9)), 0 if causal else int(rng.integers(-1, 9)))
        if causal and rng.random() < 0.4:
            rule["causal_block"] = int(rng.integers(1, 7))
        if rng.random() < 0.4:
            rule["chunk_size"] = int(rng.integers(1, 9))
        if rng.random() < 0.5:
            borders = rng.integers(0, n + 1, 2 * int(rng.integers(0, 6)))
            rule["spans"] = np.sort(borders).reshape(-1, 2)
        sinks = int(rng.integers(0, 4)) if {"window", "chunk_size"} & {*rule} else 0
        expected = pairs_of(lens, causal, sinks=sinks, **rule)
        cu = cuts(lens)
        columns = reference.get_attn_mask_q(cu, cu, causal=causal, num_sink_tokens=sinks, **rule)
        np.testing.assert_array_equal(
            oracle.shown(columns, n), expected, err_msg=f"{lens} {causal} {sinks} {rule}"
        )


def test_no_spans_and_filling_change_nothing():
    rng = np.random.default_rng(1)
    for _ in range(100):
        q_lens, k_lens = random_lengths(rng, 40)
        q, k = cuts(q_lens), cuts(k_lens)
        rule = random_rule(rng, k, int(k[-1]))
        spans = np.asarray(rule.pop("spans", np.zeros((0, 2), int)))
        last = spans[-1:, 1:].max(initial=0)
        filled = np.concatenate([spans, np.full((5, 2), last)])
        expected = reference.get_attn_mask_q(q, k, spans=spans, **rule)
        np.testing.assert_array_equal(
            reference.get_attn_mask_q(q, k, spans=filled, **rule), expected
        )
        without = reference.get_attn_mask_q(q, k, **rule)
        for none in ([], np.zeros((0, 2), np.int32), [[0, 0]], np.full((7, 2), k[-1])):
            found = reference.get_attn_mask_q(q, k, spans=none, **rule)
            np.testing.assert_array_equal(found, without)


def test_spans_from_ids_are_spans():
    """Filled up as they come; ids of images, -1 for text, over two sequences."""
    ids = [-1, 4, 4, 4, -1, 5, 5, -1, 6]
    spans = reference.spans_from_ids(ids, 6)
    columns = reference.get_attn_mask_q([0, 6, 9], [0, 6, 9], spans=spans)
    expected = oracle.visible([6, 3], [6, 3], spans=[(1, 4), (5, 7), (8, 9)])
    np.testing.assert_array_equal(oracle.shown(columns, 9), expected)


@pytest.mark.parametrize("wide", [2**31 - 1, 2**31, 2**62])
def test_wide_sizes_do_not_overflow(wide):
    q, k = [0, 5, 6], [0, 8, 9]
    for causal in (True, False):
        plain = reference.get_attn_mask_q(q, k, causal=causal)
        found = reference.get_attn_mask_q(q, k, causal=causal, chunk_size=wide)
        np.testing.assert_array_equal(found, plain)
    full = reference.get_attn_mask_q(q, k, causal=False)
    np.testing.assert_array_equal(reference.get_attn_mask_q(q, k, causal_block=wide), full)


# GPU


def check_gpu(cupy, pack, **more):
    given = pack.on_gpu(cupy)
    result = maskq_cupy.get_attn_mask_q(*given.arguments(), **given.rule, **more)
    expected = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
    np.testing.assert_array_equal(cupy.asnumpy(result), expected, err_msg=repr(pack))


def modified_pack(rng, tokens):
    q_lens, k_lens = random_lengths(rng, int(rng.integers(1, tokens + 1)))
    q, k = cuts(q_lens), cuts(k_lens, rng.choice([np.int32, np.int64]))
    n = int(k[-1]) + int(rng.choice([0, 0, 1, 300]))
    rule = random_rule(rng, k, n)
    return Pack(q, k, None, n, rule | random_modifiers(rng, rule, k, n))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(5))
def test_gpu_random_packs(cupy, seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        tokens = int(rng.choice([50, 600, 5000, 40_000]))
        check_gpu(cupy, modified_pack(rng, tokens), validate=bool(rng.random() < 0.2))


@pytest.mark.gpu
@pytest.mark.parametrize("num", [1, 31, 32, 33, 255, 256, 257, 4096, 65_537, 300_000])
def test_gpu_many_spans(cupy, num):
    rng = np.random.default_rng(num)
    cut = np.cumsum(rng.integers(0, 20, 2 * num))
    n = int(cut[-1]) + 7
    lens = rng.multinomial(n, np.full(99, 1 / 99))
    for dtype in (np.int32, np.int64):
        spans = cut.reshape(-1, 2).astype(dtype)
        for rule in ({}, {"window": (9, 0)}, {"chunk_size": 100, "num_sink_tokens": 2}):
            for pack_lens in ([n], lens):
                q = cuts(pack_lens)
                check_gpu(cupy, Pack(q, q, None, n, rule | {"spans": spans}))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [2**20 - 1, 2**20 + 1, 2**24 + 3])
def test_gpu_giants(cupy, tokens):
    """Of several pairs of columns a thread."""
    whole, parts = cuts([tokens]), cuts([tokens // 3, 0, tokens - tokens // 3])
    few = np.array([[5, tokens // 2]])
    many = np.arange(tokens // 1000 * 2).reshape(-1, 2) * 500 + 3
    for q in (whole, parts):
        for rule in (
            {"chunk_size": 8192}, {"causal_block": 32}, {"align": "top_left", "window": (7, 0)},
            {"spans": few}, {"spans": many, "window": (1000, 0)},
            {"chunk_size": 3, "causal": False},
        ):  # fmt: skip
            check_gpu(cupy, Pack(q, q, None, tokens, rule))


@pytest.mark.gpu
def test_gpu_frameworks(cupy):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(20)
    for i in range(40):
        spans = modified_pack(rng, 600).rule.get("spans", np.zeros((0, 2), np.int32))
        n = int(spans.max(initial=0)) + 5
        cu = torch.tensor([0, n // 2, n], dtype=torch.int32, device="cuda")
        expected = reference.get_attn_mask_q([0, n // 2, n], [0, n // 2, n], spans=spans)
        on_gpu = torch.from_numpy(spans).cuda()
        found = maskq_cupy.get_attn_mask_q(cu, cu, kv_token_num=n, spans=on_gpu)
        np.testing.assert_array_equal(cupy.asnumpy(found), expected)
        host = maskq_cupy.get_attn_mask_q(
            *2 * ([0, n // 2, n],), spans=spans if i % 2 else [*spans]
        )
        np.testing.assert_array_equal(cupy.asnumpy(host), expected)


@pytest.mark.gpu
def test_gpu_no_spans(cupy):
    cu = cupy.asarray([0, 3, 7])
    expected = reference.get_attn_mask_q([0, 3, 7], [0, 3, 7])
    for spans in (cupy.zeros((0, 2), np.int32), cupy.zeros((4, 2), np.int64)):
        found = maskq_cupy.get_attn_mask_q(cu, cu, spans=spans, validate=True)
        np.testing.assert_array_equal(cupy.asnumpy(found), expected)
    found = maskq_cupy.get_attn_mask_q([0, 3, 7], [0, 3, 7], spans=[])
    np.testing.assert_array_equal(cupy.asnumpy(found), expected)


@pytest.mark.gpu
def test_gpu_graph(cupy):
    """A captured call replays with lengths and spans changed in place, the rest filled up."""
    rng = np.random.default_rng(21)
    n, batch, room = 3000, 20, 64
    cu, spans = cupy.zeros(batch + 1, np.int32), cupy.zeros((room, 2), np.int32)
    out = cupy.empty((n, 2), np.int32)
    rule = {"window": (50, 0), "chunk_size": 400, "num_sink_tokens": 2}
    call = {"kv_token_num": n, "spans": spans, "out": out, **rule}
    maskq_cupy.get_attn_mask_q(cu, cu, **call)  # compiles
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        maskq_cupy.get_attn_mask_q(cu, cu, **call)
        graph = stream.end_capture()
    for _ in range(200):
        host_cu = cuts(rng.multinomial(n - 10, np.ones(batch) / batch))
        num = int(rng.integers(0, room + 1))
        host_spans = np.sort(rng.integers(0, n + 1, 2 * num)).reshape(-1, 2)
        last = host_spans[-1:, 1:].max(initial=0)
        filled = np.concatenate([host_spans, np.full((room - num, 2), last)]).astype(np.int32)
        with stream:
            cu.set(host_cu)
            spans.set(filled)
            out.fill(-1)
            graph.launch()
            found = cupy.asnumpy(out)
        expected = reference.get_attn_mask_q(host_cu, host_cu, None, n, spans=host_spans, **rule)
        np.testing.assert_array_equal(found, expected)
