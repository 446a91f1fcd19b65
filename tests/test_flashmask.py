"""FlashMask's tensors from columns, on the CPU, and the lists that its kernel reads on sm_90."""

import numpy as np
import pytest

import maskq_cupy
from maskq_cupy import flashmask, reference

COLUMNS = reference.get_attn_mask_q([0, 120, 300], [0, 150, 400], None, 410)


def to_torch(array):
    return pytest.importorskip("torch").from_numpy(array)


def to_paddle(array):
    return pytest.importorskip("paddle").utils.dlpack.from_dlpack(array)


FRAMEWORKS = {"torch": to_torch, "paddle": to_paddle}


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    pytest.importorskip(request.param)
    return request.param


def pointer(tensor):
    return tensor.data_ptr()


@pytest.mark.parametrize("form", [(), (1, 1), (2, 1), (1, 3), (2, 3)])
def test_shape_is_that_of_the_columns(framework, form):
    columns = np.broadcast_to(COLUMNS, (*form, 410, 2)).copy()
    given = FRAMEWORKS[framework](columns)
    for result in (
        flashmask.startend_row_indices(given),
        flashmask.startend_row_indices(columns, framework=framework),
    ):
        assert type(result).__module__.partition(".")[0] == framework
        assert tuple(result.shape) == (*(form or (1, 1)), 410, 2)
        assert "int32" in str(result.dtype)
        assert result.is_contiguous()
        assert pointer(result) == pointer(given) or pointer(result) == columns.ctypes.data
        np.testing.assert_array_equal(result.numpy(), columns.reshape(result.shape))


@pytest.mark.parametrize("form", [(), (2, 1)])
def test_heads_are_repeated(framework, form):
    columns = np.broadcast_to(COLUMNS, (*form, 410, 2)).copy()
    result = flashmask.startend_row_indices(FRAMEWORKS[framework](columns), 4)
    assert result.is_contiguous()
    expected = np.broadcast_to(columns, (2 if form else 1, 4, 410, 2))
    np.testing.assert_array_equal(result.numpy(), expected)


def test_heads_as_there_are_share_the_memory(framework):
    given = FRAMEWORKS[framework](np.stack([COLUMNS, COLUMNS]).reshape(1, 2, 410, 2))
    assert pointer(flashmask.startend_row_indices(given, 2)) == pointer(given)


def test_what_is_refused(framework):
    make = FRAMEWORKS[framework]
    two = make(np.stack([COLUMNS, COLUMNS])[None])
    with pytest.raises(ValueError, match=r"heads must be 2, as of columns of shape .*, got 3"):
        flashmask.startend_row_indices(two, 3)
    with pytest.raises(ValueError, match=r"heads must be in \[1, .*, got 0"):
        flashmask.startend_row_indices(two, 0)
    with pytest.raises(TypeError, match=r"columns must be int32 of shape .*, got int64 of shape"):
        flashmask.startend_row_indices(make(COLUMNS.astype(np.int64)))
    with pytest.raises(ValueError, match=r"or \(b, h, N, 2\), got int32 of shape \(410, 4\)"):
        flashmask.startend_row_indices(make(np.hstack([COLUMNS, COLUMNS])))
    with pytest.raises(ValueError, match=r'framework must be "torch" or "paddle".*numpy.*columns'):
        flashmask.startend_row_indices(COLUMNS)
    with pytest.raises(ValueError, match=r'framework must be "torch" or "paddle".*got .jax'):
        flashmask.startend_row_indices(COLUMNS, framework="jax")


def test_strided_columns_are_copied(framework):
    wide = FRAMEWORKS[framework](np.hstack([COLUMNS, 0 * COLUMNS]))
    result = flashmask.startend_row_indices(wide[:, :2])
    assert result.is_contiguous()
    np.testing.assert_array_equal(result.numpy()[0, 0], COLUMNS)


def kernels_lists(columns, row_num, size):
    """Return partial and full tiles of each row tile, by the words of the kernel's own lists.

    From each column tile's least and greatest bounds: a tile is skipped where no pair can be shown,
    partial where a pair may be hidden, which bit 30 says, or where it hangs over the last column.
    """
    tiles = [columns[start : start + size] for start in range(0, len(columns), size)]
    partial, full = [], []
    for start in range(0, row_num, size):
        end = min(start + size, row_num)
        partial.append([])
        full.append([])
        for column, tile in enumerate(tiles):
            lts, ute = tile.T
            if start >= lts.max() or end <= ute.min():
                continue
            hides = end > lts.min() or start < ute.max()
            if hides or len(tile) < size:
                partial[-1].append(column | hides << 30)
            else:
                full[-1].append(column)
    return partial, full


def test_lists_are_the_kernels_own(framework):
    """Of a pack whose tiles its own bounds tell apart, bits and order alike."""
    columns = reference.get_attn_mask_q([0, 300, 1024], [0, 300, 1024])
    blocks = reference.to_blocks(columns, 1024, 128)
    lists = flashmask.forward_lists(blocks, framework=framework)
    partial_num, partial, full_num, full = (tensor.numpy() for tensor in lists)
    assert all("int32" in str(tensor.dtype) for tensor in lists)
    expected_partial, expected_full = kernels_lists(columns, 1024, 128)
    for row in range(8):
        assert partial[0, 0, row, : partial_num[0, 0, row]].tolist() == expected_partial[row]
        assert full[0, 0, row, : full_num[0, 0, row]].tolist() == expected_full[row]
    assert (partial_num > 0).any()
    assert (full_num > 0).any()
    assert pointer(lists[3]) == blocks.full_kv_indices.ctypes.data
    assert blocks.kv_indices.max() < 8


def test_lists_of_either_framework_stay_there(framework):
    blocks = reference.to_blocks(COLUMNS, 300, 128)
    given = reference.Blocks(*map(FRAMEWORKS[framework], blocks))
    for tensor in flashmask.forward_lists(given):
        assert type(tensor).__module__.partition(".")[0] == framework


@pytest.mark.gpu
def test_gpu_kernel_gives_with_our_lists_what_it_gives_alone():
    """Where the fork of FlashAttention-4 is installed that has it."""
    interface = pytest.importorskip(
        "flash_mask.cute.interface", reason="FlashMask's fork is absent"
    )
    import paddle
    from flash_mask.cute.block_sparsity import BlockSparseTensorsPaddle

    columns = reference.get_attn_mask_q([0, 300, 1024], [0, 300, 1024])
    on_gpu = maskq_cupy.get_attn_mask_q([0, 300, 1024], [0, 300, 1024])
    bounds = flashmask.startend_row_indices(on_gpu, framework="paddle")
    blocks = maskq_cupy.to_blocks(on_gpu, 1024)
    lists = flashmask.forward_lists(blocks, framework="paddle")
    q, k, v = (paddle.randn([1, 1024, 4, 128]).astype("bfloat16") for _ in range(3))

    def attend(**options):
        out = interface._flash_attn_fwd(
            q, k, v, startend_row_indices=bounds, causal=False, **options
        )[0]
        return out.astype("float32").numpy()

    ours = attend(block_sparse_tensors=BlockSparseTensorsPaddle(*lists))
    np.testing.assert_allclose(ours, attend(), atol=1e-2)
    shown = paddle.to_tensor(reference.to_dense(columns, 1024))[None, None]
    dense = paddle.nn.functional.scaled_dot_product_attention(
        *(x.astype("float32") for x in (q, k, v)), attn_mask=shown
    )
    np.testing.assert_allclose(ours, dense.numpy(), atol=2e-2)
