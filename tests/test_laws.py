"""Laws of the contract, over packs that Hypothesis makes: of the reference, and of the kernels."""

import numpy as np
import oracle
import pytest
from on_cpu import calls
from strategies import Pack, cuts

from maskq_cupy import reference

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

# A law takes `columns`, a function of a pack's arguments, and `draw`.


def invariants(columns, draw):
    lens, mask, rule = draw(lengths()), None, {}
    if draw(st.booleans()):
        mask = draw(intervals(lens))
    else:
        rule = draw(rules())
    q, k = pack_cuts(lens)
    padding = draw(st.integers(0, 5))
    found = columns(q, k, mask, int(k[-1]) + padding, **rule)
    assert found.dtype == np.int32
    b = np.repeat(np.arange(len(k)), np.append(np.diff(k), padding))
    lts, ute = found.T
    q_start, q_end = q[b], np.append(q, q[-1])[b + 1]
    assert ((q_start <= ute) & (ute <= lts) & (lts <= q_end)).all()


def empty_sequences_change_nothing(columns, draw):
    lens, rule = draw(lengths()), draw(rules())
    mask = draw(st.none() | intervals(lens))
    rule = rule if mask is None else {}
    longer = list(lens)
    for at in draw(st.lists(st.integers(0, len(lens)), max_size=60)):
        longer.insert(at, (0, 0))
    before, after = (columns(*pack_cuts(some), mask, **rule) for some in (lens, longer))
    np.testing.assert_array_equal(after, before)


def concatenation_shifts_the_second(columns, draw):
    lens, rule = [draw(lengths()), draw(lengths())], draw(rules())
    masks = [draw(intervals(some)) for some in lens] if draw(st.booleans()) else [None, None]
    rule = rule if masks[0] is None else {}
    first, second = (
        columns(*pack_cuts(some), mask, **rule) for some, mask in zip(lens, masks, strict=True)
    )
    both = None if masks[0] is None else np.concatenate(masks)
    found = columns(*pack_cuts(lens[0] + lens[1]), both, **rule)
    shifted = second + sum(q_len for q_len, _ in lens[0])
    np.testing.assert_array_equal(found, np.concatenate([first, shifted]))


def an_infinite_window_is_causal(columns, draw):
    q, k = pack_cuts(draw(lengths()))
    wide = draw(st.sampled_from([-1, 2**31 - 1, 2**31, 2**40]) | st.integers(100, 2**31))
    sinks = draw(st.integers(0, 2**33))
    causal, full = columns(q, k), columns(q, k, causal=False)
    found = columns(q, k, window=(wide, draw(st.sampled_from([-1, 0]))), num_sink_tokens=sinks)
    np.testing.assert_array_equal(found, causal)
    found = columns(q, k, causal=False, window=(wide, wide), num_sink_tokens=sinks)
    np.testing.assert_array_equal(found, full)
    found = columns(q, k, causal=False, window=(wide, 0))
    np.testing.assert_array_equal(found, causal)


def intervals_of_a_rule_give_its_columns(columns, draw):
    """Of the columns that a row sees; both show the others to nobody."""
    lens, rule = draw(lengths()), draw(rules(sinks=False))
    mask = np.array([row[-2:] for row in oracle.row_keys(*sides(lens), **rule)], int).reshape(-1, 2)
    q, k = pack_cuts(lens)
    by_rule, by_intervals = columns(q, k, **rule), columns(q, k, mask)
    np.testing.assert_array_equal(oracle.shown(by_intervals, q[-1]), oracle.shown(by_rule, q[-1]))
    seen = by_rule[:, 0] > by_rule[:, 1]
    np.testing.assert_array_equal(by_intervals[seen], by_rule[seen])


def dense_to_columns_and_back(columns, draw):
    """The identity, where rows that see anything have starts and ends that never decrease and the
    others lie at a sequence's head or tail."""
    lens = draw(lengths())
    mask = [pair for q_len, k_len in lens for pair in draw(steps(q_len, k_len))]
    dense = oracle.visible(*sides(lens), mask)
    found = columns(*pack_cuts(lens), np.array(mask, np.int64).reshape(-1, 2))
    np.testing.assert_array_equal(oracle.shown(found, len(dense)), dense)
    seen = dense.any(axis=0)
    np.testing.assert_array_equal(found[seen], oracle.columns_of(dense)[seen])


