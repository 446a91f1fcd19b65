"""From the benchmarks' JSON to the goals table; with --write, to the figures in the documentation.

python tests/benchmarks/report.py benchmarks.json            prints the goals
python tests/benchmarks/report.py benchmarks.json --write    writes what the repository shows:
    docs/performance.json, what the report needs of the JSON, which it also reads;
    docs/performance.png; and what is between the markers in docs/performance.md and README.md
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = ("gpu", "driver", "cupy", "torch", "python_version")
MIB = 2**20


class Runs:
    """The measurements of one run, found by their facts."""

    def __init__(self, stored):
        self.stored = stored
        self.all = [
            {**run["extra_info"], "group": run["group"], "us": run["stats"]["median"] * 1e6}
            for run in stored["benchmarks"]
        ]

    def of(self, what, **facts):
        wanted = {"what": what, **facts}
        return [run for run in self.all if wanted.items() <= run.items()]

    def us(self, what, **facts):
        """Return the microseconds of the one measurement with these facts, or None."""
        found = self.of(what, **facts)
        return found[0]["us"] if len(found) == 1 else None

    def machine(self):
        """Return one line: the GPU, the versions, the day."""
        info = {"torch": None, **self.stored["machine_info"]}
        parts = [f"{info['gpu']}, driver {info['driver']}, CuPy {info['cupy']}"]
        if info["torch"]:
            parts.append(f"torch {info['torch']}")
        return ", ".join([*parts, f"Python {info['python_version']}", self.stored["datetime"][:10]])


class Ratio(NamedTuple):
    value: float
    where: str


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


def short(number):
    """Write a number with three digits, or all that are before the point; a count in full."""
    if isinstance(number, int) or number >= 100:
        return f"{number:,.0f}"
    return f"{number:#.3g}"


def tokens(n):
    return f"{n >> 20} M" if n >= MIB else f"{n:,}"


def place(run):
    parts = [f"N = {tokens(run['n'])}"]
    if "b" in run:
        parts.append(f"B = {run['b']:,}")
    if "case" in run:
        parts.append(run["case"])
    return ", ".join(parts)


def ratio(above, below, where=""):
    return Ratio(above / below, where) if above and below else None


def largest(ratios):
    return max(filter(None, ratios), default=None)


def smallest(ratios):
    return min(filter(None, ratios), default=None)


# The goals


def over(runs, what, floor, counts=lambda run: True, **facts):
    """Return the worst ratio to a floor of the same size, among the runs that count."""
    return largest(
        ratio(run["us"], runs.us(floor, n=run["n"]), place(run))
        for run in runs.of(what, **facts)
        if counts(run)
    )


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


def host(runs, what, n):
    for run in runs.of(what, n=n):
        return ratio(run["us"], runs.us(run["against"], n=n), f"N = {tokens(n)}")
    return None


def times_torch(runs):
    found = host(runs, "torch in and out", 8192)
    return found and Ratio(1 / found.value, found.where)


def over_fill_of_lists(runs, n):
    fill = runs.us("fill of its lists", n=n)
    return ratio(runs.us("to_blocks", n=n), fill, f"N = {tokens(n)}")


def over_create_block_mask(runs, n, fact, what):
    """Return how many times ours torch's compiled create_block_mask takes, by a fact of its run."""
    for theirs in runs.of("create_block_mask, compiled", n=n):
        return ratio(theirs[fact], runs.us(what, n=n), f"N = {tokens(n)}")
    return None


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
        Goal("G1", "rules over a fill", 1.4, over(runs, "rule", "fill")),
        Goal("G1", "the same, N ≥ 16 M", 1.1,
             over(runs, "rule", "fill", lambda run: run["n"] >= 16 * MIB)),
        Goal("rules", "modified over plain, N up to 128 K", 1.5,
             over_plain(runs, lambda run: run["n"] <= 2**17)),
        Goal("rules", "the same, N ≥ 16 M", 1.2, over_plain(runs, lambda run: run["n"] >= 2**24)),
        Goal("rules", "1,000 spans over one", 1.4, many_spans_over_one(runs)),
        Goal("G2", "intervals over read and fill", 2.5, over(runs, "intervals", "read and fill")),
        Goal("G3", "published over ours", 1000, faster_than_published(runs), "≥"),
        Goal("G4", "time a column at 2 N over at N, past 1 M", 1.05, growth(runs)),
        Goal("G4", "time at the worst B over at the best", 1.4, spread(runs)),
        Goal("G5", "host: `out=` over a bare launch", 1.35, host(runs, "out= given", 8192)),
        Goal("G6", "host: new array over launch and empty", 1.35, host(runs, "new array", 8192)),
        Goal("G7", "host: three tensors of torch in", 1.6, host(runs, "torch in, new array", 1024)),
        Goal("G8", "host: torch's operators over ours", 8, times_torch(runs), "≥"),
        Goal("G9", "first call, warm cache", 0.1, first_call(runs, "warm"), unit=" s"),
        Goal("G9", "first call, cold cache", 2, first_call(runs, "cold"), unit=" s"),
        Goal("G10", "scratch memory of rules", 0, rule_scratch(runs), unit=" B"),
        Goal("G10", "scratch of intervals beyond 8 Q", 16384, scratch(runs), unit=" B"),
        Goal("tiles", "`to_blocks` over a fill of its lists", 3, over_fill_of_lists(runs, n)),
        Goal("tiles", "`create_block_mask`, compiled, over ours, on the GPU", 500,
             over_create_block_mask(runs, n, "us", "to_blocks"), "≥"),
        Goal("tiles", "the same in wall time", 200,
             over_create_block_mask(runs, n, "wall_microseconds", "block_mask, wall"), "≥"),
        Goal("tiles", "memory of `block_mask`", 40, block_mask_peak(runs, n), unit=" MB"),
        Goal("tiles", "`flex_attention`: slower lists over faster", 1.05, lists_apart(runs)),
        Goal("trees", "up to N/64 segments, over a fill", 2,
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
             host(runs, "shard, torch in, out=, chunks on the GPU", 8192)),
        Goal("shard", "host: `cp_chunks`, W = 64", 5, chunks_milliseconds(runs), unit=" ms"),
        Goal("ids", "cu_seqlens, spans: over a copy of the ids", 3, over_copy(runs)),
        Goal("ids", "the same over two empty kernels", 2, over_two_launches(runs)),
        Goal("ids", "torch's way over ours, wall time", 20, torch_over_ours(runs), "≥"),
        Goal("layer", "columns and lists, of a forward pass of FA4", 1,
             making_over_attention(runs, n), unit=" %"),
    ]  # fmt: skip


