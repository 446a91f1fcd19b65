"""The measurements of a run of the benchmarks, found by their facts, and in words."""

from typing import NamedTuple

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
