"""The mask straight from its definition: for each row and key, visible or not. Slow and plain."""

import numpy as np


def row_keys(
    q_lens,
    k_lens,
    intervals=None,
    causal=True,
    window=None,
    align="bottom_right",
    causal_block=None,
    chunk_size=None,
    spans=(),
):
    """Yield (row, sequence, kv_start, kv_end, s, e) a row, in Python integers."""
    row = kv_start = 0
    for b, (q_len, kv_len) in enumerate(zip(q_lens, k_lens, strict=True)):
        offset = 0 if align == "top_left" else kv_len - q_len
        for i in range(q_len):
            p = i + offset
            if intervals is not None:
                s, e = (int(x) for x in intervals[row])
            else:
                left, right = (-1, -1) if window is None else window
                s = 0 if left == -1 else p - left
                if causal:
                    right = 0
                e = kv_len if right == -1 else p + right + 1
                if causal_block is not None:
                    e = (p // causal_block + 1) * causal_block
                if chunk_size is not None:
                    s = max(s, p // chunk_size * chunk_size)
                    e = min(e, (p // chunk_size + 1) * chunk_size)
                if 0 <= p < kv_len:
                    for start, end in spans:
                        if start <= kv_start + p < end:
                            s, e = min(s, int(start) - kv_start), max(e, int(end) - kv_start)
                if causal and p < 0:
                    s, e = 0, 0
            yield row, b, kv_start, kv_start + kv_len, max(s, 0), min(e, kv_len)
            row += 1
        kv_start += kv_len


def visible(q_lens, k_lens, intervals=None, num_sink_tokens=0, n=None, **rule):
    """Return the boolean (Q, N) matrix: does the row see the key?"""
    n = sum(k_lens) if n is None else n
    seen = np.zeros((sum(q_lens), n), bool)
    for row, _, kv_start, kv_end, s, e in row_keys(q_lens, k_lens, intervals, **rule):
        for j in range(kv_end - kv_start):
            seen[row, kv_start + j] = j < e and (j >= s or j < num_sink_tokens)
    return seen


def columns_of(seen):
    """Return [LTS, UTE] of a matrix in which each column is seen by one run of rows or by none.

    A column that no row sees has no definite place; it is given (-1, -1).
    """
    bounds = np.full((seen.shape[1], 2), -1, np.int32)
    for c in range(seen.shape[1]):
        rows = np.flatnonzero(seen[:, c])
        if rows.size:
            assert rows[-1] - rows[0] + 1 == rows.size, f"column {c} is not one run of rows"
            bounds[c] = rows[-1] + 1, rows[0]
    return bounds


def shown(columns, q_token_num):
    """Return the boolean (Q, N) matrix that the columns show."""
    row = np.arange(q_token_num)[:, None]
    return (row >= columns[:, 1]) & (row < columns[:, 0])


def superset(q_lens, k_lens, intervals):
    """Return what two columns show of arbitrary intervals: the spec's rule, row by row.

    Row r is shown the keys from the smallest start of itself and the rows after it up to the
    largest end of itself and the rows before it, in its sequence.
    """
    starts, ends, own = {}, {}, {}
    for row, b, kv_start, kv_end, s, e in row_keys(q_lens, k_lens, intervals):
        own.setdefault(b, []).append(row)
        starts[row] = kv_start + s if s < e else kv_end
        ends[row] = kv_start + e if s < e else kv_start
    seen = np.zeros((sum(q_lens), sum(k_lens)), bool)
    for rows in own.values():
        for row in rows:
            first = min(starts[r] for r in rows if r >= row)
            last = max(ends[r] for r in rows if r <= row)
            seen[row, first:last] = True
    return seen


def tree_visible(parent, q_lens, k_lens, full=None):
    """Return the boolean (Q, N) matrix of a forest: does the row see the key? By its ancestors."""
    q_cuts, k_cuts = np.cumsum([0, *q_lens]), np.cumsum([0, *k_lens])
    seen = np.zeros((q_cuts[-1], k_cuts[-1]), bool)
    for b, (q_len, kv_len) in enumerate(zip(q_lens, k_lens, strict=True)):
        for i in range(q_len):
            row = q_cuts[b] + i
            for j in range(kv_len):
                is_full = full is not None and full[b] != 0
                seen[row, k_cuts[b] + j] = is_full or j < i + kv_len - q_len + 1
            ancestor = parent[b]
            while ancestor != -1:
                seen[row, k_cuts[ancestor] : k_cuts[ancestor + 1]] = True
                ancestor = parent[ancestor]
    return seen


def tokens_of(chunks):
    """Return the tokens of [start, end) ranges, in their order."""
    return np.array([x for start, end in chunks for x in range(int(start), int(end))], np.int64)


def shard(columns, row_chunks, key_chunks=None):
    """Return the columns of the rows in the chunks, stored in ascending order: row by row.

    ``columns`` (N, 2). A stored key outside of [0, N) is padding: behind all rows.
    """
    rows = tokens_of(row_chunks).tolist()
    keys = range(len(columns)) if key_chunks is None else tokens_of(key_chunks).tolist()
    local = np.empty((len(keys), 2), np.int32)
    for place, key in enumerate(keys):
        bounds = columns[key].tolist() if 0 <= key < len(columns) else (2**40, 2**40)
        local[place] = [sum(row < bound for row in rows) for bound in bounds]
    return local


def needed(columns, block_size):
    """Return how many keys of each block are shown to any row."""
    starts = range(0, len(columns), block_size)
    return [sum(int(ute < lts) for lts, ute in columns[s : s + block_size]) for s in starts]


def runs(tokens, begins):
    """Return (start, end) of each run of a (b, L) batch's tokens, counted row by row.

    A token begins a run where it is its row's first, or where begins(the one before, itself).
    """
    starts, at = [], 0
    for row in tokens:
        for i, token in enumerate(row):
            if i == 0 or begins(row[i - 1], token):
                starts.append(at)
            at += 1
    return list(zip(starts, [*starts, at][1:], strict=True))


def is_another(before, token):
    return token != before


def is_no_successor(before, token):
    return token != before + 1


def cu_seqlens_of(documents, max_sequence_num):
    """Return the cuts of those documents that fit, and empty ones behind the last of them."""
    fitting = documents[:max_sequence_num]
    cuts = [0, *(end for _, end in fitting)]
    return cuts + [cuts[-1]] * (max_sequence_num + 1 - len(cuts))


def cu_seqlens_from_ids(ids, max_sequence_num, padding_id=None):
    """Ids as a list of batch rows, each a list of ints."""
    documents = runs(ids, is_another)
    if padding_id is not None and documents and ids[-1][-1] == padding_id:
        documents.pop()
    return cu_seqlens_of(documents, max_sequence_num)


def cu_seqlens_from_positions(position_ids, max_sequence_num):
    return cu_seqlens_of(runs(position_ids, is_no_successor), max_sequence_num)


def spans_from_ids(ids, max_span_num, text_id):
    flat = [token for row in ids for token in row]
    spans = [[start, end] for start, end in runs(ids, is_another) if flat[start] != text_id]
    spans = spans[:max_span_num]
    last_end = spans[-1][1] if spans else 0
    return spans + [[last_end, last_end]] * (max_span_num - len(spans))


def cu_seqlens_from_padding(mask):
    """Return both cuts: front rows, front keys, the tokens, tail keys, tail rows of each row."""
    row_cuts, key_cuts = [0], [0]
    for row in mask:
        front = 0
        while front < len(row) and not row[front]:
            front += 1
        tail = 0
        while tail < len(row) - front and not row[len(row) - 1 - tail]:
            tail += 1
        tokens = len(row) - front - tail
        sequences = [(front, 0), (0, front), (tokens, tokens), (0, tail), (tail, 0)]
        for row_num, key_num in sequences:
            row_cuts.append(row_cuts[-1] + row_num)
            key_cuts.append(key_cuts[-1] + key_num)
    return row_cuts, key_cuts


def cu_seqlens_from_slots(q, q_padded, k, k_padded):
    """Return both cuts: the sequence, its gap's keys, its gap's rows. A length fills its slot at
    most."""
    row_cuts, key_cuts = [0], [0]
    for i in range(len(q) - 1):
        q_slot, k_slot = q_padded[i + 1] - q_padded[i], k_padded[i + 1] - k_padded[i]
        q_len, k_len = min(q[i + 1] - q[i], q_slot), min(k[i + 1] - k[i], k_slot)
        for row_num, key_num in [(q_len, k_len), (0, k_slot - k_len), (q_slot - q_len, 0)]:
            row_cuts.append(row_cuts[-1] + row_num)
            key_cuts.append(key_cuts[-1] + key_num)
    return row_cuts, key_cuts


def split_columns(columns, b, q_token_num):
    """Return the (b, 1, N / b, 2) bounds, rows counted in each part."""
    rows, keys = q_token_num // b, len(columns) // b
    parts = np.zeros((b, 1, keys, 2), np.int32)
    for part in range(b):
        for column in range(keys):
            for bound in range(2):
                row = int(columns[part * keys + column][bound]) - part * rows
                parts[part, 0, column, bound] = min(max(row, 0), rows)
    return parts
