"""FlexAttention with our BlockMask: the CPU with the reference's lists, a GPU with all of it."""

import copy
import pickle
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
create_block_mask = torch.nn.attention.flex_attention.create_block_mask


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
    # Each length and kind of mask is compiled; past the limit, 8, it would run uncompiled.
    with torch._dynamo.config.patch(recompile_limit=64):
        yield compiled


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


# Batches and heads; refine; narrow lists


def slices(row_num=300):
    """Return columns (2, 3, N, 2): of each slice a rule, and documents, of its own."""
    rules = [{}, {"window": (70, 0)}, {"causal": False}]
    columns = [
        [
            reference.get_attn_mask_q(
                cuts([first, row_num - first]), cuts([first, row_num - first]), **rule
            )
            for rule in rules
        ]
        for first in (100, 220)
    ]
    return np.array(columns, np.int32), row_num


LEADS = {
    "both": np.s_[:, :],
    "batch rows": np.s_[:, :1],
    "heads": np.s_[:1, :],
    "one": np.s_[:1, :1],
}


def assert_as_torch(mask, mod, lead, row_num, column_num, block_size):
    """Compare with create_block_mask of a mod: counts, listed entries, dense."""
    theirs = create_block_mask(mod, *lead, row_num, column_num, device="cpu", BLOCK_SIZE=block_size)
    assert mask.shape == theirs.shape
    np.testing.assert_array_equal(mask.to_dense(), theirs.to_dense())
    for side in ("kv", "full_kv", "q", "full_q"):
        count = getattr(theirs, f"{side}_num_blocks")
        np.testing.assert_array_equal(getattr(mask, f"{side}_num_blocks"), count, err_msg=side)
        ours, indices = (getattr(m, f"{side}_indices") for m in (mask, theirs))
        counts = torch.arange(indices.shape[-1]) < count[..., None]
        np.testing.assert_array_equal(ours, torch.where(counts, indices, 0), err_msg=side)


@pytest.mark.parametrize("kind", LEADS)
def test_slices_are_what_torch_makes(kind):
    columns, row_num = slices()
    columns = np.ascontiguousarray(columns[LEADS[kind]])
    ours = flex.as_block_mask(
        reference.to_blocks(columns, row_num, (64, 32)), columns, row_num, (64, 32)
    )
    bounds = torch.as_tensor(np.broadcast_to(columns, (2, 3, 300, 2)).copy())
    assert_as_torch(
        ours, lambda b, h, q, kv: (q >= bounds[b, h, kv, 1]) & (q < bounds[b, h, kv, 0]),
        columns.shape[:2], row_num, 300, (64, 32),
    )  # fmt: skip


@pytest.mark.parametrize("kind", LEADS)
def test_compiled_on_the_cpu_slices(compiled_on_cpu, kind):
    columns, row_num = slices()
    columns = np.ascontiguousarray(columns[LEADS[kind]])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 300, 64, generator=generator) for _ in range(3))
    mask = flex.as_block_mask(reference.to_blocks(columns, row_num), columns, row_num)
    result = compiled_on_cpu(q, k, v, block_mask=mask)
    torch.testing.assert_close(result, attend_dense(q, k, v, columns), atol=1e-5, rtol=1e-5)


def sliced_mask():
    columns, row_num = slices()
    return flex.as_block_mask(reference.to_blocks(columns, row_num), columns, row_num), columns


@pytest.mark.parametrize(
    ("index", "at"),
    [(1, np.s_[1:2]), (-1, np.s_[1:2]), ((1, 2), np.s_[1:2, 2:3]), (np.s_[:, 1:], np.s_[:, 1:]),
     ((0, -1, slice(None)), np.s_[:1, 2:])],
)  # fmt: skip
def test_slices_of_a_mask_are_masks_of_the_slices(index, at):
    mask, columns = sliced_mask()
    part = mask[index]
    expected = reference.to_blocks(np.ascontiguousarray(columns[at]), 300)
    for field, array in expected._asdict().items():
        np.testing.assert_array_equal(getattr(part, field), array, err_msg=field)
    np.testing.assert_array_equal(part.mask_mod.columns, columns[at])
    assert part.shape == (*expected.kv_num_blocks.shape[:2], 300, 300)


