"""The tables in docs/performance.md and the README."""

from benchmarks.goals import FROM_TOKENS, goals, least, over
from benchmarks.runs import place, ratio, short, tokens


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
            made_of = ratio(run["us"], least(runs, run))
            n = tokens(run["n"]) if "n" in run else ""
            over = f"{made_of.value:.2f} × {parts(run)}" if made_of else ""
            what = f"{run['what']}, {run['case']}" if "case" in run else run["what"]
            rows.append([what, n, short(run["us"]), over])
    return table(["µs of the host a call", "N", "", "over"], rows)


def parts(run):
    launches = f"{run['launches']} bare launch{'es' if run['launches'] > 1 else ''}"
    return f"({launches}, {run['allocations']} {run['by']})" if run["allocations"] else launches


def masks_table(runs):
    """Time of torch's mask, which is also compiled first, and of ours."""
    rows = []
    for theirs in sorted(runs.of("create_block_mask, compiled"), key=lambda run: run["n"]):
        n = theirs["n"]
        rows.append([
            tokens(n), one(runs.us("to_blocks", n=n)),
            *(one(runs.us("block_mask, wall", n=n, case=case)) for case in ("torch", "CuPy")),
            one(runs.us("packed_block_mask, wall", n=n)), theirs["case"],
            short(theirs["us"]), short(theirs["wall_microseconds"]),
            f"{theirs['compile_seconds']:.1f}", short(theirs["peak_bytes"] * 1e-6),
        ])  # fmt: skip
    head = [
        "N", "`to_blocks`, GPU", "`block_mask` of torch columns, wall", "of CuPy columns",
        "`packed_block_mask`, wall", "`create_block_mask` compiled, of", "GPU", "wall",
        "compiling, s", "its memory, MB",
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
        "causal or a window, any B": lambda n: span(runs.of("rule", n=n)),
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
