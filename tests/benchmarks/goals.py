"""The goals, and the worst that was measured of each. To add one: a row of `goals`."""

from typing import NamedTuple

from benchmarks.runs import MIB, Ratio, largest, place, ratio, short, smallest, tokens


class Goal(NamedTuple):
    """A goal, and the worst ratio that was measured, or None if nothing was."""

    name: str
    what: str
    limit: float
    worst: Ratio | None
    sign: str = "≤"
    unit: str = ""

    def reached(self):
        if self.sign == "≥":
            return self.worst.value >= self.limit
        return self.worst.value <= self.limit

    def cells(self):
        limit = f"{self.sign} {self.limit:,g}{self.unit}"
        if self.worst is None:
            return [self.name, self.what, limit, "", "", "not measured"]
        measured = f"{short(self.worst.value)}{self.unit}"
        verdict = "reached" if self.reached() else "not reached"
        return [self.name, self.what, limit, measured, self.worst.where, verdict]


def over(runs, what, floor, counts=lambda run: True, **facts):
    """Return the worst ratio to a floor of the same size, among the runs that count."""
    return largest(
        ratio(run["us"], runs.us(floor, n=run["n"]), place(run))
        for run in runs.of(what, **facts)
        if counts(run)
    )


def over_read(runs, counts):
    """Return the worst ratio of intervals to reading and writing as many bytes."""
    return over(runs, "intervals", "read and fill", counts)


def is_sorted(run):
    return run["case"].startswith("sorted")


def over_plain(runs, counts):
    """Return how many times the plain causal rule of the same pack a modified one takes at most."""
    return largest(
        ratio(run["us"], runs.us("rule", n=run["n"], b=run["b"], case="causal"), place(run))
        for run in runs.of("modified rule")
        if counts(run)
    )


def many_spans_over_one(runs):
    return largest(
        ratio(run["us"], runs.us(run["what"], n=run["n"], b=run["b"], case="one span"), place(run))
        for run in runs.of("modified rule", case="1,000 spans")
    )


def faster_than_published(runs):
    pairs = (("causal", "rule"), ("sorted", "intervals"))
    return smallest(
        ratio(
            runs.us("published", n=2**17, b=1, case=case),
            runs.us(ours, n=2**17, b=1, case=case),
            f"{case}, N = {tokens(2**17)}",
        )
        for case, ours in pairs
    )


def growth(runs):
    """Return how much the time of a column grows at most from a size to its double past 1 M."""
    return largest(
        ratio(twice["us"] / 2, run["us"], f"{what}, {place(run)} to its double")
        for what in ("rule", "intervals")
        for run in runs.of(what)
        if run["n"] >= MIB
        for twice in runs.of(what, n=2 * run["n"], case=run["case"])
        if twice["b"] == (2 * run["b"] if run["b"] > 1 else 1)  # documents as long as before
    )


def spread(runs):
    """Return how much the number of sequences moves the time at most."""
    found = []
    for what in ("rule", "intervals"):
        for n, case in {(run["n"], run["case"]) for run in runs.of(what)}:
            times = [run["us"] for run in runs.of(what, n=n, case=case)]
            found.append(ratio(max(times), min(times), f"{what}, N = {tokens(n)}, {case}"))
    return largest(found)


def first_call(runs, cache):
    return largest(
        Ratio(run["us"] * 1e-6, run["case"]) for run in runs.of("first call", cache=cache)
    )


def scratch(runs):
    """Return the scratch bytes beyond 8 a row."""
    return largest(Ratio(r["scratch_bytes"] - 8 * r["n"], place(r)) for r in runs.of("intervals"))


def rule_scratch(runs):
    return largest(Ratio(run["scratch_bytes"], place(run)) for run in runs.of("rule"))


def least(runs, run):
    """Return what a call takes at least: the bare launches and the allocations that it makes."""
    if "launches" not in run:
        return None
    parts = [(run["launches"], "bare launch"), (run["allocations"], run["by"])]
    times = [count * (runs.us(what) or 0) for count, what in parts if count]
    return sum(times) if all(times) else None


def host(runs, *whats, **facts):
    """Return how many times its bare launches and allocations a call takes at most."""
    return largest(
        ratio(run["us"], least(runs, run), f"{what}, N = {tokens(run['n'])}")
        for what in whats
        for run in runs.of(what, **facts)
    )


def over_fill_of_lists(runs, n):
    fill = runs.us("fill of its lists", n=n)
    return ratio(runs.us("to_blocks", n=n), fill, f"N = {tokens(n)}")


def narrow_over_fill(runs):
    return largest(
        ratio(run["us"], runs.us("fill of narrow lists", n=run["n"], case=run["case"]), place(run))
        for run in runs.of("narrow lists")
        if run["case"] != "mixed"
    )


