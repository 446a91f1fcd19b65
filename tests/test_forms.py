"""Four columns and the dense mask: the reference, the kernels on the CPU, the GPU functions."""

import doctest

import numpy as np
import oracle
import pytest
from on_cpu import emulator
from strategies import random_pack

import maskq_cupy
from maskq_cupy import plan, reference

needs_gxx = pytest.mark.skipif(not emulator.available(), reason="g++ is not installed")


def random_columns(rng, tokens=300):
    """Return columns of any bits around the rows, and a number of rows."""
    column_num, row_num = (int(n) for n in rng.integers(0, tokens + 1, 2))
    columns = rng.integers(-2, row_num + 3, (column_num, 2)).astype(np.int32)
    columns[rng.random(columns.shape) < 0.05] = rng.choice([-(2**31), 2**31 - 1])
    return columns, row_num


@pytest.mark.parametrize("module", [reference, plan])
def test_examples_of_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_dense_is_what_the_columns_show():
    rng = np.random.default_rng(0)
    for _ in range(50):
        columns, row_num = random_columns(rng, 60)
        dense = reference.to_dense(columns, row_num)
        assert dense.dtype == np.bool_
        np.testing.assert_array_equal(dense, oracle.shown(columns, row_num))


def test_four_columns_hide_what_two_columns_hide():
    """Four columns mask the rows [LTS, total) and [0, UTE)."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        pack = random_pack(rng, 60)
        columns = reference.get_attn_mask_q(*pack.arguments(), **pack.rule)
        row_num = int(pack.cu_seqlens_q[len(pack.cu_seqlens_k) - 1])
        four = reference.to_four_columns(columns, row_num)
        assert four.dtype == np.int32
        row = np.arange(row_num)[:, None]
        low_start, low_end, high_start, high_end = four.T
        hidden = (row >= low_start) & (row < low_end) | (row >= high_start) & (row < high_end)
        np.testing.assert_array_equal(~hidden, oracle.shown(columns, row_num))


@pytest.mark.parametrize("form", [reference.to_four_columns, reference.to_dense])
@pytest.mark.parametrize("lead", [(1, 1), (2, 3), (0, 2)])
def test_slices_are_each_alone(form, lead):
    """Of (b, h, N, 2); also where there is one."""
    slices = np.random.default_rng(2).integers(-2, 50, (*lead, 40, 2)).astype(np.int32)
    result = form(slices, 45)
    assert result.shape[:2] == lead
    for at in np.ndindex(lead):
        np.testing.assert_array_equal(result[at], form(slices[at], 45), strict=True)


def wrong_slices():
    """Return columns of which one reaches past the 45 rows, and what is said of it."""
    slices = np.zeros((2, 3, 40, 2), np.int32)
    slices[1, 2, 7] = 46, 3
    bounds = r"columns must have 0 <= UTE <= LTS <= q_token_num = 45, got \[LTS, UTE\] = \[46, 3\]"
    return slices, rf"^{bounds} of column 7 of slice \(1, 2\)$"


@pytest.mark.parametrize("name", ["to_four_columns", "to_dense", "to_blocks"])
def test_slices_are_validated(name):
    slices, message = wrong_slices()
    with pytest.raises(ValueError, match=message):
        getattr(reference, name)(slices, 45, validate=True)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["to_four_columns", "to_dense", "to_blocks"])
def test_gpu_slices_are_validated(cupy, name):
    slices, message = wrong_slices()
    with pytest.raises(ValueError, match=message):
        getattr(maskq_cupy, name)(cupy.asarray(slices), 45, validate=True)


def test_dense_refuses_more_than_its_limit():
    columns = np.zeros((2**20, 2), np.int32)
    message = r"1025 rows x 1048576 columns is 1074790400 bytes, above limit=1073741824"
    with pytest.raises(ValueError, match=message):
        reference.to_dense(columns, 1025)
    with pytest.raises(ValueError, match="6 bytes, above limit=5"):
        reference.to_dense(columns[:3], 2, limit=5)
    assert reference.to_dense(columns[:3], 2, limit=6).shape == (2, 3)
    with pytest.raises(ValueError, match="2 slices of 2 rows x 3 columns is 12 bytes, above"):
        reference.to_dense(np.zeros((2, 1, 3, 2), np.int32), 2, limit=6)


@needs_gxx
@pytest.mark.parametrize(("sanitizer", "count"), [("plain", 60), ("address", 30), ("thread", 8)])
def test_kernels(builds, sanitizer, count):
    rng = np.random.default_rng(2)
    script, expected = emulator.Script(), []
    for i in range(count):
        columns, row_num = random_columns(rng)
        if not columns.size or not row_num:
            continue
        slices, n = int(rng.choice([1, 1, 3])), len(columns)
        columns = rng.permutation(np.tile(columns, (slices, 1))).reshape(1, slices, n, 2)
        source = script.buffer(columns)
        four = script.buffer(np.full((1, slices, n, 4), -77, np.int32))
        dense = script.buffer(np.full((1, slices, row_num, n), 7, np.uint8), offset=i % 4)
        with emulator.planning():
            script.launch(plan.four_columns_launch(source, slices * n, row_num, four))
            script.launch(plan.dense_launch(source, n, row_num, dense, slices))
        script.read(four)
        script.read(dense)
        expected += [
            reference.to_four_columns(columns, row_num),
            reference.to_dense(columns, row_num),
        ]
    for result, right in zip(script.run(builds(sanitizer)), expected, strict=True):
        np.testing.assert_array_equal(result, right)


BOUNDS = [
    ([3, 0], [4, 1], "[LTS, UTE] = [4, 1] of column 1"),
    ([1, 2], [3, 0], "[LTS, UTE] = [1, 2] of column 0"),
    ([3, -1], [3, 0], "[LTS, UTE] = [3, -1] of column 0"),
]


@pytest.mark.parametrize("name", ["to_four_columns", "to_dense", "to_blocks"])
@pytest.mark.parametrize(("a", "b", "got"), BOUNDS)
def test_bounds_of_other_rows_are_refused_under_validate(name, a, b, got):
    columns = np.array([a, b], np.int32)
    getattr(reference, name)(columns, 3)
    with pytest.raises(ValueError, match="0 <= UTE <= LTS <= q_token_num = 3, got") as raised:
        getattr(reference, name)(columns, 3, validate=True)
    assert str(raised.value).endswith(got)
    getattr(reference, name)(np.array([[3, 0], [2, 2]], np.int32), 3, validate=True)


# On a GPU


FORMS = ("to_four_columns", "to_dense")


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
def test_gpu(cupy, name):
    rng = np.random.default_rng(3)
    for tokens in [0, 1, 100] * 20 + [5000] * 5:
        columns, row_num = random_columns(rng, tokens)
        given = cupy.asarray(columns)
        result = getattr(maskq_cupy, name)(given, row_num)
        assert type(result) is cupy.ndarray
        expected = getattr(reference, name)(columns, row_num)
        np.testing.assert_array_equal(cupy.asnumpy(result), expected, strict=True)
        out = cupy.empty_like(result).reshape(1, 1, *result.shape)
        assert getattr(maskq_cupy, name)(given[None, None], row_num, out=out) is out
        np.testing.assert_array_equal(cupy.asnumpy(out[0, 0]), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("lead", [(1, 1), (2, 3), (0, 2), (1, 70)])
def test_gpu_slices(cupy, name, lead):
    columns = np.random.default_rng(2).integers(-2, 90, (*lead, 77, 2)).astype(np.int32)
    result = getattr(maskq_cupy, name)(cupy.asarray(columns), 83)
    expected = getattr(reference, name)(columns, 83)
    np.testing.assert_array_equal(cupy.asnumpy(result), expected, strict=True)


@pytest.mark.gpu
def test_gpu_out_of_torch(cupy):
    torch = pytest.importorskip("torch")
    columns = reference.get_attn_mask_q([0, 3, 5], [0, 3, 7])
    given = torch.as_tensor(columns, device="cuda")
    four = torch.empty((7, 4), dtype=torch.int32, device="cuda")
    maskq_cupy.to_four_columns(given, 5, out=four)
    np.testing.assert_array_equal(four.cpu(), reference.to_four_columns(columns, 5))
    dense = torch.empty((5, 7), dtype=torch.bool, device="cuda")
    maskq_cupy.to_dense(given, 5, out=dense)
    np.testing.assert_array_equal(dense.cpu(), reference.to_dense(columns, 5))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
def test_gpu_replays_in_a_graph(cupy, name):
    rng = np.random.default_rng(4)
    form = getattr(maskq_cupy, name)
    columns = cupy.zeros((300, 2), np.int32)
    out = form(columns, 200)  # compiles
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        form(columns, 200, out=out)
        with pytest.raises(RuntimeError, match="the result is allocated: give out="):
            form(columns, 200)
        graph = stream.end_capture()
        for _ in range(20):
            host = rng.integers(0, 201, (300, 2)).astype(np.int32)
            columns.set(host)
            graph.launch()
            np.testing.assert_array_equal(cupy.asnumpy(out), getattr(reference, name)(host, 200))


@pytest.mark.gpu
def test_gpu_bad_arrays(cupy):
    columns = cupy.zeros((300, 2), np.int32)
    with pytest.raises(ValueError, match="above limit=1000"):
        maskq_cupy.to_dense(columns, 300, limit=1000)
    with pytest.raises(TypeError, match=r"out must be bool of shape \(9, 300\) or .*, got int32"):
        maskq_cupy.to_dense(columns, 9, out=cupy.empty((9, 300), np.int32))
    with pytest.raises(ValueError, match=r"out must be int32 of shape \(300, 4\) or .*\(4, 300\)"):
        maskq_cupy.to_four_columns(columns, 9, out=cupy.empty((4, 300), np.int32))
    memory = cupy.zeros(1802, np.int32)
    with pytest.raises(ValueError, match="out must be 16-byte aligned"):
        maskq_cupy.to_four_columns(columns, 9, out=memory[2:1202].reshape(300, 4))
    within = memory[600:1200].reshape(300, 2)
    with pytest.raises(ValueError, match="out must not overlap"):
        maskq_cupy.to_four_columns(within, 9, out=memory[:1200].reshape(300, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["to_four_columns", "to_dense", "to_blocks"])
@pytest.mark.parametrize(("a", "b", "got"), BOUNDS)
def test_gpu_validates_bounds(cupy, name, a, b, got):
    columns = cupy.asarray([a, b], np.int32)
    getattr(maskq_cupy, name)(columns, 3)
    with pytest.raises(ValueError, match="0 <= UTE <= LTS <= q_token_num = 3, got") as raised:
        getattr(maskq_cupy, name)(columns, 3, validate=True)
    assert str(raised.value).endswith(got)
    getattr(maskq_cupy, name)(cupy.asarray([[3, 0], [2, 2]], np.int32), 3, validate=True)
