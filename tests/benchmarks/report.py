# ruff: noqa: E402
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

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks.goals import goals
from benchmarks.plot import plot
from benchmarks.runs import MACHINE, Runs
from benchmarks.tables import docs_part, readme_part


def between_markers(text, name, part):
    """Replace what is between `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    replaced, times = re.subn(pattern, lambda _: begin + part + end, text, flags=re.DOTALL)
    if times != 1:
        raise ValueError(f"the text must have one {begin.strip()} … {end.strip()}, got {times}")
    return replaced


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