def test_torchs_advice_for_slices_shows_another_mask():
    """Its mask[1] raises in its mask_mod; the original one shows batch row 0."""
    mask, columns = sliced_mask()
    theirs = torch.nn.attention.flex_attention.BlockMask.__getitem__(mask, 1)
    with pytest.raises(RuntimeError, match="mask_mod from a sliced BlockMask"):
        theirs.mask_mod(0, 0, 0, 0)
    row, column = torch.arange(300)[:, None], torch.arange(300)
    dense = reference.to_dense(columns, 300)
    np.testing.assert_array_equal(mask[1].mask_mod(0, 0, row, column), dense[1, 0])
    advised = mask.mask_mod(0, 0, row, column)  # as it is asked once batch row 1 is its row 0
    np.testing.assert_array_equal(advised, dense[0, 0])
    assert not np.array_equal(advised, dense[1, 0])


def test_rows_are_not_sliced():
    mask, _ = sliced_mask()
    for index in ((0, 0, 1), (0, 0, slice(0, 1)), (0, 0, slice(None), 2)):
        with pytest.raises(ValueError, match=r"must not slice rows: .*shard_columns"):
            mask[index]
    with pytest.raises(IndexError, match="mask has 2 there, got index 2"):
        mask[2]


def test_masks_pickle_and_copy():
    mask, columns = sliced_mask()
    for other in (pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask), mask.to("cpu")):
        assert type(other) is flex.ColumnsBlockMask
        np.testing.assert_array_equal(other.to_dense(), mask.to_dense())
        np.testing.assert_array_equal(other.mask_mod.columns, columns)
        np.testing.assert_array_equal(
            other.mask_mod(1, 2, torch.arange(300)[:, None], torch.arange(300)),
            reference.to_dense(columns[1, 2], 300),
        )
        assert other.seq_lengths == (300, 300)


def test_deep_copies_keep_their_own_columns():
    mask, _ = sliced_mask()
    other = copy.deepcopy(mask)
    other.mask_mod.columns.zero_()
    assert not other.mask_mod(0, 0, torch.arange(300)[:, None], torch.arange(300)).any()
    assert mask.mask_mod(0, 0, torch.arange(300)[:, None], torch.arange(300)).any()


def of_other_lengths(rng, count):
    """Yield masks of packs of at least two tiles, each of other lengths, and their columns."""
    for i in range(count):
        lengths = cuts(rng.integers(60, 200, int(rng.integers(2, 5))))
        rule = [{}, {"window": (70, 0)}, {"causal": False}][i % 3]
        columns, rows = reference.get_attn_mask_q(lengths, lengths, **rule), int(lengths[-1]) + 100
        columns = np.concatenate([columns, np.tile(np.int32([rows, 0]), (100, 1))])
        yield flex.as_block_mask(reference.to_blocks(columns, rows), columns, rows), columns


@pytest.mark.slow
def test_flex_attention_is_compiled_twice_for_twenty_packs():
    from torch._dynamo.backends.debugging import aot_eager

    compiled = []

    def backend(module, inputs):
        compiled.append(module)
        return aot_eager(module, inputs)

    torch._dynamo.reset()
    attend = torch.compile(torch.nn.attention.flex_attention.flex_attention, backend=backend)
    for mask, columns in of_other_lengths(np.random.default_rng(0), 20):
        q = torch.randn(1, 2, len(columns), 16)
        result = attend(q, q, q, block_mask=mask)
        torch.testing.assert_close(result, attend_dense(q, q, q, columns), atol=1e-5, rtol=1e-5)
    assert len(compiled) <= 2


class Hole:
    """Hides the keys that are a multiple of 3 + h, of each head, from the rows from 150 on."""

    def __call__(self, b, h, q, kv):
        return (q < 150) | (kv % (3 + h) != 0)


def refined(columns, row_num, block_size=128):
    blocks = reference.to_blocks(columns, row_num, block_size, all_partial=True)
    return flex.as_block_mask(blocks, columns, row_num, block_size, refine=Hole())


def refined_dense(columns, row_num):
    """Return the boolean (1, 3, Q, N) of columns (N, 2) and Hole."""
    row, column = np.arange(row_num)[:, None], np.arange(len(columns))
    holes = np.stack([Hole()(0, h, row, column) for h in range(3)])
    return torch.as_tensor(reference.to_dense(columns, row_num) & holes)[None]


def test_refined_lists_hold_each_tile_that_shows_a_pair():
    columns, row_num = mask_of("documents")
    mask = refined(columns, row_num)
    assert not mask.full_kv_num_blocks.any()
    whole = flex.as_block_mask(reference.to_blocks(columns, row_num), columns, row_num)
    np.testing.assert_array_equal(mask.to_dense(), whole.to_dense())
    shown = [
        mask.mask_mod(0, h, torch.arange(row_num)[:, None], torch.arange(len(columns)))
        for h in range(3)
    ]
    np.testing.assert_array_equal(torch.stack(shown)[None], refined_dense(columns, row_num))
    assert pickle.loads(pickle.dumps(mask)).mask_mod.refine.__class__ is Hole