# Tables


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def goals_table(runs):
    head = ["", "ratio", "goal", "measured", "where it is worst", ""]
    return table(head, [goal.cells() for goal in goals(runs)])


def span(found):
    """Write the least and the most microseconds of some runs."""
    times = sorted(run["us"] for run in found)
    if not times:
        return ""
    low, high = short(times[0]), short(times[-1])
    return low if low == high else f"{low} to {high}"


def one(us):
    return "" if us is None else short(us)


def gpu_table(runs):
    head = [
        "columns N", "fill, 8 B a column", "rules, all B", "read and fill, 16 B",
        "intervals, all B", "published, causal, B = 1", "published, intervals, B = 1",
    ]  # fmt: skip
    rows = []
    for n in sorted({run["n"] for run in runs.of("rule")}):
        published = [runs.us("published", n=n, b=1, case=case) for case in ("causal", "sorted")]
        rows.append([
            tokens(n), one(runs.us("fill", n=n)), span(runs.of("rule", n=n)),
            one(runs.us("read and fill", n=n)), span(runs.of("intervals", n=n)),
            *map(one, published),
        ])  # fmt: skip
    return table(head, rows)


OVER_FLOORS = {
    "rules, B = 1": ("rule", "fill", {"b": 1}),
    "rules, worst B": ("rule", "fill", {}),
    "intervals, sorted, B = 1": ("intervals", "read and fill", {"b": 1, "case": "sorted"}),
    "intervals, sorted, worst B": ("intervals", "read and fill", {"case": "sorted"}),
    "intervals, random, worst B": ("intervals", "read and fill", {"case": "random"}),
    "trees of answers, 64 segments": ("tree", "fill", {"b": 64, "case": "answers"}),
    "worst B": ("tree", "fill", {"case": "answers"}),
    "star": ("tree", "fill", {"case": "star"}),
    "chain": ("tree", "fill", {"case": "chain"}),
}


def over_floors_table(runs):
    """How many times its floor each takes, size by size, where the goals name only the worst."""
    rows = []
    for n in sorted({run["n"] for run in runs.of("rule")}):
        found = [
            over(runs, what, floor, n=n, **facts) for what, floor, facts in OVER_FLOORS.values()
        ]
        rows.append([tokens(n), *("" if each is None else f"{each.value:.2f}" for each in found)])
    return table(["times its floor, N", *OVER_FLOORS], rows)


