"""The plot in docs/performance.png."""


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
