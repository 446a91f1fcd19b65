"""What is compiled is what was installed: nothing of the environment, nothing of the folder."""

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from maskq_cupy import compile

ROOT = Path(__file__).resolve().parent.parent

PRINT = """
import hashlib
from maskq_cupy import compile
for path in sorted(compile.kernel_folder().glob("*.cu")):
    print(path.name, hashlib.sha256(compile.source(path.name).encode()).hexdigest())
print(compile.OPTIONS)
"""


def test_environment_and_folder_change_nothing(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "columns_rule.cu").write_text("not this one")
    names = ("CFLAGS", "CPATH", "CXXFLAGS", "MASKQ_OPTIONS", "NVCC", "NVCC_APPEND_FLAGS")
    hostile = dict.fromkeys((*names, "BLOCK_THREADS"), "-DBLOCK_THREADS=7")
    printed = subprocess.run(
        [sys.executable, "-c", PRINT],
        cwd=tmp_path,
        env=os.environ | hostile | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [
        f"{path.name} {hashlib.sha256(compile.source(path.name).encode()).hexdigest()}"
        for path in sorted(compile.kernel_folder().glob("*.cu"))
    ]
    assert printed.splitlines() == [*expected, str(compile.OPTIONS)]


def test_options_are_constants():
    """A tuple of strings made of the module's own integers; a test that fails on a new option."""
    constants = {n: v for n, v in vars(compile).items() if n.isupper() and isinstance(v, int)}
    defined = {option.removeprefix("-D") for option in compile.OPTIONS[1:]}
    assert compile.OPTIONS[0] == "-std=c++17"
    assert defined <= {f"{name}={value}" for name, value in constants.items()}


def test_the_package_reads_no_environment_variable():
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "expandvars", "expanduser"}
    for path in (ROOT / "maskq_cupy").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            used = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            assert used not in names, f"{path.name}:{node.lineno}"


def test_kernels_include_only_each_other():
    names = {path.name for path in compile.kernel_folder().iterdir()}
    for name in names:
        for line in (compile.kernel_folder() / name).read_text().splitlines():
            if line.lstrip().startswith("#include"):
                assert line.split('"')[1] in names