FLOORS = (
    "an empty kernel", "two empty kernels", "two empty kernels, overlapping", "fill",
    "fill after 1 dependent load", "fill after 2 dependent loads",
)  # fmt: skip


def floors_table(runs):
    sizes = sorted({run["n"] for run in runs.of("an empty kernel")})
    rows = [[what, *(one(runs.us(what, n=n)) for n in sizes)] for what in FLOORS]
    return table(["a launch on N/512 blocks", *(f"N = {tokens(n)}" for n in sizes)], rows)


def host_table(runs):
    rows = []
    for run in runs.all:
        if run["group"] == "host":
            compared = host(runs, run["what"], run["n"]) if "against" in run else None
            over = f"{short(compared.value)} × {run['against']}" if compared else ""
            rows.append([run["what"], tokens(run["n"]), short(run["us"]), over])
    return table(["µs of the host a call", "N", "", "over"], rows)


def masks_table(runs):
    """Time of torch's mask, which is also compiled first, and of ours."""
    rows = []
    for theirs in sorted(runs.of("create_block_mask, compiled"), key=lambda run: run["n"]):
        n = theirs["n"]
        rows.append([
            tokens(n), one(runs.us("to_blocks", n=n)), one(runs.us("block_mask, wall", n=n)),
            one(runs.us("packed_block_mask, wall", n=n)), short(theirs["us"]),
            short(theirs["wall_microseconds"]), f"{theirs['compile_seconds']:.1f}",
            short(theirs["peak_bytes"] * 1e-6),
        ])  # fmt: skip
    head = [
        "N", "`to_blocks`, GPU", "`block_mask`, wall", "`packed_block_mask`, wall",
        "`create_block_mask` compiled, GPU", "wall", "compiling, s", "memory, MB",
    ]  # fmt: skip
    return table(head, rows)


DIRECTIONS = ("forward", "backward")
WAYS = ("FA4, our lists", "flex, our lists", "FA4 varlen", "flex, torch's lists", "dense SDPA")


def attention_table(runs):
    """Forward and backward milliseconds of each way that was there."""
    cases = dict.fromkeys(run["case"] for run in runs.of("attention forward"))
    rows = []
    for case in cases:
        made = [runs.us(f"columns and lists, {clock}", case=case) for clock in ("GPU", "wall")]
        times = [
            [runs.us(f"attention {direction}", case=case, way=way) for direction in DIRECTIONS]
            for way in WAYS
        ]
        cells = [" / ".join(milliseconds(us) for us in both) if any(both) else "" for both in times]
        rows.append([case, *map(one, made), *cells])
    head = ["forward / backward, ms", "columns and lists, GPU, µs", "wall, µs", *WAYS]
    return table(head, rows)


def milliseconds(us):
    return "-" if us is None else short(us * 1e-3)


README_SIZES = (2**13, 2**17, 2**20, 2**26)


def readme_part(runs):
    rows = {
        "the floor: write 8 bytes a column": lambda n: one(runs.us("fill", n=n)),
        "a rule, any B": lambda n: span(runs.of("rule", n=n)),
        "the floor: read 8 bytes a row too": lambda n: one(runs.us("read and fill", n=n)),
        "intervals, any B": lambda n: span(runs.of("intervals", n=n)),
        "published, causal, B = 1": lambda n: one(runs.us("published", n=n, b=1, case="causal")),
    }
    head = ["µs on the GPU", *(f"N = {tokens(n)}" for n in README_SIZES)]
    cells = [[name, *map(cell, README_SIZES)] for name, cell in rows.items()]
    picture = "![device time against the number of columns](docs/performance.png)"
    return f"{picture}\n\n{table(head, cells)}\n\n{runs.machine()}."


def cu_seqlens_table(runs):
    """What makes cu_seqlens, at 131,072 tokens of documents of 1,024, beside its floors."""
    n, rows = 2**17, []
    for what in (*FROM_TOKENS, "cu_seqlens_from_padding", "copy"):
        for run in runs.of(what, n=n):
            rows.append([what, place(run), run["dtype"], short(run["us"])])
    return table(["µs on the GPU", "tokens", "dtype", ""], rows)


def docs_part(runs):
    times = "Device times in µs, medians of graph replays, from the least to the most."
    return "\n\n".join([
        f"Measured on {runs.machine()}.", goals_table(runs), times, gpu_table(runs),
        over_floors_table(runs), floors_table(runs), host_table(runs), masks_table(runs),
        cu_seqlens_table(runs), attention_table(runs),
    ])  # fmt: skip


