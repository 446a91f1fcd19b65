"""The torch operators: as the reference, by torch's own checks, and inside compiled models."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from strategies import cuts

import maskq_cupy
from maskq_cupy import reference

torch = pytest.importorskip("torch", reason="torch is not installed: its operators are not tested")
flex = pytest.importorskip("maskq_cupy.flex")
ops = torch.ops.maskq_cupy

ROOT = Path(__file__).resolve().parent.parent

Q, K = cuts([3, 0, 200, 57]), cuts([5, 2, 200, 80])
COLUMNS = reference.get_attn_mask_q(Q, K, kv_token_num=300)
HEADS = np.stack([COLUMNS, reference.get_attn_mask_q(Q, K, None, 300, window=(20, 0))])[None]
ENDS = np.stack([np.zeros(260), np.arange(260) % 90 + 1], axis=1).astype(np.int32)
IDS = np.repeat([4, 9, 9, 2, -1], [30, 1, 70, 20, 8])
PADDING = np.arange(40) >= np.array([[0], [7], [40]])


def by_rule(q, k, n, **rule):
    return reference.get_attn_mask_q(q, k, None, n, **rule)


# Of each call the operator, the reference's function, the arguments and those by name.
CALLS = {
    "causal": ("columns", by_rule, (Q, K, 300), {}),
    "no columns": ("columns", by_rule, (cuts([4]), cuts([0]), 0), {}),
    "window": ("columns", by_rule, (Q, K, 300), {"window": (20, 0), "num_sink_tokens": 2}),
    "full": ("columns", by_rule, (Q, K.astype(np.int64), 300), {"causal": False}),
    "chunks": ("columns", by_rule, (Q, K, 300), {"chunk_size": 64, "align": "top_left"}),
    "blocks of keys": ("columns", by_rule, (Q, K, 300), {"causal_block": 16}),
    "images": ("columns", by_rule, (Q, K, 300), {"spans": np.array([[1, 4], [30, 180]])}),
    "intervals": ("interval_columns", reference.get_attn_mask_q, (Q, K, ENDS, 300), {}),
    "many intervals": (
        "interval_columns",
        reference.get_attn_mask_q,
        (cuts([9000]), cuts([90]), np.tile(ENDS, (40, 1)), 90),
        {},
    ),
    "tree": ("tree_columns", reference.tree_attn_mask_q, (np.array([-1, 0, 0, 2]), Q, K, 300), {}),
    "tree, full segments": (
        "tree_columns",
        reference.tree_attn_mask_q,
        (np.array([-1, 0, 0, -1]), Q, K, 300),
        {"full": np.array([True, False, True, False])},
    ),
    "tiles": ("blocks", reference.to_blocks, (COLUMNS, 260, (128, 128)), {}),
    "tiles of other sizes": ("blocks", reference.to_blocks, (COLUMNS, 260, (32, 64)), {}),
    "tiles of heads": ("blocks", reference.to_blocks, (HEADS, 260, (32, 32)), {"width": (8, 9)}),
    "partial tiles": ("blocks", reference.to_blocks, (COLUMNS, 260), {"all_partial": True}),
    "no tiles": ("blocks", reference.to_blocks, (COLUMNS[:0], 260, (32, 64)), {}),
    "dense": ("dense", reference.to_dense, (COLUMNS, 260), {}),
    "dense heads": ("dense", reference.to_dense, (HEADS, 260), {"limit": 2 * 260 * 300}),
    "parts": ("split_columns", reference.split_columns, (COLUMNS, 2, 260), {}),
    "ids": ("cu_seqlens_from_ids", reference.cu_seqlens_from_ids, (IDS, 6, -1), {}),
    "positions": ("cu_seqlens_from_positions", reference.cu_seqlens_from_positions, (IDS, 130), {}),
    "padding": ("cu_seqlens_from_padding", reference.cu_seqlens_from_padding, (PADDING,), {}),
    "slots": (
        "cu_seqlens_from_slots",
        reference.cu_seqlens_from_slots,
        (cuts([2, 1]), cuts([4, 2]), cuts([2, 1]), cuts([4, 3])),
        {},
    ),
    "spans": ("spans_from_ids", reference.spans_from_ids, (IDS.reshape(3, -1), 6, 4), {}),
}


def on(device, value):
    return torch.as_tensor(value, device=device) if isinstance(value, np.ndarray) else value


def call_of(name, device):
    """Return the operator of a call, its arguments on the device, and the reference's results."""
    operator, function, given, more = CALLS[name]
    found = function(*given, **more)
    tensors = tuple(on(device, value) for value in given)
    named = {key: on(device, value) for key, value in more.items()}
    return getattr(ops, operator).default, tensors, named, each(found)