def narrow_growth(runs):
    """Return how much more a token takes at 16 M than at 1 M."""
    return largest(
        ratio(run["us"] / 16, runs.us("narrow lists", n=MIB, case=run["case"]), place(run))
        for run in runs.of("narrow lists", n=16 * MIB)
    )


def narrow_memory(runs):
    return largest(
        Ratio(run["held_bytes"] * 1e-9, place(run)) for run in runs.of("narrow lists", n=16 * MIB)
    )


def mixed_over_full_width(runs):
    full = runs.us("full lists", n=MIB, case="mixed")
    return ratio(runs.us("narrow lists", n=MIB, case="mixed"), full, f"N = {tokens(MIB)}")


def over_create_block_mask(runs, n, fact, *whats):
    """Return how many times ours torch's compiled create_block_mask takes, by a fact of its run,
    in its quickest form."""
    quickest = min((run[fact] for run in runs.of("create_block_mask, compiled", n=n)), default=None)
    return smallest(
        ratio(quickest, run["us"], place(run)) for what in whats for run in runs.of(what, n=n)
    )


def block_mask_peak(runs, n):
    return largest(
        Ratio(run["peak_bytes"] * 1e-6, place(run)) for run in runs.of("block_mask, wall", n=n)
    )


def lists_apart(runs):
    times = [runs.us("flex_attention", lists=lists) for lists in ("ours", "torch's")]
    return ratio(max(times), min(times), f"N = {tokens(2**15)}") if all(times) else None


def shards(runs, limit, case, least, most):
    """Return the goal of a rank's columns over their floor, for sizes of least up to most."""
    sizes = f"N = {tokens(least)}" + (f" to {tokens(most)}" if most > least else "")
    worst = over(runs, "shard", "read and fill", lambda r: least <= r["n"] <= most, case=case)
    return Goal("shard", f"{case}, over read and fill, {sizes}", limit, worst)


