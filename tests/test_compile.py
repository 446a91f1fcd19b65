"""Every kernel compiles for every architecture, without a warning, a spill or a stack frame."""

import re

import pytest

from maskq_cupy import compile

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_kernels_compile(arch):
    pytest.importorskip("cupy")
    logs = compile.compile_sources(arch)
    names = {name for name, (file, _) in compile._KERNELS.items() if file in logs}
    assert names == set(compile._KERNELS)
    for file, log in logs.items():
        assert "warning" not in log.lower(), log
        kernels = re.findall(r"Compiling entry function '(\w+)'", log)
        assert {n for n, (f, _) in compile._KERNELS.items() if f == file} == set(kernels)
        frames = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log
        )
        assert frames == [("0", "0", "0")] * len(kernels), log


def test_parameters_are_packed_as_the_kernels_declare_them():
    """The packed struct has a field of the right kind for each parameter of the signature."""
    kinds = {"int": "i", "unsigned": "I"}
    for name, (file, form) in compile._KERNELS.items():
        text = re.sub("//.*", "", compile.source(file))
        signature = re.search(rf"void {name}\((.*?)\)", text, re.DOTALL)[1]
        parameters = [parameter.split() for parameter in signature.split(",")]
        kinds_found = "".join("P" if "*" in "".join(p) else kinds[p[0]] for p in parameters)
        assert kinds_found == form, name


def test_inlined_source_keeps_files_and_lines():
    text = compile.source("columns_intervals.cu")
    assert "#include" not in text
    assert text.count('#line 1 "search.cuh"') == 1
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("#ifndef NEAR_TILES"))
    last = max(i for i in range(at) if lines[i].startswith("#line"))
    number = int(lines[last].split()[1]) + at - last - 1
    original = (compile.kernel_folder() / "columns_intervals.cu").read_text().splitlines()
    assert original[number - 1] == lines[at]
