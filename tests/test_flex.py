"""FlexAttention with our BlockMask: the CPU with the reference's lists, a GPU with all of it."""

import re
from itertools import pairwise

import numpy as np
import pytest
from strategies import cuts
from test_tree import paths_alone

import maskq_cupy
from maskq_cupy import reference

torch = pytest.importorskip("torch", reason="torch is not installed: flex is not tested")
flex = pytest.importorskip("maskq_cupy.flex")


# Packs whose rows all see something, so that a dense softmax has an answer for each.
PACKS = {
    "documents": ([100, 0, 200, 57], [100, 0, 200, 57], {}),
    "sliding window": ([300, 84], [300, 84], {"window": (100, 0)}),
    "cached prefix": ([64, 1, 130], [300, 129, 130], {}),
    "full": ([120, 90], [200, 33], {"causal": False}),
    "chunks": ([300, 84], [300, 84], {"chunk_size": 128, "num_sink_tokens": 1}),
    "blocks from the top left": ([100, 90], [200, 90], {"causal_block": 32, "align": "top_left"}),
    "images": ([250, 150], [250, 150], {"spans": [[20, 200], [240, 300]], "window": (64, 0)}),
}


def spans():
    """Return cu_seqlens and intervals: text is causal, rows of an image see all of the image."""
    row = np.arange(400)
    image = (row >= 150) & (row < 290)
    ends = np.where(image, 290, row + 1)
    return cuts([400]), np.stack([np.zeros(400), ends], axis=1).astype(np.int32)


def mask_of(name):
    """Return the columns of a named mask on the host, and its rows."""
    if name == "image spans":
        cu, intervals = spans()
        return reference.get_attn_mask_q(cu, cu, intervals), 400
    q_lens, k_lens, rule = PACKS[name]
    return reference.get_attn_mask_q(cuts(q_lens), cuts(k_lens), **rule), sum(q_lens)


MASKS = [*PACKS, "image spans"]


def queries_keys_values(row_num, column_num, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, 2, n, 64, generator=generator).to(device, dtype).requires_grad_()
        for n in (row_num, column_num, column_num)
    ]


def attend_dense(q, k, v, columns):
    dense = torch.as_tensor(reference.to_dense(columns, q.shape[-2]), device=q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)


def test_mask_mod_is_the_dense_mask():
    columns, row_num = mask_of("cached prefix")
    shown = flex.mask_mod(columns.reshape(1, 1, -1, 2))
    row, column = torch.arange(row_num)[:, None], torch.arange(len(columns))
    np.testing.assert_array_equal(shown(0, 0, row, column), reference.to_dense(columns, row_num))


@pytest.mark.parametrize("name", MASKS)
def test_as_block_mask_is_what_torch_makes(name):
    from torch.nn.attention.flex_attention import create_block_mask

    columns, row_num = mask_of(name)
    blocks = reference.to_blocks(columns, row_num, (128, 64))
    ours = flex.as_block_mask(blocks, columns, row_num, (128, 64))
    theirs = create_block_mask(
        flex.mask_mod(columns), None, None, row_num, len(columns), device="cpu",
        BLOCK_SIZE=(128, 64),
    )  # fmt: skip
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert ours.sparsity() == theirs.sparsity()
    np.testing.assert_array_equal(ours.to_dense(), theirs.to_dense())
    assert ours.kv_indices.data_ptr() == blocks.kv_indices.ctypes.data


