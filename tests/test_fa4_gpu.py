"""FlashAttention-4 on our columns and lists, on a GPU, against dense attention in float32.

How far it may be off is what the same kernels are off without our mask, plainly causal. Each case
has a control: one bound of one column moved by one is seen.
"""

import functools

import fa4_compile
import numpy as np
import pytest
from strategies import cuts

from maskq_cupy import reference

if not fa4_compile.is_installed():
    pytest.skip("flash-attn-4 is not installed", allow_module_level=True)
torch = pytest.importorskip("torch")
fa4 = pytest.importorskip("maskq_cupy.fa4")

pytestmark = pytest.mark.gpu

HEADS = 4
KEY_HEADS = {64: 2, 128: 1, 192: 4, 256: 4}  # by head_dim


def image_spans():
    """Text is causal, rows of an image see all of the image."""
    row = np.arange(1100)
    ends = row + 1
    for start, end in ((100, 357), (640, 1000)):
        ends = np.where((row >= start) & (row < end), end, ends)
    return np.stack([np.zeros_like(ends), ends], axis=1).astype(np.int32)


def rule_columns(q_lens, k_lens, padding=0, **rule):
    return reference.get_attn_mask_q(
        cuts(q_lens), cuts(k_lens), kv_token_num=sum(k_lens) + padding, **rule
    ), sum(q_lens)


def tree_columns():
    lens = [200, 70, 40, 130, 350, 33, 164]
    return reference.tree_attn_mask_q([-1, 0, 0, 2, -1, 4, 4], cuts(lens), cuts(lens)), sum(lens)


def heads_of_two_masks():
    """Every other head has a window."""
    pack = [500, 12, 513], [500, 12, 513]
    full, row_num = rule_columns(*pack)
    near, _ = rule_columns(*pack, window=(100, 0))
    return np.stack([full, near] * (HEADS // 2))[None], row_num


def batch_of_two():
    slices = [rule_columns(lens, lens)[0] for lens in ([700, 300], [40, 960])]
    return np.stack(slices)[:, None], 1000


CASES = {
    "documents": lambda: rule_columns([300, 0, 700, 57], [300, 0, 700, 57]),
    "cached prefix": lambda: rule_columns([64, 1, 330, 2], [300, 129, 700, 3]),
    "more rows than keys": lambda: rule_columns([300, 40, 0, 500], [200, 0, 90, 480], padding=33),
    "images": lambda: (reference.get_attn_mask_q([0, 1100], [0, 1100], image_spans()), 1100),
    "window and sinks": lambda: rule_columns(
        [900, 300], [900, 300], window=(200, 0), num_sink_tokens=4
    ),
    "bidirectional": lambda: rule_columns([400, 500, 3], [433, 600, 2], causal=False),
    "trees": tree_columns,
    "heads of two masks": heads_of_two_masks,
    "batch of two": batch_of_two,
    "no tile divides": lambda: rule_columns([129, 1002], [131, 998]),
}  # fmt: skip


def inputs_of(columns, row_num, head_dim):
    """Return q, k, v and the gradient of the output, in bfloat16."""
    generator = torch.Generator("cuda").manual_seed(0)
    batch = columns.shape[0] if columns.ndim == 4 else 1
    shapes = [
        (batch, row_num, HEADS, head_dim),
        *[(batch, columns.shape[-2], KEY_HEADS[head_dim], head_dim)] * 2,
        (batch, row_num, HEADS, head_dim),
    ]
    q, k, v, upstream = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=generator)
        for shape in shapes
    )
    return [x.requires_grad_() for x in (q, k, v)], upstream


def shown_of(columns, row_num):
    """Return the boolean (b, h, Q, N) mask on the GPU."""
    form = columns.shape[:2] if columns.ndim == 4 else (1, 1)
    slices = [reference.to_dense(c, row_num) for c in columns.reshape(-1, *columns.shape[-2:])]
    return torch.as_tensor(np.stack(slices).reshape(*form, row_num, -1), device="cuda")