def each(results):
    return list(results) if isinstance(results, (tuple, list)) else [results]


def check_call(name, device):
    operator, given, more, expected = call_of(name, device)
    for found, array in zip(each(operator(*given, **more)), expected, strict=True):
        assert found.device.type == device
        assert found.is_contiguous()
        assert found.cpu().numpy().dtype == array.dtype
        np.testing.assert_array_equal(found.cpu(), array)


@pytest.mark.parametrize("name", CALLS)
def test_operator_is_the_reference(name):
    check_call(name, "cpu")


def test_the_operator_takes_every_rule():
    """By the names of the function's own arguments, and with the same defaults."""
    schema = torch.ops.maskq_cupy.columns.default._schema
    operator = {given.name: given.default_value for given in schema.arguments if given.kwarg_only}
    parameters = inspect.signature(maskq_cupy.get_attn_mask_q).parameters.values()
    named = {given.name: given.default for given in parameters if given.kind == given.KEYWORD_ONLY}
    for no_rule in ("out", "scratch", "stream", "validate"):
        del named[no_rule]
    assert operator == named


def test_every_operator_is_called():
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.removeprefix("maskq_cupy::") for s in schemas if s.name[:6] == "maskq_"}
    assert names == {operator for operator, *_ in CALLS.values()}


@pytest.mark.parametrize("name", CALLS)
def test_torchs_own_check(name):
    """The schema is kept, nothing aliases, and what tracing sees has the results' form."""
    operator, given, more, _ = call_of(name, "cpu")
    torch.library.opcheck(operator, given, more)


