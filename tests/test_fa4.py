"""FlashAttention-4's arguments without FlashAttention-4: tiles, lists, shapes and refusals.

What it would be given is seen through a stand-in for its module. tests/test_fa4_compile.py compiles
its kernels with our mask, tests/test_fa4_gpu.py runs them.
"""

import importlib
import re
import sys
import types
import warnings
from importlib.metadata import PackageNotFoundError
from typing import Any, NamedTuple

import numpy as np
import pytest
from strategies import cuts

from maskq_cupy import reference

torch = pytest.importorskip("torch", reason="torch is not installed: fa4 is not tested")
fa4 = pytest.importorskip("maskq_cupy.fa4")

HOPPER, BLACKWELL = (9, 0), (10, 0)


@pytest.mark.parametrize(
    ("head_dims", "capability", "backward", "expected"),
    [
        ((8, 8), HOPPER, True, (128, 128)),
        ((64, 64), HOPPER, True, (128, 128)),
        ((128, 128), HOPPER, True, (128, 128)),
        ((136, 136), HOPPER, True, (128, 96)),
        ((192, 192), HOPPER, True, (128, 96)),
        ((192, 128), HOPPER, True, (128, 96)),
        ((200, 200), HOPPER, True, (128, 64)),
        ((256, 256), HOPPER, True, (128, 64)),
        ((64, 64), BLACKWELL, True, (256, 128)),
        ((128, 128), (10, 3), True, (256, 128)),
        ((192, 128), BLACKWELL, True, (256, 256)),
        ((256, 256), BLACKWELL, False, (256, 128)),
    ],
)
def test_block_size(head_dims, capability, backward, expected):
    assert fa4.block_size(head_dims[0], capability, head_dims[1], backward) == expected


@pytest.mark.parametrize(
    ("head_dims", "capability", "backward"),
    [
        ((264, 264), HOPPER, True),
        ((100, 100), HOPPER, True),
        ((64, 128), HOPPER, True),
        ((136, 136), BLACKWELL, True),
        ((192, 192), BLACKWELL, False),
        ((256, 256), BLACKWELL, True),
        ((64, 64), (8, 0), False),
        ((64, 64), (8, 9), True),
        ((64, 64), (11, 0), True),
        ((64, 64), (12, 0), True),
    ],
)
def test_block_size_is_refused_with_dimensions_and_device(head_dims, capability, backward):
    found = (
        f"got {head_dims[0]} and {head_dims[1]} on sm_{capability[0]}{capability[1]}, "
        f"backward={backward}"
    )
    with pytest.raises(ValueError, match=re.escape(found)):
        fa4.block_size(head_dims[0], capability, head_dims[1], backward)
    with pytest.raises(TypeError, match="head_dim must be an int, got str"):
        fa4.block_size("64", HOPPER)


# A stand-in for flash_attn.cute


class BlockSparseTensorsTorch(NamedTuple):
    """Its fields, in its order."""

    mask_block_cnt: Any
    mask_block_idx: Any
    full_block_cnt: Any = None
    full_block_idx: Any = None
    cu_total_m_blocks: Any = None
    cu_block_idx_offsets: Any = None
    block_size: Any = None
    dq_write_order: Any = None
    dq_write_order_full: Any = None
    spt: Any = None


@pytest.fixture
def calls(monkeypatch):
    """Stand in for FlashAttention-4; return the list of what its function was called with."""
    seen = []

    def flash_attn_func(q, k, v, *, return_lse=False, **given):
        seen.append(given)
        return q.new_zeros(*q.shape[:3], v.shape[3]), "lse" if return_lse else None

    package, cute = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
    sparsity = types.ModuleType("flash_attn.cute.block_sparsity")
    mask = types.ModuleType("maskq_cupy.fa4_mask")
    cute.flash_attn_func, mask.mask_mod = flash_attn_func, "mask_mod"
    sparsity.BlockSparseTensorsTorch = BlockSparseTensorsTorch
    for module in (package, cute, sparsity, mask):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fa4, "version", fa4.TESTED.__getitem__)
    fa4._flash_attention.cache_clear()
    yield seen
    fa4._flash_attention.cache_clear()