def with_gradients(attend, inputs, upstream):
    out = attend(*inputs)
    return [x.float() for x in (out, *torch.autograd.grad(out, inputs, upstream.to(out.dtype)))]


def attend_dense(q, k, v, shown):
    """Return attention in float32; a row that sees nothing is 0."""
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    weights = torch.nan_to_num(scores.masked_fill(~shown, -torch.inf).softmax(-1))
    return (weights @ v).transpose(1, 2)


def off(results, expected):
    """Return how far the output and each gradient are off at most, by the largest of its values."""
    assert all(torch.isfinite(result).all() for result in results)
    return [
        ((result - right).abs().max() / right.abs().max()).item()
        for result, right in zip(results, expected, strict=True)
    ]


@functools.cache
def allowed(head_dim):
    """Return what is off at most without our mask, one document of plain causal attention, thrice:
    its rows see as few keys, and its keys are seen by as many rows, as those of any case. A maximum
    over so many values scatters."""
    from flash_attn.cute import flash_attn_func

    columns, row_num = rule_columns([1100], [1100])
    inputs, upstream = inputs_of(columns, row_num, head_dim)
    plain = with_gradients(
        lambda q, k, v: flash_attn_func(q, k, v, causal=True)[0], inputs, upstream
    )
    shown = shown_of(columns, row_num)
    expected = with_gradients(lambda *x: attend_dense(*x, shown), inputs, upstream)
    return 3 * max(off(plain, expected))


def attend(columns, row_num, inputs, upstream, **options):
    """Return the output and the gradients of FlashAttention-4 with our arguments."""
    arguments = fa4.arguments(
        torch.as_tensor(columns, device="cuda"), row_num, inputs[0].shape[-1], **options
    )
    return with_gradients(lambda *x: fa4.attention(*x, arguments), inputs, upstream)


def moved(columns, row_num):
    """Return columns one of whose bounds is one row further in, where it hides a pair most seen:
    of a row that sees few keys, but not of one that then sees none."""
    columns = columns.copy()
    shown = shown_of(columns, row_num).cpu().numpy()
    keys = shown.sum(-1)
    slices = columns.reshape(-1, *columns.shape[-2:])
    few = np.where(keys > 1, keys, row_num + slices.shape[1])
    best = None
    for i, (slice_, count) in enumerate(zip(slices, few.reshape(len(slices), -1), strict=True)):
        seen = np.flatnonzero(slice_[:, 0] > slice_[:, 1])
        for bound, rows in ((1, slice_[seen, 1]), (0, slice_[seen, 0] - 1)):
            at = count[rows].argmin()
            if best is None or count[rows[at]] < best[0]:
                best = count[rows[at]], i, seen[at], bound
    _, i, column, bound = best
    slices[i, column, bound] += 1 if bound else -1
    return columns


@pytest.mark.parametrize("head_dim", KEY_HEADS)
@pytest.mark.parametrize("name", CASES)
def test_as_dense_attention(name, head_dim):
    columns, row_num = CASES[name]()
    inputs, upstream = inputs_of(columns, row_num, head_dim)
    shown = shown_of(columns, row_num)
    expected = with_gradients(lambda *x: attend_dense(*x, shown), inputs, upstream)

    most = max(off(attend(columns, row_num, inputs, upstream), expected))
    control = max(off(attend(moved(columns, row_num), row_num, inputs, upstream), expected))
    print(f"{name}, {head_dim}: {most:.2e} off, allowed {allowed(head_dim):.2e}, {control:.2e}")
    assert most <= allowed(head_dim)
    assert control > 5 * allowed(head_dim)


