"""The benchmarks' report: goals, tables, plot; and what is shown is what is stored."""

import json
import shutil
from pathlib import Path

import pytest
from benchmarks import goals, report, runs, tables

ROOT = Path(__file__).parent.parent
STORED = ROOT / "docs" / "performance.json"
MACHINE = {
    "gpu": "GPU X",
    "driver": "1.2",
    "cupy": "14",
    "torch": None,
    "python_version": "3.12.1",
    "node": "a name that nobody needs to know",
}


def run(what, us, group="gpu", **facts):
    facts = {"what": what, **facts}
    return {"name": "a test", "group": group, "extra_info": facts, "stats": {"median": us * 1e-6}}


def stored(*runs):
    date = "2026-01-02T03:04:05+00:00"
    return {"datetime": date, "machine_info": MACHINE, "benchmarks": list(runs)}


def small_run(rule_us=2.0):
    n = 2**17
    return stored(
        run("fill", 1.5, n=n, bytes=8 * n),
        run("read and fill", 2.0, n=n, bytes=16 * n),
        run("rule", rule_us, n=n, b=1, case="causal", scratch_bytes=0),
        run("rule", 1.6, n=n, b=64, case="window", scratch_bytes=0),
        run("modified rule", 2.4, n=n, b=1, case="chunks"),
        run("modified rule", 2.5, n=n, b=1, case="one span"),
        run("modified rule", 3.0, n=n, b=1, case="1,000 spans"),
        run("intervals", 5.0, n=n, b=1, case="sorted", scratch_bytes=8 * n + 4096),
        run("published", 3000.0, n=n, b=1, case="causal"),
        run("published", 10_000.0, n=n, b=1, case="sorted"),
        run("bare launch", 7.0, "host"),
        run("torch.empty", 3.0, "host"),
        run("out= given", 6.3, "host", n=8192, b=8, launches=1, allocations=0, by=""),
        run("packed_block_mask", 54.0, "host", n=8192, launches=3, allocations=2, by="torch.empty"),
        run("first call", 1.5e6, "first_call", case="rule", cache="cold"),
    )


def verdicts(of_run):
    """Return the measured ratio, where, and the verdict of each goal, by its first two cells."""
    rows = [goal.cells() for goal in goals.goals(runs.Runs(of_run))]
    return {(name, what): tuple(rest) for name, what, _, *rest in rows}


def test_goals():
    found = verdicts(small_run())
    assert found["G1", "rules over a fill, B up to 31"] == (
        *("1.33", "N = 131,072, B = 1, causal", "reached"),
    )
    assert found["G1", "the same, more sequences"][0] == "1.07"
    modified = found["rules", "modified over plain, N up to 128 K"]
    assert modified == ("1.50", "N = 131,072, B = 1, 1,000 spans", "reached")
    assert found["rules", "1,000 spans over one"][::2] == ("1.20", "reached")
    assert found["rules", "the same, N ≥ 16 M"][::2] == ("", "not measured")
    assert found["G2", "intervals over read and fill, sorted, N < 16 M"][::2] == ("2.50", "reached")
    assert found["G3", "published over ours"] == ("1,500", "causal, N = 131,072", "reached")
    assert found["host", "`out=` of CuPy, over its launch"][::2] == ("0.900", "reached")
    packed = found["host", "`packed_block_mask`, over three and two"]
    assert packed == ("2.00", "packed_block_mask, N = 8,192", "reached")
    assert found["G9", "first call, cold cache"] == ("1.50 s", "rule", "reached")
    assert found["G10", "scratch given to intervals beyond 8 Q"][::2] == ("4,096 B", "reached")
    assert found["G9", "first call, warm cache"] == ("", "", "not measured")


def test_goals_that_are_missed():
    found = verdicts(small_run(rule_us=3.5))
    assert found["G1", "rules over a fill, B up to 31"][::2] == ("2.33", "not reached")
    assert found["G3", "published over ours"][::2] == ("857", "not reached")