def between_markers(text, name, part):
    """Replace what is between `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    replaced, times = re.subn(pattern, lambda _: begin + part + end, text, flags=re.DOTALL)
    if times != 1:
        raise ValueError(f"the text must have one {begin.strip()} … {end.strip()}, got {times}")
    return replaced


# The plot


def curve(runs, what, **facts):
    """Return the sizes, and of each the least and the most time."""
    found = runs.of(what, **facts)
    sizes = sorted({run["n"] for run in found})
    times = [[run["us"] for run in found if run["n"] == n] for n in sizes]
    return sizes, [min(t) for t in times], [max(t) for t in times]


CURVES = (
    # what, facts, label, style
    ("rule", {}, "rules, any B", {"color": "C0", "marker": "o"}),
    ("fill", {}, "floor: write 8 B a column", {"color": "C0", "linestyle": "--"}),
    ("intervals", {}, "intervals, any B", {"color": "C1", "marker": "o"}),
    ("read and fill", {}, "floor: read 8 B a row too", {"color": "C1", "linestyle": "--"}),
    ("published", {"b": 1, "case": "causal"}, "published, causal, B = 1",
     {"color": "C7", "marker": "s"}),
    ("published", {"b": 1, "case": "sorted"}, "published, intervals, B = 1",
     {"color": "C3", "marker": "s"}),
)  # fmt: skip


def plot(runs, path):
    """Draw device time against N: the most that B makes of it, and a band down to the least."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for what, facts, label, style in CURVES:
        sizes, least, most = curve(runs, what, **facts)
        axes.plot(sizes, most, label=label, linewidth=1.2, markersize=3, **style)
        axes.fill_between(sizes, least, most, color=style["color"], alpha=0.3, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="columns N", ylabel="µs on the GPU")
    axes.set_title(runs.machine(), fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


# Files


def load(path):
    """Return the runs of a JSON of pytest-benchmark, or of docs/performance.json."""
    return Runs(json.loads(path.read_text()))


def small(stored):
    """Return what the report needs of a JSON of pytest-benchmark."""
    info = stored["machine_info"]
    return {
        "datetime": stored["datetime"][:10],
        "machine_info": {name: info[name] for name in MACHINE if info.get(name)},
        "benchmarks": [
            {
                "name": run["name"],
                "group": run["group"],
                "extra_info": {name: rounded(fact) for name, fact in run["extra_info"].items()},
                "stats": {"median": rounded(run["stats"]["median"])},
            }
            for run in stored["benchmarks"]
        ],
    }


def rounded(fact):
    return float(f"{fact:.4g}") if isinstance(fact, float) else fact


def one_a_line(stored):
    """Write the small JSON with a measurement a line."""
    head = {name: value for name, value in stored.items() if name != "benchmarks"}
    lines = ",\n".join(json.dumps(run, ensure_ascii=False) for run in stored["benchmarks"])
    return json.dumps(head, indent=1)[:-2] + ',\n "benchmarks": [\n' + lines + "\n ]\n}\n"


def write(stored, root=ROOT):
    stored = small(stored)
    runs = Runs(stored)
    docs = root / "docs"
    (docs / "performance.json").write_text(one_a_line(stored))
    for file, name, part in (
        (docs / "performance.md", "figures", docs_part(runs)),
        (root / "README.md", "speed", readme_part(runs)),
    ):
        file.write_text(between_markers(file.read_text(), name, part))
    plot(runs, docs / "performance.png")


def main(arguments=None):
    parser = argparse.ArgumentParser(description="The goals table of a run of the benchmarks.")
    parser.add_argument("json", type=Path, help="what pytest wrote with --benchmark-json")
    parser.add_argument("--write", action="store_true", help="write docs/ and the README's figures")
    options = parser.parse_args(arguments)
    try:
        runs = load(options.json)
    except FileNotFoundError:
        sys.exit(f"{options.json} is not there: were all benchmarks skipped, as without a GPU?")
    print(runs.machine())
    for goal in goals(runs):
        print(goal_line(goal))
    if options.write:
        write(runs.stored)


def goal_line(goal):
    """Write a goal in columns for the terminal."""
    name, what, limit, measured, where, verdict = goal.cells()
    what = what.replace("`", "")
    return f"{name:6}{what:54}{limit:>12}{measured:>12}  {verdict:13}{where}".rstrip()


if __name__ == "__main__":
    main()