@pytest.mark.parametrize("head_dim", [64, 192])
def test_narrow_lists_give_the_same_bits(head_dim):
    """The output's, and the gradients' of keys and values; that of queries is summed atomically."""
    columns, row_num = CASES["window and sinks"]()
    inputs, upstream = inputs_of(columns, row_num, head_dim)
    size = fa4.block_size(head_dim, torch.cuda.get_device_capability())
    lists = reference.to_blocks(columns, row_num, size)
    width = (
        max(lists.kv_num_blocks.max(), lists.full_kv_num_blocks.max()),
        max(lists.q_num_blocks.max(), lists.full_q_num_blocks.max()),
    )
    assert width[0] < lists.kv_indices.shape[-1]
    wide, narrow = (
        attend(columns, row_num, inputs, upstream, **options)
        for options in ({}, {"width": tuple(map(int, width))})
    )
    assert torch.equal(wide[0], narrow[0])
    assert max(off(narrow, wide)) <= allowed(head_dim)


def test_one_compilation_serves_all_packs():
    from flash_attn.cute import interface

    caches = interface._flash_attn_fwd.compile_cache, interface._flash_attn_bwd.compile_cache

    def run(columns, row_num):
        attend(columns, row_num, *inputs_of(columns, row_num, 128))

    run(*CASES["documents"]())
    before = [len(getattr(cache, "cache", cache)) for cache in caches]
    for name in ("cached prefix", "images", "window and sinks", "trees", "no tile divides"):
        run(*CASES[name]())
    assert [len(getattr(cache, "cache", cache)) for cache in caches] == before


def test_a_graph_replays_with_other_packs():
    """Columns, lists, forward and backward pass in one graph of torch, whose cu_seqlens change."""
    n = 1000
    cu = torch.tensor([0, 300, n], dtype=torch.int32, device="cuda")
    inputs, upstream = inputs_of(np.zeros((n, 2)), n, 128)

    def step(*inputs):
        return fa4.attention(*inputs, fa4.packed_arguments(cu, cu, n, n, 128))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with_gradients(step, inputs, upstream)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = with_gradients(step, inputs, upstream)
    for first in (0, 1, 128, 517, n):
        cu[1] = first
        graph.replay()
        shown = shown_of(reference.get_attn_mask_q([0, first, n], [0, first, n]), n)
        expected = with_gradients(lambda *x, shown=shown: attend_dense(*x, shown), inputs, upstream)
        assert max(off(results, expected)) <= allowed(128)


def test_in_a_compiled_model():
    """The call breaks the graph; what is around it is compiled."""
    columns, row_num = CASES["documents"]()
    (q, k, v), _ = inputs_of(columns, row_num, 128)
    arguments = fa4.arguments(torch.as_tensor(columns, device="cuda"), row_num, 128)

    def model(q, k, v):
        return fa4.attention(q * 0.5, k, v, arguments).sin()

    expected = with_gradients(model, [q, k, v], torch.ones_like(q))
    results = with_gradients(torch.compile(model), [q, k, v], torch.ones_like(q))
    assert max(off(results, expected)) <= allowed(128)


def test_on_a_side_stream():
    """Lists and columns are ordered on torch's current stream, behind what it still writes."""
    columns, row_num = CASES["documents"]()
    inputs, upstream = inputs_of(columns, row_num, 128)
    shown = shown_of(columns, row_num)
    expected = with_gradients(lambda *x: attend_dense(*x, shown), inputs, upstream)
    right = torch.as_tensor(columns, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        given = torch.zeros_like(right)
        torch.cuda._sleep(20_000_000)
        given.copy_(right)
        results = attend(given, row_num, inputs, upstream)
        torch.cuda.current_stream().synchronize()
    assert max(off(results, expected)) <= allowed(128)


def test_a_deterministic_backward_pass_is_for_blackwell():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not sm_90")
    columns, row_num = CASES["documents"]()
    with pytest.raises(ValueError, match="deterministic must be False off sm_10x"):
        fa4.arguments(torch.as_tensor(columns, device="cuda"), row_num, 128, deterministic=True)