def test_compiled_on_the_cpu_refined(compiled_on_cpu):
    columns, row_num = mask_of("documents")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 3, row_num, 64, generator=generator) for _ in range(3))
    result = compiled_on_cpu(q, k, v, block_mask=refined(columns, row_num))
    dense = refined_dense(columns, row_num)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_refine_refuses_what_would_not_be_asked():
    columns, row_num = mask_of("documents")
    with pytest.raises(ValueError, match=r"must have no full tiles .* all_partial=True"):
        flex.as_block_mask(
            reference.to_blocks(columns, row_num, 32), columns, row_num, 32, refine=Hole()
        )
    with pytest.raises(TypeError, match=r"refine must be a function of .* got int"):
        flex.as_block_mask(reference.to_blocks(columns, row_num), columns, row_num, refine=3)
    with pytest.raises(ValueError, match="got a mask with refine="):
        refined(columns, row_num)[0]


def narrow_mask(width=(4, 5)):
    """Return a mask of narrow lists, as a GPU has them, and the same at full width."""
    columns, row_num = mask_of("documents")
    lists = reference.to_blocks(columns, row_num, (64, 64), width=width, validate=True)
    tensors = reference.Blocks(*map(torch.as_tensor, lists))
    narrow = flex._of_lists(tensors, torch.as_tensor(columns), (row_num, len(columns)), (64, 64))
    return narrow, flex.as_block_mask(
        reference.to_blocks(columns, row_num, (64, 64)), columns, row_num, (64, 64)
    )


def test_narrow_masks_print_and_become_dense():
    """torch's own index out of bounds there, which on a GPU ends the process."""
    narrow, whole = narrow_mask()
    np.testing.assert_array_equal(narrow.to_dense(), whole.to_dense())
    assert str(narrow) == str(whole)
    assert narrow.sparsity() == whole.sparsity()
    assert "kv_indices=torch.Size([1, 1, 6, 4])" in repr(narrow)
    np.testing.assert_array_equal(narrow[0, 0].to_dense(), whole.to_dense())
    np.testing.assert_array_equal(narrow.to("cpu").to_dense(), whole.to_dense())
    with pytest.raises(
        ValueError, match=r"as wide as there are tiles, \(6, 6\), .* got width=\(4, 5\)"
    ):
        narrow._adjust(300, 300)
    assert whole._adjust(320, 320).shape == (1, 1, 320, 320)


def test_narrow_lists_are_refused_where_they_are_not_read():
    columns, row_num = mask_of("documents")
    narrow = reference.to_blocks(columns, row_num, (64, 64), width=(2, 3))
    with pytest.raises(
        ValueError, match=r"must be as wide as there are tiles, \(6, 6\), on the CPU"
    ):
        flex.as_block_mask(narrow, columns, row_num, (64, 64))
    wider = reference.to_blocks(columns, row_num, (64, 64), width=(4, 3))
    mixed = narrow._replace(full_kv_indices=wider.full_kv_indices)
    with pytest.raises(
        ValueError, match=r"blocks\.full_kv_indices must be int32 of shape \(1, 1, 6, 2\)"
    ):
        flex.as_block_mask(mixed, columns, row_num, (64, 64))
    mixed = narrow._replace(full_q_indices=wider.kv_indices)
    with pytest.raises(
        ValueError, match=r"blocks\.full_q_indices must be int32 of shape \(1, 1, 6, 3\)"
    ):
        flex.as_block_mask(mixed, columns, row_num, (64, 64))


# On a GPU


