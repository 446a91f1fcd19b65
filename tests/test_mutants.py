"""The mutants' table fits the kernels, and the suite notices a few of them.

`make mutants` runs those of changed files; MASKQ_MUTANTS=all runs them all here.
"""

import argparse
import os
import shutil
import subprocess

import mutants
import pytest
from on_cpu import emulator

# Quick ones, of each way to notice.
FEW = (
    "probe < range.hi ?",
    "max((int)(keys_after",
    "__syncthreads();\n    fold",
    "run = below != 0",
    "row_num - (row + i)",
)


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda m: f"{m.file}-{m.why}")
def test_table(mutant):
    """Each text occurs once in all kernels, in the file that the table says, and changes."""
    texts = mutants.kernels()
    assert texts[mutant.file].count(mutant.old) == 1
    assert sum(text.count(mutant.old) for text in texts.values()) == 1
    assert mutant.new != mutant.old
    assert mutant.by in emulator.SANITIZERS


def chosen():
    if os.environ.get("MASKQ_MUTANTS") == "all":
        return mutants.MUTANTS
    return [m for m in mutants.MUTANTS if m.old.startswith(FEW)]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", chosen(), ids=lambda m: f"{m.file}-{m.why}")
def test_is_noticed(tmp_path, mutant):
    if not emulator.available():
        pytest.skip("g++ is not installed")
    few = len(chosen()) < emulator.KEPT
    assert mutants.how_noticed(mutant, emulator.FOLDER if few else tmp_path)


def test_enough():
    assert {m.file for m in mutants.MUTANTS} == set(mutants.SUITES)
    assert len(mutants.MUTANTS) >= 150
    assert len(chosen()) >= len(FEW)
    assert len(set(mutants.MUTANTS)) == len(mutants.MUTANTS)


def test_changed_kernels(tmp_path):
    """Committed on the branch or not, new or not; and what else changes is no kernel."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, text=True)

    kernels = tmp_path / "kernels"
    kernels.mkdir()
    for name in ("a.cu", "b.cuh", "c.cu", "d.cu"):
        (kernels / name).write_text("old")
    git("init", "--quiet", "--initial-branch", "main")
    git("add", ".")
    git("commit", "--quiet", "--message", "old")
    git("checkout", "--quiet", "-b", "branch")
    base = mutants.branching_point(tmp_path)
    assert mutants.changed_kernels(base, tmp_path) == set()
    (kernels / "a.cu").write_text("new")
    git("commit", "--quiet", "--all", "--message", "new")
    (kernels / "b.cuh").write_text("new")
    (kernels / "e.cu").write_text("new")
    (tmp_path / "f.cu").write_text("new")
    assert mutants.branching_point(tmp_path) == base
    assert mutants.changed_kernels(base, tmp_path) == {"a.cu", "b.cuh", "e.cu"}
    assert mutants.changed_kernels("HEAD", tmp_path) == {"b.cuh", "e.cu"}
    with pytest.raises(SystemExit, match="git knows no revision nothing: --all runs all"):
        mutants.changed_kernels("nothing", tmp_path)


def test_words_choose():
    chosen, what = mutants.choose(argparse.Namespace(words=["hang"], since=None, all=False))
    assert 0 < len(chosen) < len(mutants.MUTANTS)
    assert what == "those with hang"
