"""Bad input on the host: the message names the argument, what was expected and what came."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import maskq_cupy
from maskq_cupy import pack, reference
from maskq_cupy.facts import Facts

FORM = "must be int32 or int64 of shape (B + 1,)"
CALLS = [
    ({"cu_seqlens_k": np.zeros((4, 1), np.float32)}, TypeError,
     "cu_seqlens_k must be int32 or int64 of shape (B + 1,), got float32 of shape (4, 1)"),
    ({"cu_seqlens_q": [[0, 3]]}, ValueError,
     "cu_seqlens_q must be int32 or int64 of shape (B + 1,), got int64 of shape (1, 2)"),
    ({"cu_seqlens_q": []}, ValueError,
     "cu_seqlens_q must be int32 or int64 of shape (B + 1,), got int64 of shape (0,)"),
    ({"cu_seqlens_q": [0, 2**70]}, TypeError, "cu_seqlens_q must hold ints below 2**63"),
    ({"cu_seqlens_k": [0, 3, 4]}, ValueError,
     "cu_seqlens_q must be at least as long as cu_seqlens_k, got 2 and 3 entries"),
    ({"cu_seqlens_q": [1, 3]}, ValueError, "cu_seqlens_q must start at 0, got cu_seqlens_q[0] = 1"),
    ({"cu_seqlens_q": [0, 3, 5], "cu_seqlens_k": [0, 3, 2]}, ValueError,
     "cu_seqlens_k must not decrease, got cu_seqlens_k[2] = 2 after cu_seqlens_k[1] = 3"),
    ({"cu_seqlens_k": [0, 2**31]}, ValueError,
     "cu_seqlens_k must end within int32, got cu_seqlens_k[-1] = 2147483648"),
    ({"kv_token_num": 2}, ValueError,
     "kv_token_num must be at least cu_seqlens_k[B], got 2 below 3"),
    ({"kv_token_num": -1}, ValueError, "kv_token_num must be in [0, 2**31 - 1], got -1"),
    ({"kv_token_num": 2**31}, ValueError, "kv_token_num must be in [0, 2**31 - 1], got 2147483648"),
    ({"kv_token_num": 3.0}, TypeError, "kv_token_num must be an int or None, got float"),
    ({"attn_mask_kv": np.zeros((3, 3), int)}, ValueError,
     "attn_mask_kv must be int32 or int64 of shape (Q, 2) or (2 * Q,), got int64 of shape (3, 3)"),
    ({"attn_mask_kv": np.zeros(5, int)}, ValueError,
     "attn_mask_kv must be int32 or int64 of shape (Q, 2) or (2 * Q,), got int64 of shape (5,)"),
    ({"attn_mask_kv": np.zeros((3, 2))}, TypeError,
     "attn_mask_kv must be int32 or int64 of shape (Q, 2) or (2 * Q,), got float64 of shape (3,"),
    ({"attn_mask_kv": [[0, 1], [0, 2]]}, ValueError,
     "attn_mask_kv must have at least cu_seqlens_q[B] rows, got 2 below 3: an array of ends alone "
     "must be stacked with its starts"),
    ({"attn_mask_kv": np.array([1, 2, 3, 3])}, ValueError,
     "attn_mask_kv must have at least cu_seqlens_q[B] rows, got 2 below 3: an array of ends"),
    ({"attn_mask_kv": []}, ValueError,
     "attn_mask_kv must have at least cu_seqlens_q[B] rows, got 0 below 3: an array of ends"),
    ({"cu_seqlens_q": None}, TypeError, f"cu_seqlens_q {FORM}, got None"),
    ({"cu_seqlens_k": {0, 3}}, TypeError, f"cu_seqlens_k {FORM}, got set"),
    ({"cu_seqlens_k": {0: 3}}, TypeError, f"cu_seqlens_k {FORM}, got dict"),
    ({"cu_seqlens_k": "0, 3"}, TypeError, f"cu_seqlens_k {FORM}, got str"),
    ({"cu_seqlens_k": 2**63}, TypeError, f"cu_seqlens_k {FORM}, got uint64 of shape ()"),
    ({"cu_seqlens_k": 2**64}, TypeError, "cu_seqlens_k must hold ints below 2**63, got 18446"),
    ({"cu_seqlens_k": [0, 2**64]}, TypeError, "cu_seqlens_k must hold ints below 2**63, got [0, 1"),
    ({"cu_seqlens_k": [0, [3]]}, TypeError,
     f"cu_seqlens_k {FORM}, got list that NumPy cannot read: setting an array element with a seq"),
    ({"cu_seqlens_k": [0, None]}, TypeError, f"cu_seqlens_k {FORM}, got [0, None]"),
    ({"cu_seqlens_k": np.ma.masked_array([0, 3], [False, True])}, TypeError,
     f"cu_seqlens_k {FORM}, got MaskedArray: give a plain array"),
    ({"cu_seqlens_k": np.zeros((1, 2)).view(np.matrix)}, TypeError,
     f"cu_seqlens_k {FORM}, got matrix: give a plain array"),
    ({"kv_token_num": True}, TypeError, "kv_token_num must be an int or None, got bool"),
    ({"kv_token_num": np.True_}, TypeError, "kv_token_num must be an int or None, got bool"),
    ({"kv_token_num": np.array(3)}, TypeError, "kv_token_num must be an int or None, got ndarray: "
     "give an int: int(x) of a GPU array waits"),
    ({"spans": [0, 2]}, ValueError,
     "spans must be int32 or int64 of shape (S, 2), got int64 of shape (2,)"),
    ({"spans": np.zeros((2, 3), np.int32)}, ValueError,
     "spans must be int32 or int64 of shape (S, 2), got int32 of shape (2, 3)"),
    ({"spans": np.zeros((1, 2))}, TypeError,
     "spans must be int32 or int64 of shape (S, 2), got float64 of shape (1, 2)"),
    ({"spans": [[0, 1], [1, 1], [0, 2]]}, ValueError,
     "spans must hold [start, end) with 0 <= start <= end <= next start, "
     "got spans[2] = [0, 2] after spans[1] = [1, 1]"),
    ({"spans": [[-1, 2]]}, ValueError,
     "spans must hold [start, end) with 0 <= start <= end <= next start, got spans[0] = [-1, 2]"),
    ({"spans": [[0, 1], [2, 1]]}, ValueError,
     "spans must hold [start, end) with 0 <= start <= end <= next start, got spans[1] = [2, 1]"),
    ({"spans": [[0, 1], [2, 4]]}, ValueError,
     "spans must end within the N = 3 columns, got spans[1] = [2, 4]"),
]  # fmt: skip

RULES = [
    ({"causal": 1}, TypeError, "causal must be True or False, got 1"),
    ({"window": 5}, ValueError, "window must be (left, right), two ints >= -1, got 5"),
    ({"window": (1, 0, 0)}, ValueError,
     "window must be (left, right), two ints >= -1, got (1, 0, 0)"),
    ({"window": (-2, 0)}, ValueError, "window[0] must be an int >= -1, got -2"),
    ({"window": (1, 0.5)}, TypeError, "window[1] must be an int >= -1, got 0.5"),
    ({"num_sink_tokens": 0.0}, TypeError, "num_sink_tokens must be an int >= 0, got 0.0"),
    ({"num_sink_tokens": False}, TypeError, "num_sink_tokens must be an int >= 0, got False"),
    ({"window": (1, 2)}, ValueError,
     "window=(left, right) must have right -1 or 0 under causal=True, got (1, 2)"),
    ({"num_sink_tokens": 4}, ValueError,
     "num_sink_tokens needs window= or chunk_size=, whose left bound it lifts, "
     "got 4 sinks and neither"),
    ({"num_sink_tokens": 4, "causal_block": 2}, ValueError,
     "num_sink_tokens needs window= or chunk_size=, whose left bound it lifts, "
     "got 4 sinks and neither"),
    ({"num_sink_tokens": True, "window": (1, 0)}, TypeError,
     "num_sink_tokens must be an int >= 0, got True"),
    ({"window": (True, 0)}, TypeError, "window[0] must be an int >= -1, got True"),
    ({"num_sink_tokens": -4, "window": (1, 0)}, ValueError,
     "num_sink_tokens must be an int >= 0, got -4"),
    ({"attn_mask_kv": [[0, 1]] * 3, "window": (1, 0)}, ValueError,
     "attn_mask_kv excludes window: the intervals say it all, got window=(1, 0)"),
    ({"attn_mask_kv": [[0, 1]] * 3, "causal": False}, ValueError,
     "attn_mask_kv excludes causal=False: the intervals say it all, leave causal alone"),
    ({"attn_mask_kv": [[0, 1]] * 3, "num_sink_tokens": 4}, ValueError,
     "num_sink_tokens does not go with attn_mask_kv: use window= or chunk_size=, or set LTS of "
     "those columns to 1 + the last row that sees anything"),
    ({"attn_mask_kv": [[0, 1]] * 3, "align": "top_left"}, ValueError,
     "attn_mask_kv excludes align: the intervals say it all, got align='top_left'"),
    ({"attn_mask_kv": [[0, 1]] * 3, "causal_block": 4}, ValueError,
     "attn_mask_kv excludes causal_block: the intervals say it all, got causal_block=4"),
    ({"attn_mask_kv": [[0, 1]] * 3, "chunk_size": 4}, ValueError,
     "attn_mask_kv excludes chunk_size: the intervals say it all, got chunk_size=4"),
    ({"attn_mask_kv": [[0, 1]] * 3, "spans": []}, ValueError,
     "attn_mask_kv excludes spans: the intervals say it all, leave spans alone"),
    ({"align": "left"}, ValueError, "align must be 'bottom_right' or 'top_left', got 'left'"),
    ({"align": None}, TypeError, "align must be 'bottom_right' or 'top_left', got None"),
    ({"causal_block": 2, "causal": False}, ValueError,
     "causal_block needs causal=True, got causal_block=2"),
    ({"causal_block": 0}, ValueError, "causal_block must be an int >= 1, got 0"),
    ({"causal_block": True}, TypeError, "causal_block must be an int >= 1, got True"),
    ({"chunk_size": 0}, ValueError, "chunk_size must be an int >= 1, got 0"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size must be an int >= 1, got 2.0"),
]  # fmt: skip


class Unreadable:
    """A host array whose export fails in an unforeseen way."""

    def __array__(self, *asked, **named):
        raise ZeroDivisionError("not today")


def tensors(torch):
    """Tensors that are no array of ints, and what is said of them."""
    cu = torch.tensor([0, 3])
    from torch._subclasses import FakeTensorMode

    yield torch.tensor([0.0, 3.0], requires_grad=True), "got Tensor that NumPy cannot read: Can't"
    yield torch.nested.nested_tensor([cu]), "got Tensor that NumPy cannot read: "
    yield cu.to_sparse(), "got Tensor that NumPy cannot read: can't convert Sparse"
    yield cu.to("meta"), "got Tensor that NumPy cannot read: "
    yield cu.to(torch.bfloat16), "got Tensor that NumPy cannot read: Got unsupported ScalarType"
    with FakeTensorMode() as mode:
        yield mode.from_tensor(cu), "got FakeTensor that NumPy cannot read: "


def test_tensors_that_hold_no_plain_ints():
    torch = pytest.importorskip("torch")
    for tensor, got in tensors(torch):
        check(reference.get_attn_mask_q, {"cu_seqlens_k": tensor}, TypeError,
              f"cu_seqlens_k {FORM}, {got}")  # fmt: skip


def test_an_array_that_raises_anything():
    check(reference.get_attn_mask_q, {"cu_seqlens_q": Unreadable()}, TypeError,
          f"cu_seqlens_q {FORM}, got Unreadable that NumPy cannot read: not today")  # fmt: skip


def test_numpys_numbers_are_numbers():
    given = [0, 3], [0, 3], None, np.int64(3)
    found = reference.get_attn_mask_q(*given)
    np.testing.assert_array_equal(found, reference.get_attn_mask_q([0, 3], [0, 3]))


def test_no_rows_are_intervals():
    columns = reference.get_attn_mask_q([0, 0], [0, 3], np.zeros((0, 2), int))
    assert columns.tolist() == [[0, 0]] * 3


GOOD = {"cu_seqlens_q": [0, 3], "cu_seqlens_k": [0, 3]}


def check(function, change, kind, message):
    with pytest.raises(kind) as raised:
        function(**GOOD | change)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("change", "kind", "message"), CALLS + RULES)
def test_reference(change, kind, message):
    check(reference.get_attn_mask_q, change, kind, message)


@pytest.mark.parametrize(("change", "kind", "message"), RULES)
def test_rule_of_the_gpu_function_without_a_gpu(change, kind, message):
    pytest.importorskip("cupy")
    check(maskq_cupy.get_attn_mask_q, change, kind, message)


@pytest.mark.gpu
@pytest.mark.parametrize(("change", "kind", "message"), CALLS + RULES)
def test_gpu_function(change, kind, message):
    check(maskq_cupy.get_attn_mask_q, change, kind, message)


def test_gpu_function_names_the_reference_where_there_is_no_gpu():
    pytest.importorskip("cupy")
    from maskq_cupy.gpu import gpu_problem

    if gpu_problem() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match=r"maskq_cupy\.reference computes the same on the CPU"):
        maskq_cupy.get_attn_mask_q([0, 3], [0, 3])


@pytest.mark.gpu
def test_only_a_gpu_array_is_an_out():
    with pytest.raises(TypeError, match="out must be an array on a GPU, got ndarray on the host"):
        maskq_cupy.get_attn_mask_q([0, 3], [0, 3], out=np.zeros((3, 2), np.int32))
    with pytest.raises(TypeError, match=r"stream must be a CuPy stream, .*, got str"):
        maskq_cupy.get_attn_mask_q([0, 3], [0, 3], stream="main")


@pytest.mark.parametrize("shape", [(), (2,), (6,), (3, 3), (1, 3, 2), (2, 1, 3, 2), (1, 1, 3, 3)])
def test_shape_of_out(shape):
    """Without a GPU: the check takes host-side facts."""
    out = Facts()
    call = SimpleNamespace(out=out, targets={"out": out})
    out.dtype, out.shape = "int32", shape
    message = f"out must be int32 of shape (N, 2) or (1, 1, N, 2), got int32 of shape {shape}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pack.asked_column_num(call, None)
    for good in ((3, 2), (1, 1, 3, 2), (0, 2)):
        out.shape = good
        assert pack.asked_column_num(call, None) == good[-2]