REGISTERED = """
import torch, maskq_cupy
print(hasattr(torch.ops.maskq_cupy, "columns"))
import maskq_cupy.{module}
print(hasattr(torch.ops.maskq_cupy, "columns"), "cupy" in __import__("sys").modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch_ops", "flex"])
def test_registered_by_their_import_alone(module):
    command = [sys.executable, "-c", REGISTERED.format(module=module)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True", "False"]


def check_refusals(device):
    cu, columns = on(device, cuts([3, 2])), on(device, COLUMNS)
    for call, kind, message in (
        (lambda: ops.columns(cu.float(), cu, 5), TypeError, "cu_seqlens_q must be int32 or int64"),
        (lambda: ops.columns(cu, cu, -1), ValueError, "kv_token_num must be in [0, 2**31 - 1]"),
        (lambda: ops.columns(cu, cu, 5, window=[1]), ValueError, "window must be (left, right)"),
        (lambda: ops.columns(cu, cu, 5, align="top"), ValueError, "align must be 'bottom_right'"),
        (lambda: ops.interval_columns(cu, cu, cu, 5), ValueError, "attn_mask_kv must be int32 or"),
        (lambda: ops.tree_columns(cu, cu, cu, 5), ValueError, "parent must be int32 or int64 of"),
        (lambda: ops.blocks(columns.long(), 260), TypeError, "columns must be int32 of shape"),
        (lambda: ops.blocks(columns, -1), ValueError, "q_token_num must be in [0, 2**31 - 1]"),
        (lambda: ops.blocks(columns, 260, (8, 0)), ValueError, "block_size must be in [1, 2**31"),
        (lambda: ops.dense(columns, 260, limit=5), ValueError, "a dense mask of 260 rows x 300"),
        (lambda: ops.split_columns(columns, 7, 260), ValueError, "columns must be a multiple of"),
        (lambda: ops.cu_seqlens_from_ids(cu, -1), ValueError, "max_sequence_num must be in [0"),
        (lambda: ops.cu_seqlens_from_padding(cu), ValueError, "mask must be bool or of an int"),
    ):
        with pytest.raises(kind, match=f"^{re.escape(message)}"):
            call()


def test_bad_input_is_refused_by_name():
    check_refusals("cpu")
    cu = torch.tensor([0, 3, 2])
    with pytest.raises(ValueError, match=r"cu_seqlens_q must not decrease, got cu_seqlens_q\[2\]"):
        ops.columns(cu, cu, 5)  # values are checked on the CPU


# Inside a compiled model

# How a model makes its mask, from what it is given of the pack, for its rows and keys.


def packed(rule):
    return lambda pack, q, k: flex.packed_block_mask(
        pack["q"], pack["k"], q.shape[-2], k.shape[-2], **rule
    )


def by_intervals(pack, q, k):
    rule = {"attn_mask_kv": pack["intervals"], "block_size": (128, 256)}
    return packed(rule)(pack, q, k)


def by_tree(pack, q, k):
    columns = ops.tree_columns(pack["parent"], pack["q"], pack["k"], k.shape[-2])
    return flex.block_mask(columns, q.shape[-2])


def by_ids(pack, q, k):
    """Documents and images by ids, two kinds of heads."""
    ids = pack["ids"]
    cu = ops.cu_seqlens_from_ids(ids, 8)
    spans = ops.spans_from_ids(ids % 3, 8, 1)
    n = k.shape[-2]
    kinds = [ops.columns(cu, cu, n, spans=spans), ops.columns(cu, cu, n, window=(50, 0))]
    return flex.block_mask(torch.stack(kinds)[None], q.shape[-2])


def by_positions(pack, q, k):
    cu = ops.cu_seqlens_from_positions(pack["positions"], 8)
    return flex.packed_block_mask(cu, cu, q.shape[-2], k.shape[-2])


def refined(pack, q, k):
    def refine(b, h, q_idx, kv_idx):
        return (kv_idx % 5 != 3) | (q_idx == kv_idx)

    return flex.packed_block_mask(pack["q"], pack["q"], q.shape[-2], k.shape[-2], refine=refine)


def refined_dense(pack):
    row, key = np.arange(pack["q"][-1])[:, None], np.arange(pack["q"][-1])
    causal = reference.to_dense(reference.get_attn_mask_q(pack["q"], pack["q"]), len(row))
    return causal & ((key % 5 != 3) | (row == key))


def dense_of(columns, pack):
    return reference.to_dense(columns, int(pack["q"][-1]))


def of_rule(rule, k="k"):
    return lambda pack: dense_of(reference.get_attn_mask_q(pack["q"], pack[k], **rule), pack)


def dense_by_ids(pack):
    spans = reference.spans_from_ids(pack["ids"] % 3, 8, 1)
    return np.stack([of_rule({"spans": spans}, "q")(pack), of_rule({"window": (50, 0)}, "q")(pack)])


MODELS = {
    "causal": (packed({}), of_rule({})),
    "window": (packed({"window": (100, 0)}), of_rule({"window": (100, 0)})),
    "chunks": (
        packed({"chunk_size": 64, "align": "top_left"}),
        of_rule({"chunk_size": 64, "align": "top_left"}),
    ),
    "intervals": (
        by_intervals,
        lambda pack: dense_of(
            reference.get_attn_mask_q(pack["q"], pack["k"], pack["intervals"]), pack
        ),
    ),
    "tree": (
        by_tree,
        lambda pack: dense_of(
            reference.tree_attn_mask_q(pack["parent"], pack["q"], pack["k"]), pack
        ),
    ),
    "ids": (by_ids, dense_by_ids),
    "positions": (by_positions, of_rule({}, "q")),
    "refined": (refined, refined_dense),
}
OF_ROWS = {"ids", "positions", "refined"}  # as many keys as rows


def pack_of(q_lens, k_lens):
    row = np.concatenate([np.arange(n) for n in q_lens])
    return {
        "q": cuts(q_lens),
        "k": cuts(k_lens),
        "intervals": np.stack([row // 2, row + 1], axis=1).astype(np.int32),
        "parent": np.arange(-1, len(q_lens) - 1),
        "ids": np.repeat(np.arange(len(q_lens)), q_lens),
        "positions": row,
    }


def packs(num, seed=0):
    """Yield packs of other numbers of sequences, rows and keys; each row sees something."""
    rng = np.random.default_rng(seed)
    for i in range(num):
        batch = 3 + i % 4
        q_lens = rng.integers(100, 250, batch)
        yield pack_of(q_lens, q_lens + rng.integers(1, 150, batch))


def inputs_of(name, pack, device, dim=16):
    row_num = int(pack["q"][-1])
    column_num = row_num if name in OF_ROWS else int(pack["k"][-1])
    generator = torch.Generator().manual_seed(row_num)
    lengths = (row_num, column_num, column_num)
    q, k, v = (torch.randn(1, 2, n, dim, generator=generator).to(device) for n in lengths)
    return {key: on(device, array) for key, array in pack.items()}, q, k, v


def model_of(name):
    """Return a function that makes its mask inside, and what it also makes: the columns' lists."""
    from torch.nn.attention.flex_attention import flex_attention

    make_mask, _ = MODELS[name]

    def forward(pack, q, k, v):
        mask = make_mask(pack, q, k)
        return flex_attention(q, k, v, block_mask=mask), mask.kv_indices

    return forward


