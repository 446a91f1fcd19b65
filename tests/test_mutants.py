"""The mutants' table fits the kernels, and the suite notices a few of them.

`make mutants` runs them all; so does MASKQ_MUTANTS=all here.
"""

import os

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