@pytest.fixture
def on_cpu(monkeypatch, calls):
    """Let arguments be made of tensors of the host, with the reference's lists; a Hopper."""

    def tile_lists(columns, row_num, size, width=None):
        lists = reference.to_blocks(columns.numpy(), row_num, size, width=width)
        return columns, reference.Blocks(*map(torch.as_tensor, lists))

    monkeypatch.setattr(fa4.flex, "on_gpu", lambda tensor, name: tensor)
    monkeypatch.setattr(fa4.flex, "tile_lists", tile_lists)
    monkeypatch.setattr(fa4, "_capability", lambda device: HOPPER)
    return calls


Q, N = 300, 410


def columns_of_two():
    columns = reference.get_attn_mask_q([0, 120, Q], [0, 150, 400], None, N)
    return torch.as_tensor(columns)


@pytest.mark.parametrize("head_dim", [64, 192, 256])
def test_arguments_hold_the_lists_of_both_passes(on_cpu, head_dim):
    columns, size = columns_of_two(), fa4.block_size(head_dim, HOPPER)
    expected = reference.to_blocks(columns.numpy(), Q, size)
    arguments = fa4.arguments(columns, Q, head_dim)
    assert set(arguments) == {
        *("mask_mod", "aux_tensors", "block_sparse_tensors", "block_sparse_tensors_bwd"),
        *("causal", "window_size", "deterministic"),
    }
    assert arguments["causal"] is False
    assert arguments["window_size"] == (None, None)
    assert arguments["deterministic"] is False
    assert arguments["aux_tensors"][0].data_ptr() == columns.data_ptr()
    for side, names in (
        ("", ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")),
        ("_bwd", ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")),
    ):
        lists = arguments["block_sparse_tensors" + side]
        assert lists.block_size == size
        assert lists[4:6] == (None, None)
        assert lists[7:] == (None, None, None)
        for array, name in zip(lists[:4], names, strict=True):
            np.testing.assert_array_equal(array, getattr(expected, name), err_msg=side + name)
    assert fa4.arguments(columns, Q, head_dim, backward=False)["block_sparse_tensors_bwd"] is None


def test_packed_arguments_are_those_of_the_columns(on_cpu, monkeypatch):
    rule = {"window": (5, 0)}
    pack = ([0, 120, Q], [0, 150, 400])

    def packed_columns(cu_q, cu_k, kv_token_num, given):
        assert (cu_q, cu_k, kv_token_num, given) == (*pack, N, rule)
        return torch.as_tensor(reference.get_attn_mask_q(cu_q, cu_k, None, kv_token_num, **given))

    monkeypatch.setattr(fa4.flex, "packed_columns", packed_columns)
    packed = fa4.packed_arguments(*pack, Q, N, 192, head_dim_v=128, backward=False, **rule)
    alone = fa4.arguments(packed_columns(*pack, N, rule), Q, 192, head_dim_v=128, backward=False)
    assert packed.made_for == alone.made_for
    for name in ("mask_block_idx", "full_block_cnt"):
        lists = (getattr(each["block_sparse_tensors"], name) for each in (packed, alone))
        np.testing.assert_array_equal(*lists)


@pytest.mark.parametrize(
    ("form", "shape", "stride"),
    [
        ((), (N, 2), (2, 1)),
        ((1, 1), (N, 2), (2, 1)),
        ((3, 1), (3, 2, N, 2), (2 * N, 0, 2, 1)),
        ((1, 4), (2, 4, N, 2), (0, 2 * N, 2, 1)),
        ((3, 4), (3, 4, N, 2), (8 * N, 2 * N, 2, 1)),
    ],
)
def test_columns_are_broadcast_by_a_stride_of_0(form, shape, stride):
    columns = torch.zeros(*form, N, 2, dtype=torch.int32)
    broadcast = fa4._broadcast(columns)
    assert (broadcast.shape, broadcast.stride()) == (shape, stride)
    assert broadcast.data_ptr() == columns.data_ptr()


def test_other_versions_are_told_once(on_cpu, monkeypatch):
    fa4._flash_attention.cache_clear()
    monkeypatch.setattr(fa4, "version", lambda name: "9.9")
    expected = f"tested with flash-attn-4 {fa4.TESTED['flash-attn-4']}, .*; found flash-attn-4 9"
    with pytest.warns(UserWarning, match=expected) as caught:
        fa4.arguments(columns_of_two(), Q, 64)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fa4.arguments(columns_of_two(), Q, 64)
    fa4._flash_attention.cache_clear()


def test_without_flash_attention_the_extra_is_named(on_cpu, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    fa4._flash_attention.cache_clear()
    monkeypatch.setattr(fa4, "version", missing)
    for _ in range(2):
        with pytest.raises(ImportError, match=r"needs FlashAttention-4: pip install .*\[fa4\]"):
            fa4.arguments(columns_of_two(), Q, 64)


# The call


def tensors(q=(1, Q, 4, 64), k=(1, N, 2, 64), v=(1, N, 2, 64), dtype=torch.bfloat16, **options):
    return [torch.zeros(*shape, dtype=dtype, **options) for shape in (q, k, v)]


def test_attention_gives_all_of_the_arguments(on_cpu):
    arguments = fa4.arguments(columns_of_two(), Q, 64)
    out = fa4.attention(*tensors(), arguments, softmax_scale=0.5)
    assert on_cpu == [{**arguments, "softmax_scale": 0.5}]
    assert out.shape == (1, Q, 4, 64)
    assert fa4.attention(*tensors(), arguments, return_lse=True)[1] == "lse"


def test_attention_takes_any_batch_and_heads_where_the_columns_do(on_cpu):
    arguments = fa4.arguments(columns_of_two(), Q, 64)
    many = tensors((3, Q, 8, 64), (3, N, 8, 64), (3, N, 8, 64))
    assert fa4.attention(*many, arguments).shape == (3, Q, 8, 64)


def test_attention_breaks_the_graph_of_a_compiled_model(on_cpu):
    arguments = fa4.arguments(columns_of_two(), Q, 64)

    def model(q, k, v):
        return fa4.attention(2 * q, k, v, arguments) + 1

    out = torch.compile(model, backend="eager")(*tensors())
    assert torch.equal(out, torch.ones_like(out))
    assert on_cpu == [arguments]
    torch._dynamo.reset()  # else what it compiled with the break serves again
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(*tensors())


@pytest.mark.parametrize(
    ("form", "shape", "message"),
    [
        ((2, 1), (2, Q, 4, 64), None),
        ((2, 1), (1, Q, 4, 64), f"q must be of shape (2, {Q}, heads, 64) as the arguments, got (1"),
        ((1, 4), (3, Q, 4, 64), None),
        ((1, 4), (3, Q, 8, 64), f"q must be of shape (batch, {Q}, 4, 64) as the arguments, got (3"),
        ((2, 4), (2, Q, 4, 64), None),
        (
            (2, 4),
            (2, Q, 2, 64),
            f"q must be of shape (2, {Q}, 4, 64) as the arguments, got (2, 300",
        ),
    ],
)
def test_columns_of_batch_rows_and_heads(on_cpu, form, shape, message):
    """h counts query heads; their lists have as many slices, which it broadcasts itself."""
    columns = columns_of_two().expand(*form, N, 2).contiguous()
    arguments = fa4.arguments(columns, Q, 64)
    assert arguments["block_sparse_tensors"].mask_block_idx.shape[:2] == form
    assert arguments["block_sparse_tensors_bwd"].full_block_cnt.shape[:2] == form
    assert arguments["aux_tensors"][0].shape == (*(2 if n == 1 else n for n in form), N, 2)
    given = tensors(shape, (shape[0], N, 2, 64), (shape[0], N, 2, 64))
    if message is None:
        fa4.attention(*given, arguments)
        assert on_cpu == [arguments]
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        fa4.attention(*given, arguments)
    assert not on_cpu


def test_narrow_lists_are_passed_on(on_cpu):
    arguments = fa4.arguments(columns_of_two(), Q, 64, width=(2, 1))
    by_row, by_column = (arguments["block_sparse_tensors" + side] for side in ("", "_bwd"))
    assert by_row.mask_block_idx.shape == by_row.full_block_idx.shape == (1, 1, 3, 2)
    assert by_column.mask_block_idx.shape == by_column.full_block_idx.shape == (1, 1, 4, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": (1, Q + 1, 4, 64)}, f"q must be of shape (batch, {Q}, heads, 64) as the"),
        ({"q": (Q, 4, 64)}, f"q must be of shape (batch, {Q}, heads, 64) as the arguments, got ("),
        ({"q": (1, Q, 4, 128)}, f"q must be of shape (batch, {Q}, heads, 64) as the arguments"),
        ({"k": (1, N - 1, 2, 64)}, f"k must be of shape (batch, {N}, heads, 64) as the arguments"),
        ({"v": (1, N, 2, 32)}, f"v must be of shape (batch, {N}, heads, 64) as the arguments"),
        ({"k": (2, N, 2, 64)}, "q, k and v must have one batch, and k and v as many heads"),
        ({"v": (1, N, 1, 64)}, "q, k and v must have one batch, and k and v as many heads"),
        ({"q": (1, Q, 3, 64)}, "k and v as many heads, which divide q's, got shapes (1, 300, 3"),
        ({"device": "meta"}, "q must be on cpu as the arguments, got meta"),
    ],
)
def test_attention_refuses_other_tensors(on_cpu, given, message):
    arguments = fa4.arguments(columns_of_two(), Q, 64)
    with pytest.raises(ValueError, match=re.escape(message)):
        fa4.attention(*tensors(**given), arguments)
    assert not on_cpu


def test_attention_refuses_other_types(on_cpu):
    arguments = fa4.arguments(columns_of_two(), Q, 64)
    q, k, v = tensors()
    fp8 = torch.float8_e4m3fn
    for given, message in (
        ((q, k.half(), v), "k must be torch.bfloat16 as q, got torch.float16"),
        ((q.float(), k.float(), v.float()), "q must be float16 or bfloat16, got torch.float32"),
        (
            [x.to(fp8).requires_grad_() for x in (q, k, v)],
            "must not need gradients in torch.float8",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            fa4.attention(*given, arguments)
    with pytest.raises(TypeError, match=r"arguments must be what fa4.arguments or .*, got dict"):
        fa4.attention(q, k, v, dict(arguments))
    assert not on_cpu


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"causal": True}, TypeError, "causal is one of the arguments already, got causal=True"),
        ({"window_size": (5, 0)}, TypeError, "window_size is one of the arguments already"),
        ({"deterministic": True}, TypeError, "deterministic is one of the arguments already"),
        ({"mask_mod": None}, TypeError, "mask_mod is one of the arguments already"),
        ({"cu_seqlens_q": None}, TypeError, "cu_seqlens_q cannot be given: the columns know"),
        ({"max_seqlen_k": 5}, TypeError, "max_seqlen_k cannot be given: the columns know"),
        ({"page_table": None}, TypeError, "page_table cannot be given"),
        ({"qv": 1}, TypeError, "qv cannot be given: FlashAttention-4 reads no lists with it"),
        ({"num_splits": 2}, ValueError, "num_splits must be 1 with lists, got 2"),
        ({"num_splits": 0}, ValueError, "num_splits must be 1 with lists, got 0"),
    ],
)
def test_attention_refuses_what_lists_exclude(on_cpu, option, error, message):
    arguments = fa4.arguments(columns_of_two(), Q, 64)
    with pytest.raises(error, match=re.escape(message)):
        fa4.attention(*tensors(), arguments, **option)
    assert not on_cpu