def a_rule_shows_what_it_says(columns, draw):
    lens, rule = draw(lengths()), draw(rules())
    if draw(st.booleans()):
        rule = rule | {"spans": draw(spans(lens))}
    dense = oracle.visible(*sides(lens), **rule)
    found = columns(*pack_cuts(lens), **rule)
    np.testing.assert_array_equal(oracle.shown(found, len(dense)), dense)


def no_visible_pair_is_hidden(columns, draw):
    lens = draw(lengths())
    mask = draw(intervals(lens))
    dense = oracle.visible(*sides(lens), mask)
    found = columns(*pack_cuts(lens), mask)
    hidden = dense & ~oracle.shown(found, len(dense))
    assert not hidden.any()


LAWS = [
    invariants,
    empty_sequences_change_nothing,
    concatenation_shifts_the_second,
    an_infinite_window_is_causal,
    intervals_of_a_rule_give_its_columns,
    dense_to_columns_and_back,
    a_rule_shows_what_it_says,
    no_visible_pair_is_hidden,
]


def lengths():
    """(q_len, kv_len) of each sequence; empties on either side, more rows than keys, decode."""
    length = st.integers(0, 12)
    return st.lists(st.tuples(length, length), max_size=9)


def sides(lens):
    return [q_len for q_len, _ in lens], [k_len for _, k_len in lens]


def pack_cuts(lens):
    return [cuts(side) for side in sides(lens)]


def rules(sinks=True):
    distance = st.sampled_from([-1, 0, 1, 2**31 - 1, 2**40]) | st.integers(0, 14)
    window = st.tuples(distance, st.sampled_from([-1, 0]))
    full_window = st.tuples(distance, distance)
    found = [
        st.just({}),
        st.just({"causal": False}),
        st.fixed_dictionaries({"window": window}),
        st.fixed_dictionaries({"causal": st.just(False), "window": full_window}),
    ]
    if sinks:
        found.append(
            st.fixed_dictionaries({"window": window, "num_sink_tokens": st.integers(0, 14)})
        )
    return st.tuples(st.one_of(found), modifiers()).map(modified)


def modifiers():
    size = st.integers(1, 14) | st.sampled_from([2**31 - 1, 2**40])
    align = st.sampled_from(["bottom_right", "top_left"])
    return st.fixed_dictionaries(
        {}, optional={"align": align, "causal_block": size, "chunk_size": size}
    )


def modified(drawn):
    rule, more = drawn
    if "causal" in rule:  # False
        more.pop("causal_block", None)
    return rule | more


@st.composite
def spans(draw, lens):
    n = sum(kv_len for _, kv_len in lens)
    num = draw(st.integers(0, 9))
    ends = st.lists(st.integers(0, n), min_size=2 * num, max_size=2 * num)
    return np.array(sorted(draw(ends)), np.int64).reshape(-1, 2)


@st.composite
def intervals(draw, lens):
    """(Q, 2): any starts and ends around the keys of each row's sequence, and far away."""
    far = st.sampled_from([-(2**63), -(2**31), 2**31 - 1, 2**31, 2**63 - 1])
    keys = [
        draw(st.lists(st.integers(-2, k_len + 2) | far, min_size=2 * q_len, max_size=2 * q_len))
        for q_len, k_len in lens
    ]
    return np.array([key for some in keys for key in some], np.int64).reshape(-1, 2)


@st.composite
def steps(draw, q_len, k_len):
    """Intervals of a sequence whose columns are exact."""
    blind_at_head = draw(st.integers(0, q_len))
    blind_at_tail = draw(st.integers(0, q_len - blind_at_head))
    seeing = q_len - blind_at_head - blind_at_tail
    if k_len == 0:
        return [(0, 0)] * q_len
    starts = sorted(draw(st.lists(st.integers(0, k_len - 1), min_size=seeing, max_size=seeing)))
    ends, end = [], 0
    for start in starts:
        end = draw(st.integers(max(start + 1, end), k_len))
        ends.append(end)
    seen = list(zip(starts, ends, strict=True))
    return [(3, 3)] * blind_at_head + seen + [(2, -5)] * blind_at_tail


def hold(law, columns, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.data())
    def holds(data):
        law(columns, data.draw)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_of_the_reference(law):
    hold(law, reference.get_attn_mask_q, examples=300)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
def test_of_the_kernels(builds, law):
    executable = builds("plain")

    def columns(q, k, mask=None, kv_token_num=None, **rule):
        column_num = int(k[-1]) if kv_token_num is None else kv_token_num
        return calls.run(executable, [Pack(q, k, mask, column_num, rule)])[0]

    hold(law, columns, examples=25)
