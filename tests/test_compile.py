"""Every kernel compiles for every architecture, without a warning, a spill or a stack frame."""

import re

import pytest
from on_cpu import emulator

from maskq_cupy import compiler, plan
from maskq_cupy.rule import Rule

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_compile(arch):
    pytest.importorskip("cupy")
    logs = compiler.compile_sources(arch)
    for file, log in logs.items():
        assert "warning" not in log.lower(), log
        kernels = re.findall(r"Compiling entry function '(\w+)'", log)
        assert {n for n, (f, _) in compiler.kernels().items() if f == file} == set(kernels)
        frames = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
        )
        assert frames == [("0", "0", "0")] * len(kernels), log


KERNEL = """
extern "C" __global__ __launch_bounds__(BLOCK_THREADS) void scale(
    const unsigned* words,    // (num,), not: (a, b)
    unsigned num,
    unsigned stride,          // at least 1
    long long by,
    unsigned char *out)
{
}
"""


def test_a_signature_is_read_from_the_text():
    names = ("words", "num", "stride", "by", "out")
    assert compiler.signatures(KERNEL) == {"scale": (names, "PIIqP")}
    swapped = KERNEL.replace("num,\n", "stride,\n").replace("stride,   ", "num,   ")
    assert compiler.signatures(swapped)["scale"].names == ("words", "stride", "num", "by", "out")


def test_arguments_by_name_take_the_order_of_the_signature(monkeypatch):
    """Two parameters of one type change places in a file: their values do too."""
    named = {"words": 11, "num": 22, "stride": 33, "by": -44, "out": 55}
    for names in (("num", "stride"), ("stride", "num")):
        signature = compiler.Signature(("words", *names, "by", "out"), "PIIqP")
        monkeypatch.setattr(compiler, "kernels", lambda s=signature: {"scale": ("a.cu", s)})
        make = compiler.launch_of.__wrapped__("scale")
        launch = make(3, **named)
        assert launch == ("scale", 3, (11, *(named[name] for name in names), -44, 55), False)
        assert emulator.named_arguments(launch) == named
        for wrong in ({"strides": 1}, {}):
            with pytest.raises(TypeError):
                make(3, words=1, num=2, by=3, out=4, **wrong)


def test_groups_of_arguments_are_the_first_parameters():
    """The plan hands a pack, its intervals and its staircases over as groups, in this order."""
    groups = plan.Cuts._fields + plan.Intervals._fields + plan.STAIRCASES
    seen = set()
    for name, (_, (names, _)) in compiler.kernels().items():
        if names[:2] == groups[:2]:
            common = [a for a in names if a in groups]
            assert names[: len(common)] == groups[: len(common)] == tuple(common), name
            seen.add(len(common))
    assert seen == {5, 8, 12}


def test_a_modified_rule_and_its_spans_follow_the_pack():
    groups = plan.Cuts._fields + Rule._fields + plan.Spans._fields
    names = compiler.kernels()["columns_modified_rule"][1].names
    assert names[: len(groups)] == groups


def test_inlined_source_keeps_files_and_lines():
    text = compiler.source("columns_intervals.cu")
    assert "#include" not in text
    assert text.count('#line 1 "search.cuh"') == 1
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("#ifndef NEAR_TILES"))
    last = max(i for i in range(at) if lines[i].startswith("#line"))
    number = int(lines[last].split()[1]) + at - last - 1
    original = (compiler.kernel_folder() / "columns_intervals.cu").read_text().splitlines()
    assert original[number - 1] == lines[at]