def test_growth_compares_documents_of_like_length():
    n = 2**20
    found = verdicts(
        stored(
            run("rule", 4.0, n=n, b=1, case="causal", scratch_bytes=0),
            run("rule", 4.0, n=n, b=n // 128, case="causal", scratch_bytes=0),
            run("rule", 8.0, n=2 * n, b=1, case="causal", scratch_bytes=0),
            run("rule", 9.0, n=2 * n, b=n // 64, case="causal", scratch_bytes=0),
        )
    )
    growth = found["G4", "time a column at 2 N over at N, past 1 M"]
    assert growth == ("1.12", "rule, N = 1 M, B = 8,192, causal to its double", "not reached")


def test_markers():
    text = "before\n<!-- speed -->\nold\nlines\n<!-- /speed -->\nbehind\n"
    replaced = report.between_markers(text, "speed", r"new \1")
    assert replaced == "before\n<!-- speed -->\nnew \\1\n<!-- /speed -->\nbehind\n"
    with pytest.raises(ValueError, match="must have one <!-- figures --> … <!-- /figures -->"):
        report.between_markers(text, "figures", "new")


def test_write(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "docs").mkdir()
    for file in ("README.md", "docs/performance.md"):
        shutil.copyfile(ROOT / file, tmp_path / file)
    report.write(small_run(), tmp_path)
    files = [tmp_path / file for file in ("README.md", "docs/performance.md")]
    first = [file.read_text() for file in files]
    assert all("GPU X, driver 1.2, CuPy 14, Python 3.12.1, 2026-01-02" in text for text in first)
    assert (tmp_path / "docs" / "performance.png").stat().st_size > 1000
    kept = (tmp_path / "docs" / "performance.json").read_text()
    assert "nobody" not in kept
    report.write(json.loads(kept), tmp_path)  # it reads what it wrote
    assert [file.read_text() for file in files] == first


def test_missing_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"none\.json is not there: were all benchmarks skipped"):
        report.main([str(tmp_path / "none.json")])


@pytest.mark.skipif(not STORED.exists(), reason="no run of the benchmarks is stored")
@pytest.mark.parametrize(
    ("file", "part"),
    [("README.md", tables.readme_part), ("docs/performance.md", tables.docs_part)],
)
def test_shown_figures_are_of_the_stored_run(file, part):
    assert part(report.load(STORED)) in (ROOT / file).read_text()


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_baselines_compile(arch):
    nvrtc = pytest.importorskip("cupy").cuda.nvrtc
    text = (ROOT / "tests" / "benchmarks" / "baselines.cu").read_text()
    program = nvrtc.createProgram(text, "baselines.cu", (), ())
    try:
        nvrtc.compileProgram(program, ("-std=c++17", f"-arch=sm_{arch}"))
    finally:
        assert nvrtc.getProgramLog(program).strip("\0\n ") == ""
        nvrtc.destroyProgram(program)


def test_attention_in_a_table_and_a_goal():
    """Ways that were not there are left out, and a direction that one does not have."""
    case, n = "window, 128 K", 2**17
    of_run = stored(
        run("attention forward", 3300.0, "attention", n=n, case=case, way="FA4, our lists"),
        run("attention backward", 7430.0, "attention", n=n, case=case, way="FA4, our lists"),
        run("attention forward", 2050.0, "attention", n=n, case=case, way="FA4 varlen"),
        run("columns and lists, GPU", 16.5, "attention", n=n, case=case),
    )
    head, _, row = tables.attention_table(runs.Runs(of_run)).splitlines()
    assert head.split(" | ")[3:5] == ["FA4, our lists", "flex, our lists"]
    assert row == "| window, 128 K | 16.5 |  | 3.30 / 7.43 |  | 2.05 / - |  |  |"
    goal = verdicts(of_run)["layer", "columns and lists, of a forward pass of FA4, 128 K"]
    assert goal == ("0.500 %", case, "reached")