def test_a_callers_own_causal_is_a_repeated_keyword(on_cpu):
    """By FlashAttention-4's function itself too: its backward pass would apply it silently."""
    arguments = fa4.arguments(columns_of_two(), Q, 64)
    function = sys.modules["flash_attn.cute"].flash_attn_func
    for option in ({"causal": True}, {"window_size": (5, 0)}, {"deterministic": True}):
        with pytest.raises(TypeError, match="got multiple values for keyword argument"):
            function(*tensors(), **arguments, **option)


def test_gradients_need_the_lists_of_the_backward_pass(on_cpu):
    arguments = fa4.arguments(columns_of_two(), Q, 64, backward=False)
    with pytest.raises(ValueError, match=r"were made with backward=False, got tensors with grad"):
        fa4.attention(*tensors(requires_grad=True), arguments)
    with torch.no_grad():
        fa4.attention(*tensors(requires_grad=True), arguments)
    fa4.attention(*tensors(), arguments)
    assert len(on_cpu) == 2


# The mask, in Python for want of its compiler


@pytest.fixture
def mask_mod(monkeypatch):
    """Import the mask with a compiler that leaves it as it is."""
    cutlass, cute = types.ModuleType("cutlass"), types.ModuleType("cutlass.cute")
    package, utils = types.ModuleType("flash_attn.cute"), types.ModuleType("flash_attn.cute.utils")
    cutlass.const_expr, cutlass.Int32, cutlass.cute = bool, np.int32, cute
    cute.jit, cute.rank = lambda function: function, np.ndim
    utils.scalar_to_ssa, package.utils = lambda value, dtype: dtype(value), utils
    for module in (types.ModuleType("flash_attn"), cutlass, cute, package, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "maskq_cupy.fa4_mask", raising=False)
    yield importlib.import_module("maskq_cupy.fa4_mask").mask_mod
    del sys.modules["maskq_cupy.fa4_mask"]