def attend_dense(name, pack, q, k, v):
    dense = torch.as_tensor(MODELS[name][1](pack), device=q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)


@pytest.fixture
def graphs():
    """Return what says how many graphs were compiled since the test began."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_made_inside_a_compiled_forward(graphs, name):
    """Right, without a break, and compiled once for all lengths."""
    compiled = torch.compile(model_of(name), fullgraph=True, backend="aot_eager", dynamic=True)
    for pack in packs(8):
        tensors, *qkv = inputs_of(name, pack, "cpu")
        result, _ = compiled(tensors, *qkv)
        right = attend_dense(name, pack, *qkv)
        torch.testing.assert_close(result, right, atol=1e-5, rtol=1e-5)
    assert graphs() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_other_lengths_compile_once_more_by_themselves(graphs, name):
    """Not told that lengths change, torch compiles for the first and then for all."""
    compiled = torch.compile(model_of(name), fullgraph=True, backend="eager")
    for pack in packs(8):
        compiled(*inputs_of(name, pack, "cpu"))
    assert graphs() <= 2


def test_lists_made_inside_are_the_references(graphs):
    """Compiled once for more rows than keys too, and for fewer."""
    compiled = torch.compile(model_of("window"), fullgraph=True, backend="aot_eager", dynamic=True)
    for row_num in (260, 1300, 700):
        pack = pack_of([200, row_num - 200], [230, 900])
        _, lists = compiled(*inputs_of("window", pack, "cpu"))
        columns = reference.get_attn_mask_q(pack["q"], pack["k"], window=(100, 0))
        np.testing.assert_array_equal(lists, reference.to_blocks(columns, row_num).kv_indices)
    assert graphs() == 1


def test_a_padded_batch_inside_a_compiled_forward(graphs):
    from torch.nn.attention.flex_attention import flex_attention

    def forward(mask, q):
        batch, length = mask.shape
        columns = ops.columns(*ops.cu_seqlens_from_padding(mask), batch * length)
        parts = ops.split_columns(columns, batch, batch * length)
        shown = ops.dense(parts, length)
        return flex_attention(q, q, q, block_mask=flex.block_mask(parts, length)), shown

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    # Not as many batch rows as heads at first: torch would take both for one number, and fixed.
    for batch, length in ((3, 300), (2, 200), (4, 500)):
        mask = torch.arange(length) >= 17 * torch.arange(batch)[:, None]
        q = torch.randn(batch, 2, length, 16)
        result, shown = compiled(mask, q)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        dense = causal & mask[:, None, None] & mask[:, None, :, None]
        assert torch.equal(shown, dense)
        right = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=dense)
        seen = mask[:, None, :, None]  # torch's dense attention has NaN in rows of padding
        torch.testing.assert_close(
            result.where(seen, 0.0), right.where(seen, 0.0), atol=1e-5, rtol=1e-5
        )
    assert graphs() == 1


def test_slots_inside_a_compiled_forward(graphs):
    def forward(lengths, slots, n):
        return ops.columns(*ops.cu_seqlens_from_slots(lengths, slots, lengths, slots), n)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3, 5):
        lengths, slots = cuts([6] * batch), cuts([8] * batch)
        columns = compiled(torch.as_tensor(lengths), torch.as_tensor(slots), 8 * batch)
        pair = reference.cu_seqlens_from_slots(lengths, slots, lengths, slots)
        np.testing.assert_array_equal(columns, reference.get_attn_mask_q(*pair, None, 8 * batch))
    assert graphs() == 1


class DenseModel(torch.nn.Module):
    def forward(self, ids, x):
        n = x.shape[-2]
        cu = ops.cu_seqlens_from_ids(ids, 4)
        mask = ops.dense(ops.columns(cu, cu, n), n)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def test_exported_for_all_lengths():
    n = torch.export.Dim("n", min=2, max=4096)
    example = torch.tensor([1, 1, 2, 2, 2]), torch.randn(1, 1, 5, 8)
    exported = torch.export.export(DenseModel(), example, dynamic_shapes=({0: n}, {2: n}))
    other = torch.tensor([1, 1, 2, 2, 2, 3, 3]), torch.randn(1, 1, 7, 8)
    torch.testing.assert_close(exported.module()(*other), DenseModel()(*other))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_lengths_that_only_the_data_say(graphs):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def forward(ids):
        kept = ids[ids >= 0]
        cu = ops.cu_seqlens_from_ids(kept, 4)
        return ops.columns(cu, cu, len(kept))

    columns = forward(torch.tensor([1, 1, 2, -1, 2]))
    np.testing.assert_array_equal(columns, reference.get_attn_mask_q([0, 2, 4], [0, 2, 4]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"validate": True}, "validate must be False in a compiled forward"),
        ({"window": (1, 0), "attn_mask_kv": ENDS}, "attn_mask_kv excludes window"),
        ({"spans": ENDS, "attn_mask_kv": ENDS}, "attn_mask_kv excludes spans"),
    ],
)
def test_what_a_compiled_forward_refuses(graphs, more, message):
    @torch.compile(fullgraph=True, backend="eager")
    def forward(cu, **rule):
        return flex.packed_block_mask(cu, cu, 260, 260, **rule).kv_indices

    with pytest.raises(Exception, match=message):
        forward(torch.as_tensor(Q), **{name: on("cpu", value) for name, value in more.items()})


@pytest.mark.slow
def test_compiled_on_the_cpu_by_inductor(graphs):
    """There the compiled kernel reads the lists that the operator made."""
    pack = next(packs(1))
    inputs = inputs_of("window", pack, "cpu", dim=64)
    compiled = torch.compile(model_of("window"), fullgraph=True, dynamic=False)
    try:
        result, _ = compiled(*inputs)
    except Exception as error:
        if "maskq" in str(error):
            raise
        pytest.skip(f"flex_attention does not compile here: {type(error).__name__}")
    right = attend_dense("window", pack, *inputs[1:])
    torch.testing.assert_close(result, right, atol=1e-5, rtol=1e-5)


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_gpu_operator_is_the_reference(name):
    check_call(name, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_gpu_torchs_own_check(name):
    operator, given, more, _ = call_of(name, "cuda")
    torch.library.opcheck(operator, given, more)


@pytest.mark.gpu
def test_gpu_bad_input_is_refused_by_name():
    check_refusals("cuda")
    cu = torch.tensor([0, 3], device="cuda")
    with pytest.raises(TypeError, match="must be all on one GPU or all on the host"):
        ops.columns(cu.cpu(), cu, 3)
    with pytest.raises(ValueError, match="cu_seqlens_q must be C-contiguous"):
        ops.columns(torch.stack([cu, cu], 1)[:, 0], cu, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_gpu_in_a_graph_of_torch(name):
    """Captured whole, allocations too; what is replayed reads the inputs of then."""
    operator, given, more, expected = call_of(name, "cuda")
    operator(*given, **more)  # compiles
    torch.cuda.synchronize()
    first = given[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = each(operator(*given, **more))
    given[0].zero_()
    graph.replay()
    given[0].copy_(first)
    for result in results:
        result.fill_(7)
    graph.replay()
    for result, array in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.cpu(), array)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_gpu_on_a_side_stream_of_torch(name):
    """Ordered on torch's current stream, behind what it still writes and before what it reads."""
    operator, given, more, expected = call_of(name, "cuda")
    operator(*given, **more)  # compiles
    torch.cuda.synchronize()
    right = given[0].clone()
    given[0].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        given[0].copy_(right)
        results = each(operator(*given, **more))
        given[0].zero_()
        for result, array in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.cpu(), array)
    torch.cuda.synchronize()  # the memory that the stream writes is free from here on