@pytest.fixture(scope="module")
def compiled():
    from torch.nn.attention.flex_attention import flex_attention

    with torch._dynamo.config.patch(recompile_limit=64):  # as on the CPU
        yield torch.compile(flex_attention)


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
FORM = "columns must be int32 of shape (N, 2) or (b, h, N, 2), got"
BAD_COLUMNS = [
    (COLUMNS.long(), TypeError, f"{FORM} int64 of shape (6, 2)"),
    (COLUMNS.float(), TypeError, f"{FORM} float32 of shape (6, 2)"),
    (COLUMNS.repeat(1, 2), ValueError, f"{FORM} int32 of shape (6, 4)"),
    (COLUMNS.T, ValueError, f"{FORM} int32 of shape (2, 6)"),
    (COLUMNS.repeat(1, 2)[:, :2], ValueError,
     "columns must be C-contiguous, got a strided view of shape (6, 2)"),
    ([[6, 0]], TypeError, "columns must be int32 of shape (N, 2) or (b, h, N, 2), got list"),
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
    message = other_shape("full_q_indices", (1, 1, 3, 2), 6, 6, two, (1, 1, 3, 3))
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
        (wide, 8, 128, "columns must be int32 of shape (N, 2) or (b, h, N, 2), got int32 of shape"),
        (good.long(), 8, 128, "columns must be int32 of shape (N, 2) or (b, h, N, 2), got int64"),
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


# Narrow lists, slices and refine on a GPU


def long_pack(tokens=131072, document=3000):
    """Return cu_seqlens of documents of up to so many tokens, but the last; and the longest."""
    lengths = np.random.default_rng(0).integers(1, document + 1, 2 * tokens // document + 1)
    cut = np.append(np.minimum(cuts(lengths), tokens), tokens).astype(np.int32)
    return cut, int(np.diff(cut).max())


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("query_rows", [None, 64])
def test_gpu_narrow_lists_give_the_bits_of_full_width(compiled, causal, query_rows):
    """Forward and backward; of 64 query rows too, which torch computes by its flex_decode."""
    cu, document = long_pack(16384)
    k = torch.as_tensor(cu, device="cuda")
    q = k if query_rows is None else torch.clamp(k, max=query_rows)
    rows, n = int(q[-1]), int(k[-1])
    width = maskq_cupy.blocks_width(document, causal=causal)
    if query_rows is not None:
        width = (n // 128 // 2, 1)
    inputs = queries_keys_values(rows, n, "cuda")
    results = []
    # The second widths are compiled anew, perhaps to other sums: what is compared comes after both.
    for room in (None, width, None, width):
        mask = flex.packed_block_mask(q, k, rows, n, causal=causal, width=room)
        out = compiled(*inputs, block_mask=mask)
        torch.manual_seed(1)
        results.append((out, *torch.autograd.grad(out, inputs, torch.randn_like(out))))
    for whole, narrow in zip(*results[2:], strict=True):
        assert torch.equal(whole, narrow)


@pytest.mark.gpu
def test_gpu_narrow_masks_never_index_out_of_bounds():
    """A device-side assertion would end the process; lists equal those of the reference."""
    columns, row_num = mask_of("documents")
    given = torch.as_tensor(columns, device="cuda")
    whole, narrow = (flex.block_mask(given, row_num, 64, width=w) for w in (None, (4, 5)))
    expected = reference.to_blocks(columns, row_num, 64, width=(4, 5))
    for field, array in expected._asdict().items():
        np.testing.assert_array_equal(getattr(narrow, field).cpu(), array, err_msg=field)
    assert str(narrow) == str(whole)
    assert narrow.to_dense().equal(whole.to_dense())
    assert narrow[0, 0].to_dense().equal(whole.to_dense())
    with pytest.raises(ValueError, match="got width="):
        narrow._adjust(300, 300)
    torch.cuda.synchronize()
    host = narrow.to("cpu")
    assert host.mask_mod.columns.device.type == "cpu"
    np.testing.assert_array_equal(host.to_dense(), whole.to_dense().cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", LEADS)
def test_gpu_slices_forward_and_backward(compiled, kind):
    """Heads of several kinds, batch rows of their own."""
    columns, row_num = slices()
    columns = np.ascontiguousarray(columns[LEADS[kind]])
    mask = flex.block_mask(torch.as_tensor(columns, device="cuda"), row_num, width=3)
    inputs = [torch.randn(2, 3, 300, 64, device="cuda", requires_grad=True) for _ in range(3)]
    assert_same(compiled(*inputs, block_mask=mask), attend_dense(*inputs, columns), inputs)


def global_row(b, h, q, kv):
    return (q % 100 == 0) | (kv % 2 == 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["hole", "global row", "random of each head"])
def test_gpu_refined_forward_and_backward(compiled, name):
    n = 500
    columns = torch.tensor([[n, 0]] * n, dtype=torch.int32, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    pairs = torch.rand(3, n, n, generator=generator, device="cuda") < 0.3
    pairs[:, torch.arange(n), torch.arange(n)] = True
    mods = {
        "hole": Hole(),
        "global row": global_row,
        "random of each head": lambda b, h, q, kv: pairs[h, q, kv],
    }
    inputs = [torch.randn(1, 3, n, 64, device="cuda", requires_grad=True) for _ in range(3)]
    result = compiled(*inputs, block_mask=flex.block_mask(columns, n, refine=mods[name]))
    row, column = torch.arange(n, device="cuda")[:, None], torch.arange(n, device="cuda")
    dense = torch.stack([mods[name](0, h, row, column) for h in range(3)])
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=dense)
    assert_same(result, expected, inputs)


@pytest.mark.gpu
def test_gpu_flex_attention_is_compiled_twice_for_twenty_packs():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    attend = torch.compile(torch.nn.attention.flex_attention.flex_attention, backend=counter)
    for mask, columns in of_other_lengths(np.random.default_rng(0), 20):
        q = torch.randn(1, 2, len(columns), 64, device="cuda")
        attend(q, q, q, block_mask=mask.to("cuda"))
    assert counter.frame_count <= 2


@pytest.mark.gpu
def test_gpu_four_million_tokens_end_to_end(compiled):
    """Documents of 16 K, one head: some against themselves alone, forward and backward."""
    tokens, document = 2**22, 2**14
    cu = torch.arange(0, tokens + 1, document, dtype=torch.int32, device="cuda")
    width = maskq_cupy.blocks_width(document)
    mask = flex.packed_block_mask(cu, cu, tokens, tokens, width=width)
    inputs = [
        torch.randn(1, 1, tokens, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]
    result = compiled(*inputs, block_mask=mask)
    upstream = torch.randn_like(result)
    gradients = torch.autograd.grad(result, inputs, upstream)
    for b in (0, 1, 100, 255):
        part = slice(b * document, (b + 1) * document)
        own = [x[:, :, part].detach().requires_grad_() for x in inputs]
        alone = torch.nn.functional.scaled_dot_product_attention(*own, is_causal=True)
        right = torch.autograd.grad(alone, own, upstream[:, :, part])
        for got, expected in zip((result, *gradients), (alone, *right), strict=True):
            torch.testing.assert_close(got[:, :, part], expected, atol=3e-2, rtol=3e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [{}, {"window": (30, 0)}, {"causal": False}])
def test_gpu_padded_batch_is_as_each_row_alone(compiled, rule):
    """Padded left, right, both and not at all; forward and gradients, of tokens."""
    length, places = 300, [(170, 300), (0, 200), (40, 299), (0, 300)]
    at = torch.arange(length, device="cuda")
    given = torch.stack([(at >= start) & (at < end) for start, end in places])
    mask = flex.padded_block_mask(given.long(), **rule)
    assert mask.shape == (4, 1, length, length)
    inputs = [torch.randn(4, 2, length, 64, device="cuda", requires_grad=True) for _ in range(3)]
    out = compiled(*inputs, block_mask=mask)
    result, expected = [], []
    for row, (start, end) in enumerate(places):
        cu = [0, end - start]
        columns = reference.get_attn_mask_q(cu, cu, **rule)
        own = [x[row : row + 1, :, start:end] for x in inputs]
        expected.append(attend_dense(*own, columns))
        result.append(out[row : row + 1, :, start:end])
    assert_same(torch.cat(result, dim=2), torch.cat(expected, dim=2), inputs)


def test_padded_masks_are_refused_with_what_they_must_be():
    pytest.importorskip("cupy")
    with pytest.raises(TypeError, match="attention_mask must be on a GPU, got a tensor on cpu"):
        flex.padded_block_mask(torch.ones(2, 5))


def test_padded_mask_of_a_compiled_forward_is_the_references():
    """On the CPU, where it is made of the operators while torch traces."""
    pytest.importorskip("cupy")
    given = torch.tensor([[0] * 130 + [1] * 170, [1] * 200 + [0] * 100])

    def lists(attention_mask):
        mask = flex.padded_block_mask(attention_mask, window=(60, 0))
        return [getattr(mask, name) for name in reference.Blocks._fields]

    made = torch.compile(lists, backend="aot_eager", fullgraph=True)(given)
    cu = reference.cu_seqlens_from_padding(given.numpy())
    columns = reference.get_attn_mask_q(*cu, kv_token_num=600, window=(60, 0))
    expected = reference.to_blocks(reference.split_columns(columns, 2, 600), 300)
    for name, got, array in zip(reference.Blocks._fields, made, expected, strict=True):
        np.testing.assert_array_equal(got, array, err_msg=name)


def test_narrow_lists_are_refused_in_a_compiled_forward_on_the_cpu():
    """torch gives the refused call up to Python, which takes no columns on the CPU."""
    pytest.importorskip("cupy")
    columns = torch.zeros(300, 2, dtype=torch.int32)
    for width in (None, 2):
        made = torch.compile(
            lambda given, w=width: flex.block_mask(given, 300, width=w).kv_indices,
            backend="aot_eager",
        )
        if width is None:
            assert made(columns).shape == (1, 1, 3, 3)
            continue
        with pytest.raises(TypeError, match="columns must be on a GPU"):
            made(columns)