@pytest.mark.parametrize("form", [(), (2, 3)])
def test_mask_mod_is_the_dense_mask(mask_mod, form):
    """It is given a key at a time, and any number of rows; here of batch row 1 and head 2."""
    columns = reference.get_attn_mask_q([0, 20, 50], [0, 30, 70], None, 75, window=(12, 0))
    rows, given = np.arange(50), columns
    if form:
        given = np.zeros((*form, 75, 2), np.int32)
        given[1, 2] = columns
    shown = [mask_mod([1], [2], rows, [key], None, [given]) for key in range(75)]
    np.testing.assert_array_equal(np.stack(shown, axis=1), reference.to_dense(columns, 50))


# The order of a deterministic backward pass


def order_by_definition(columns, row_num, size):
    """Return, for each row tile and column tile, how many listed column tiles come before it."""
    dense = reference.to_dense(columns, row_num)
    grid = [-(-length // tile) for length, tile in zip(dense.shape, size, strict=True)]
    live = np.zeros(grid, int)
    for row in range(grid[0]):
        for column in range(grid[1]):
            tile = dense[row * size[0] :, column * size[1] :][: size[0], : size[1]]
            live[row, column] = tile.any()
    return np.cumsum(live, axis=1) - live


PACKS = {
    "documents": ([130, 0, 700, 57], [130, 40, 700, 57], {}),
    "window": ([900], [1100], {"window": (200, 0), "num_sink_tokens": 3}),
    "full": ([300, 500], [250, 600], {"causal": False}),
}


@pytest.mark.parametrize("name", PACKS)
def test_dq_write_order_is_the_definition(name):
    q_lens, k_lens, rule = PACKS[name]
    columns = reference.get_attn_mask_q(cuts(q_lens), cuts(k_lens), **rule)
    row_num, size = sum(q_lens), (64, 32)
    lists = reference.to_blocks(columns, row_num, size)
    expected = order_by_definition(columns, row_num, size)
    orders = fa4.dq_write_order(reference.Blocks(*map(torch.as_tensor, lists)))
    seen = 0
    for order, counts, indices in zip(
        orders, (lists.q_num_blocks, lists.full_q_num_blocks),
        (lists.q_indices, lists.full_q_indices), strict=True,
    ):  # fmt: skip
        assert (order.dtype, order.shape) == (torch.int32, indices.shape)
        for column, count in enumerate(counts[0, 0]):
            listed = indices[0, 0, column, :count]
            assert order[0, 0, column, :count].tolist() == expected[listed, column].tolist()
            seen += count
    assert seen == lists.kv_num_blocks.sum() + lists.full_kv_num_blocks.sum()


def test_dq_write_order_of_two_batch_rows_and_three_heads():
    """Each slice as alone, and narrow lists as wide ones."""
    slices = [
        reference.to_blocks(reference.get_attn_mask_q([0, cut, 400], [0, cut, 400]), 400, 32)
        for cut in (0, 31, 200, 250, 399, 400)
    ]
    stacked = reference.Blocks(
        *(
            torch.as_tensor(np.concatenate(arrays)).view(2, 3, *arrays[0].shape[2:])
            for arrays in zip(*slices, strict=True)
        )
    )
    of_row, of_column = stacked.full_kv_num_blocks.max(), stacked.full_q_num_blocks.max()
    assert of_column < stacked.full_q_indices.shape[-1]
    narrow = stacked._replace(
        full_kv_indices=stacked.full_kv_indices[..., :of_row],
        full_q_indices=stacked.full_q_indices[..., :of_column],
    )
    together, with_narrow = fa4.dq_write_order(stacked), fa4.dq_write_order(narrow)
    np.testing.assert_array_equal(together[0], with_narrow[0])
    np.testing.assert_array_equal(together[1][..., :of_column], with_narrow[1])
    for i, lists in enumerate(slices):
        alone = fa4.dq_write_order(reference.Blocks(*map(torch.as_tensor, lists)))
        for all_of_them, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(all_of_them.flatten(0, 1)[i], one[0, 0])


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_dq_write_order_of_nothing(size):
    lists = reference.to_blocks(np.zeros((size[1], 2), np.int32), size[0])
    for order in fa4.dq_write_order(reference.Blocks(*map(torch.as_tensor, lists))):
        assert order.numel() == 0


def test_deterministic_is_for_blackwell_and_whole_lists(on_cpu, monkeypatch):
    columns = columns_of_two()
    with pytest.raises(ValueError, match=r"deterministic must be False off sm_10x.*True on sm_90"):
        fa4.arguments(columns, Q, 64, deterministic=True)
    monkeypatch.setattr(fa4, "_capability", lambda device: BLACKWELL)
    with pytest.raises(ValueError, match="deterministic must be False without a backward pass"):
        fa4.arguments(columns, Q, 64, deterministic=True, backward=False)
    for width in (1, (3, 4), (4, 1)):
        with pytest.raises(ValueError, match=r"where width may cut a list, got width=.* \(4, 2\)"):
            fa4.arguments(columns, Q, 64, deterministic=True, width=width)
    arguments = fa4.arguments(columns, Q, 64, deterministic=True)
    assert arguments["deterministic"] is True
    lists = arguments["block_sparse_tensors_bwd"]
    assert lists.spt is False
    assert lists.dq_write_order.shape == lists.mask_block_idx.shape
    assert lists.dq_write_order_full.shape == lists.full_block_idx.shape
    assert arguments["block_sparse_tensors"].dq_write_order is None


def test_host_arrays_are_refused():
    with pytest.raises(TypeError, match="columns must be on a GPU, got a tensor on cpu"):
        fa4.arguments(columns_of_two(), Q, 64)
    with pytest.raises(TypeError, match="cu_seqlens_k must be a torch tensor on a GPU, got list"):
        fa4.packed_arguments([0, 3], [0, 3], 3, 3, 64)