@pytest.mark.gpu
def test_gpu_waits_for_nothing():
    """The host is through all operators while the device is still before the first."""
    calls = [call_of(name, "cuda")[:3] for name in CALLS]
    kept = [operator(*given, **more) for operator, given, more in calls]  # compiles, allocates
    del kept
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    before = torch.cuda.Event()
    before.record()
    kept = [operator(*given, **more) for operator, given, more in calls]
    assert not before.query()
    torch.cuda.synchronize()
    del kept


@pytest.mark.gpu
def test_gpu_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    for name in CALLS:
        operator, given, more, expected = call_of(name, "cuda:1")
        results = each(operator(*given, **more))
        assert torch.cuda.current_device() == 0
        for result, array in zip(results, expected, strict=True):
            assert result.device == given[0].device
            np.testing.assert_array_equal(result.cpu(), array)


def check_compiled_on_gpu(name, compiled, pack):
    """Compare the results and the gradients with dense attention's."""
    tensors, *qkv = inputs_of(name, pack, "cuda", dim=64)
    qkv = [x.requires_grad_() for x in qkv]
    result, _ = compiled(tensors, *qkv)
    upstream = torch.randn_like(result)
    gradients = torch.autograd.grad(result, qkv, upstream)
    right = attend_dense(name, pack, *qkv)
    expected = torch.autograd.grad(right, qkv, upstream)
    for found, value in zip((result, *gradients), (right, *expected), strict=True):
        torch.testing.assert_close(found, value, atol=2e-2, rtol=2e-2)  # tf32 in the kernels


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_gpu_made_inside_a_compiled_forward(graphs, name):
    """Forward and backward by inductor; compiled for the first lengths, and then for all."""
    compiled = torch.compile(model_of(name), fullgraph=True)
    for pack in packs(8):
        check_compiled_on_gpu(name, compiled, pack)
    assert graphs() <= 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_gpu_made_inside_a_forward_of_reduce_overhead(graphs, name):
    """Recorded in CUDA graphs, and right when these are replayed with other packs."""
    from torch._dynamo.utils import counters

    compiled = torch.compile(model_of(name), fullgraph=True, mode="reduce-overhead")
    q_lens, k_lens = np.array([170, 130, 200]), np.array([190, 180, 260])
    moved = np.array([-20, 20, 0])  # the same lengths, cut elsewhere
    first, shifted = pack_of(q_lens, k_lens), pack_of(q_lens + moved, k_lens + moved)
    for _ in range(3):  # warm up, record, replay
        for pack in (first, shifted):
            torch.compiler.cudagraph_mark_step_begin()
            check_compiled_on_gpu(name, compiled, pack)
    assert graphs() == 1
    assert counters["inductor"]["cudagraph_skips"] == 0