def columns_and_shard(runs, n):
    alone = runs.us("rule", n=n, b=n // 1024, case="causal")
    return largest(ratio(run["us"], alone, place(run)) for run in runs.of("columns and shard", n=n))


def times_ours(runs, theirs, ours, n, **facts):
    return ratio(runs.us(theirs, n=n), runs.us(ours, n=n, **facts), f"N = {tokens(n)}")


def chunks_milliseconds(runs):
    return largest(Ratio(run["us"] * 1e-3, run["case"]) for run in runs.of("cp_chunks"))


FROM_TOKENS = ("cu_seqlens_from_ids", "cu_seqlens_from_positions", "spans_from_ids")


def over_copy(runs):
    """Return how many times a copy of the tokens each takes at most, of documents of 1,024."""
    n = 2**17
    return largest(
        ratio(run["us"], runs.us("copy", n=n, dtype=run["dtype"]), f"{what}, {run['dtype']}")
        for what in FROM_TOKENS
        for run in runs.of(what, n=n, case="documents")
    )


def over_two_launches(runs):
    """Return how many times two empty kernels of a graph each takes at most."""
    n = 2**17
    floor = runs.us("two empty kernels", n=n)
    return largest(
        ratio(run["us"], floor, f"{what}, {run['dtype']}")
        for what in FROM_TOKENS
        for run in runs.of(what, n=n, case="documents")
    )


def torch_over_ours(runs):
    def wall(case, whose):
        return runs.us(f"cu_seqlens from {case}, {whose}, wall")

    cases = ("ids", "positions")
    return smallest(ratio(wall(case, "torch's"), wall(case, "ours"), case) for case in cases)


def making_over_attention(runs, n):
    """Return what columns and lists take of a layer's forward pass on them, in percent at most."""
    return largest(
        ratio(100 * run["us"], layer["us"], run["case"])
        for run in runs.of("columns and lists, GPU", n=n)
        for layer in runs.of("attention forward", case=run["case"], way="FA4, our lists")
    )


def goals(runs):
    n = 2**17  # of the goals about tiles
    return [
        Goal("G1", "rules over a fill, B up to 31", 1.4,
             over(runs, "rule", "fill", lambda run: run["b"] <= 31)),
        Goal("G1", "the same, more sequences", 1.7,
             over(runs, "rule", "fill", lambda run: run["b"] > 31 and run["n"] < 16 * MIB)),
        Goal("G1", "the same, N ≥ 16 M, any B", 1.1,
             over(runs, "rule", "fill", lambda run: run["n"] >= 16 * MIB)),
        Goal("rules", "modified over plain, N up to 128 K", 1.5,
             over_plain(runs, lambda run: run["n"] <= 2**17)),
        Goal("rules", "the same, N ≥ 16 M", 1.2, over_plain(runs, lambda run: run["n"] >= 2**24)),
        Goal("rules", "1,000 spans over one", 1.4, many_spans_over_one(runs)),
        Goal("G2", "intervals over read and fill, sorted, N < 16 M", 3.5,
             over_read(runs, lambda run: is_sorted(run) and run["n"] < 16 * MIB)),
        Goal("G2", "the same, N ≥ 16 M", 2.2,
             over_read(runs, lambda run: is_sorted(run) and run["n"] >= 16 * MIB)),
        Goal("G2", "intervals over read and fill, random", 4,
             over_read(runs, lambda run: not is_sorted(run))),
        Goal("G3", "published over ours", 1000, faster_than_published(runs), "≥"),
        Goal("G4", "time a column at 2 N over at N, past 1 M", 1.05, growth(runs)),
        Goal("G4", "time at the worst B over at the best", 1.4, spread(runs)),
        Goal("host", "`out=` of CuPy, over its launch", 1.7, host(runs, "out= given")),
        Goal("host", "new array, over launch and allocation", 1.7, host(runs, "new array")),
        Goal("host", "columns from three tensors of torch, the same", 1.6,
             host(runs, "three tensors of torch in", launches=1)),
        Goal("host", "intervals, over two of each", 1.4,
             host(runs, "three tensors of torch in", launches=2)),
        Goal("host", "`block_mask`, over two launches and an allocation", 2,
             host(runs, "block_mask of torch columns", "block_mask of CuPy columns")),
        Goal("host", "`packed_block_mask`, over three and two", 2.2,
             host(runs, "packed_block_mask")),
        Goal("host", "FA4's `packed_arguments`, over three and two", 2.2,
             host(runs, "FA4's packed_arguments")),
        Goal("host", "torch's operators over ours, `out=torch.empty(…)`", 7,
             times_ours(runs, "torch's operators", "torch in and out", 8192), "≥"),
        Goal("G9", "first call, warm cache", 0.1, first_call(runs, "warm"), unit=" s"),
        Goal("G9", "first call, cold cache", 2, first_call(runs, "cold"), unit=" s"),
        Goal("G10", "scratch memory of rules", 0, rule_scratch(runs), unit=" B"),
        Goal("G10", "scratch given to intervals beyond 8 Q", 16384, scratch(runs), unit=" B"),
        Goal("tiles", "`to_blocks` over a fill of its lists", 2.6, over_fill_of_lists(runs, n)),
        Goal("narrow", "lists of documents up to 32 K, over a fill", 3, narrow_over_fill(runs)),
        Goal("narrow", "time a token at 16 M over at 1 M", 1.3, narrow_growth(runs)),
        Goal("narrow", "columns, lists and scratch at 16 M", 1.5, narrow_memory(runs), unit=" GB"),
        Goal("narrow", "other columns, over full width", 1, mixed_over_full_width(runs)),
        Goal("tiles", "`create_block_mask`, compiled, over ours, on the GPU, 128 K", 500,
             over_create_block_mask(runs, n, "us", "to_blocks"), "≥"),
        Goal("tiles", "the same in wall time", 200,
             over_create_block_mask(runs, n, "wall_microseconds", "block_mask, wall"), "≥"),
        Goal("tiles", "memory of `block_mask`", 40, block_mask_peak(runs, n), unit=" MB"),
        Goal("tiles", "`flex_attention`: slower lists over faster", 1.05, lists_apart(runs)),
        Goal("trees", "of answers, up to N/64 segments, over a fill", 2,
             over(runs, "tree", "fill", lambda run: run["b"] <= run["n"] // 64, case="answers")),
        shards(runs, 1.5, "zigzag", 2**13, 2**26),
        shards(runs, 1.15, "zigzag", 2**24, 2**26),
        shards(runs, 2, "balanced", 2**17, 2**20),
        shards(runs, 4, "per_sequence", 2**17, 2**20),
        Goal("shard", "columns and shard over columns", 3, columns_and_shard(runs, n)),
        Goal("shard", "torch's operators for dual chunks, over ours", 5,
             times_ours(runs, "dual chunks, torch's operators", "shard", n, case="zigzag"), "≥"),
        Goal("shard", "`_create_cp_block_mask` over ours, W = 8", 100,
             times_ours(runs, "_create_cp_block_mask", "columns, shard and tiles", n), "≥"),
        Goal("shard", "host: torch in, `out=`, over a bare launch", 2,
             host(runs, "shard, torch in, out=, chunks on the GPU")),
        Goal("shard", "host: `cp_chunks`, W = 64", 5, chunks_milliseconds(runs), unit=" ms"),
        Goal("ids", "cu_seqlens, spans of documents of 1,024: over a copy of the ids", 3,
             over_copy(runs)),
        Goal("ids", "the same over two empty kernels", 2, over_two_launches(runs)),
        Goal("ids", "torch's way over ours, wall time", 20, torch_over_ours(runs), "≥"),
        Goal("layer", "columns and lists, of a forward pass of FA4, 128 K", 1,
             making_over_attention(runs, n), unit=" %"),
    ]  # fmt: skip