@pytest.fixture(scope="module")
def compiled_on_cpu():
    """flex_attention, compiled: uncompiled it does not read the lists."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)  # dynamic: torch's C++ is faulty
    q = torch.zeros(1, 1, 128, 64)
    try:
        compiled(q, q, q)
    except Exception as error:
        pytest.skip(f"flex_attention does not compile here: {type(error).__name__}")
    return compiled


@pytest.mark.parametrize("name", MASKS)
def test_compiled_on_the_cpu_with_the_references_lists(compiled_on_cpu, name):
    columns, row_num = mask_of(name)
    q, k, v = (x.detach() for x in queries_keys_values(row_num, len(columns)))
    mask = flex.as_block_mask(reference.to_blocks(columns, row_num), columns, row_num)
    result = compiled_on_cpu(q, k, v, block_mask=mask)
    torch.testing.assert_close(result, attend_dense(q, k, v, columns), atol=1e-5, rtol=1e-5)


def test_compiled_on_the_cpu_reads_the_lists(compiled_on_cpu):
    """Else the test above would pass with any lists."""
    columns, row_num = mask_of("documents")
    q, k, v = (x.detach() for x in queries_keys_values(row_num, len(columns)))
    none = flex.as_block_mask(reference.to_blocks(0 * columns, row_num), columns, row_num)
    result = compiled_on_cpu(q, k, v, block_mask=none)
    assert not torch.allclose(result, attend_dense(q, k, v, columns), atol=0.1)


# Two trees: a cached prompt, of keys alone, with two answers and a third that goes on from the
# second; a prompt with two answers.
TREES = np.array([-1, 0, 0, 2, -1, 4, 4], np.int32)
TREES_Q, TREES_K = cuts([0, 70, 40, 130, 150, 33, 64]), cuts([200, 70, 40, 130, 150, 33, 64])


def test_compiled_on_the_cpu_trees_are_as_each_path_alone(compiled_on_cpu):
    columns = reference.tree_attn_mask_q(TREES, TREES_Q, TREES_K)
    row_num = int(TREES_Q[-1])
    inputs = [x.detach() for x in queries_keys_values(row_num, len(columns))]
    mask = flex.as_block_mask(reference.to_blocks(columns, row_num), columns, row_num)
    packed = compiled_on_cpu(*inputs, block_mask=mask)
    rows, alone = paths_alone(torch, *inputs, TREES, TREES_Q, TREES_K)
    torch.testing.assert_close(packed[..., rows, :], alone, atol=1e-5, rtol=1e-5)


def test_host_arrays_are_refused_with_a_way_out():
    pytest.importorskip("cupy")
    columns, row_num = mask_of("documents")
    for given in (columns, torch.as_tensor(columns)):
        with pytest.raises(TypeError, match=r"columns must be on a GPU, got .* as_block_mask"):
            flex.block_mask(given, row_num)
    cu = torch.tensor([0, 3])
    with pytest.raises(TypeError, match="cu_seqlens_k must be on a GPU"):
        flex.packed_block_mask(cu, cu, 3, 3)
    with pytest.raises(TypeError, match="cu_seqlens_k must be a torch tensor on a GPU, got list"):
        flex.packed_block_mask([0, 3], [0, 3], 3, 3)


# On a GPU


@pytest.fixture(scope="module")
def compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def packed_mask(name, **options):
    """Return the BlockMask of a named mask by packed_block_mask, from tensors on the GPU."""
    if name == "image spans":
        cu, intervals = spans()
        q = k = torch.as_tensor(cu, device="cuda")
        rule, total = {"attn_mask_kv": torch.as_tensor(intervals, device="cuda")}, (400, 400)
    else:
        q_lens, k_lens, rule = PACKS[name]
        q, k = (torch.as_tensor(cuts(lens), device="cuda") for lens in (q_lens, k_lens))
        if "spans" in rule:
            rule = rule | {"spans": torch.as_tensor(rule["spans"], device="cuda")}
        total = sum(q_lens), sum(k_lens)
    return flex.packed_block_mask(q, k, *total, **rule, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [128, (256, 128)])
@pytest.mark.parametrize("name", MASKS)
def test_gpu_lists(name, block_size):
    columns, row_num = mask_of(name)
    expected = reference.to_blocks(columns, row_num, block_size)
    by_columns = flex.block_mask(torch.as_tensor(columns, device="cuda"), row_num, block_size)
    for mask in (by_columns, packed_mask(name, block_size=block_size)):
        assert mask.shape == (1, 1, row_num, len(columns))
        for field, array in expected._asdict().items():
            np.testing.assert_array_equal(getattr(mask, field).cpu(), array, err_msg=field)


@pytest.mark.gpu
@pytest.mark.parametrize("column_num", [0, 5, 1000])
@pytest.mark.parametrize("row_num", [0, 5, 700])
def test_gpu_lists_lie_as_torchs_own(row_num, column_num):
    """Parts of one allocation, of the strides and the alignment that compiled code relies on."""
    columns = torch.zeros(column_num, 2, dtype=torch.int32, device="cuda")
    mask = flex.block_mask(columns, row_num)
    lists = {field: getattr(mask, field) for field in reference.Blocks._fields}
    for field, part in lists.items():
        assert part.stride() == torch.empty(part.shape).stride(), field
        assert part.data_ptr() % 16 == 0, field
    assert len({part.untyped_storage().data_ptr() for part in lists.values()}) == 1


COLUMNS = torch.tensor([[6, 0], [6, 1], [6, 2], [6, 3], [6, 4], [6, 5]], dtype=torch.int32)
FORM = "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got"
BAD_COLUMNS = [
    (COLUMNS.long(), TypeError, f"{FORM} int64 of shape (6, 2)"),
    (COLUMNS.float(), TypeError, f"{FORM} float32 of shape (6, 2)"),
    (COLUMNS.repeat(1, 2), ValueError, f"{FORM} int32 of shape (6, 4)"),
    (COLUMNS.T, ValueError, f"{FORM} int32 of shape (2, 6)"),
    (COLUMNS.repeat(1, 2)[:, :2], ValueError,
     "columns must be C-contiguous, got a strided view of shape (6, 2)"),
    ([[6, 0]], TypeError, "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got list"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "kind", "message"), BAD_COLUMNS)
def test_columns_of_another_form_are_refused(columns, kind, message):
    blocks = reference.to_blocks(COLUMNS.numpy(), 6, 2)
    for call in (lambda: flex.mask_mod(columns), lambda: flex.as_block_mask(blocks, columns, 6, 2)):
        with pytest.raises(kind) as raised:
            call()
        assert str(raised.value) == message


def other_shape(name, shape, rows, columns, size, got):
    return (
        f"blocks.{name} must be int32 of shape {shape}, for {rows} rows and {columns} columns in "
        f"tiles of {size}, got int32 of shape {got}"
    )


def other_lists(blocks):
    """Arguments whose lists are those of another mask, and what is said of the first that is."""
    two, three = (2, 2), (3, 3)
    message = other_shape("kv_num_blocks", (1, 1, 2), 6, 6, three, (1, 1, 3))
    yield (blocks, COLUMNS, 6, 3), message
    message = other_shape("kv_num_blocks", (1, 1, 4), 8, 6, two, (1, 1, 3))
    yield (blocks, COLUMNS, 8, 2), message
    message = other_shape("kv_indices", (1, 1, 3, 2), 6, 4, two, (1, 1, 3, 3))
    yield (blocks, COLUMNS[:4], 6, 2), message
    short = blocks._replace(q_indices=blocks.q_indices[..., :2])
    message = other_shape("q_indices", (1, 1, 3, 3), 6, 6, two, (1, 1, 3, 2))
    yield (short, COLUMNS, 6, 2), message
    elsewhere = torch.empty(1, 1, 3, 3, dtype=torch.int32, device="meta")
    message = "blocks.q_indices must be where the columns are, on cpu, got a tensor on meta"
    yield (blocks._replace(q_indices=elsewhere), COLUMNS, 6, 2), message


def test_lists_of_another_mask_are_refused():
    """Lists of other tiles show pairs that the mask does not."""
    blocks = reference.to_blocks(COLUMNS.numpy(), 6, 2)
    assert flex.as_block_mask(blocks, COLUMNS, 6, 2).shape == (1, 1, 6, 6)
    for given, message in other_lists(blocks):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            flex.as_block_mask(*given)
    wide = blocks._replace(kv_indices=blocks.kv_indices.astype("int64"))
    with pytest.raises(TypeError, match=r"blocks\.kv_indices must be int32 of .* got int64 of"):
        flex.as_block_mask(wide, COLUMNS, 6, 2)
    with pytest.raises(TypeError, match=r"blocks must be a maskq_cupy\.Blocks, got tuple"):
        flex.as_block_mask(tuple(blocks), COLUMNS, 6, 2)
    with pytest.raises(TypeError, match="q_token_num must be an int, got float"):
        flex.as_block_mask(blocks, COLUMNS, 6.0, 2)


@pytest.mark.gpu
def test_gpu_refuses_what_no_kernel_reads():
    good = torch.zeros(8, 2, dtype=torch.int32, device="cuda")
    wide = torch.zeros(8, 4, dtype=torch.int32, device="cuda")
    for columns, row_num, block_size, message in (
        (wide, 8, 128, "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got int32 of shape"),
        (good.long(), 8, 128, "columns must be int32 of shape (N, 2) or (1, 1, N, 2), got int64"),
        (wide[:, :2], 8, 128, "columns must be C-contiguous, got a strided view"),
        (wide.view(-1)[1:17].view(8, 2), 8, 128, "columns must be 8-byte aligned, got address 0x"),
        (good, -1, 128, "q_token_num must be in [0, 2**31 - 1], got -1"),
        (good, 8, (128, 0), "block_size must be in [1, 2**31 - 1], got 0"),
    ):
        kind = TypeError if columns.dtype != torch.int32 else ValueError
        with pytest.raises(kind, match=f"^{re.escape(message)}"):
            flex.block_mask(columns, row_num, block_size)


@pytest.mark.gpu
def test_gpu_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    columns, row_num = mask_of("documents")
    expected = reference.to_blocks(columns, row_num)
    cu = torch.as_tensor(cuts(PACKS["documents"][0]), device="cuda:1")
    by_columns = flex.block_mask(torch.as_tensor(columns, device="cuda:1"), row_num)
    for mask in (by_columns, flex.packed_block_mask(cu, cu, row_num, len(columns))):
        assert torch.cuda.current_device() == 0
        for field, array in expected._asdict().items():
            part = getattr(mask, field)
            assert part.device == cu.device
            np.testing.assert_array_equal(part.cpu(), array, err_msg=field)


def assert_same(result, expected, inputs):
    """Compare results and gradients."""
    torch.manual_seed(1)
    upstream = torch.randn_like(result)
    gradients = torch.autograd.grad(result, inputs, upstream)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    for got, right in zip((result, *gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(got, right, atol=2e-2, rtol=2e-2)  # tf32 in the kernels


@pytest.mark.gpu
@pytest.mark.parametrize("name", MASKS)
def test_gpu_forward_and_backward(compiled, name):
    columns, row_num = mask_of(name)
    inputs = queries_keys_values(row_num, len(columns), "cuda")
    result = compiled(*inputs, block_mask=packed_mask(name))
    assert_same(result, attend_dense(*inputs, columns), inputs)


@pytest.mark.gpu
def test_gpu_documents_are_as_each_alone(compiled):
    """Packed documents against scaled_dot_product_attention of each, forward and backward."""
    q_lens, _, _ = PACKS["documents"]
    cu = cuts(q_lens)
    inputs = queries_keys_values(int(cu[-1]), int(cu[-1]), "cuda")
    result = compiled(*inputs, block_mask=packed_mask("documents"))
    alone = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[:, :, start:end] for x in inputs), is_causal=True
        )
        for start, end in pairwise(cu)
        if start < end
    ]
    assert_same(result, torch.cat(alone, dim=2), inputs)


@pytest.mark.gpu
def test_gpu_trees_are_as_each_path_alone(compiled):
    """Forward and backward: a token of many paths gets the gradients of all of them."""
    given = [torch.as_tensor(array, device="cuda") for array in (TREES, TREES_Q, TREES_K)]
    row_num, column_num = int(TREES_Q[-1]), int(TREES_K[-1])
    columns = maskq_cupy.tree_attn_mask_q(*given, column_num)
    inputs = queries_keys_values(row_num, column_num, "cuda")
    packed = compiled(*inputs, block_mask=flex.block_mask(columns, row_num))
    rows, alone = paths_alone(torch, *inputs, TREES, TREES_Q, TREES_K)
    assert_same(packed[..., rows, :], alone, inputs)


@pytest.mark.gpu
def test_gpu_on_a_side_stream_of_torch():
    """The lists are ordered on torch's current stream, behind what it still writes."""
    columns, row_num = mask_of("documents")
    expected = reference.to_blocks(columns, row_num)
    right = torch.as_tensor(columns, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(5):
            given = torch.zeros_like(right)
            torch.cuda._sleep(20_000_000)
            given.copy_(right)
            mask = flex.block_mask(given, row_num)
            given.zero_()
            np.testing.assert_array_equal(mask.q_indices.cpu(), expected.q_indices)
            np.testing.assert_array_equal(mask.kv_num_blocks.cpu(), expected.kv_num_blocks)


@pytest.mark.gpu
def test_gpu_in_a_graph_of_torch():
    """torch.cuda.graph captures the whole call, allocations too."""
    cu = torch.as_tensor(cuts([100, 257]), device="cuda")
    flex.packed_block_mask(cu, cu, 357, 357)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = flex.packed_block_mask(cu, cu, 357, 357)
    for first in (0, 1, 128, 200, 357):
        cu[1] = first
        graph.replay()
        columns = reference.get_attn_mask_q([0, first, 357], [0, first, 357])
        expected = reference.to_blocks(columns, 357)
        for field, array in expected._asdict().items():
            np.testing.assert_array_equal(getattr(mask, field).cpu(), array, err_msg=field)
