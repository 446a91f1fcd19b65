"""What is compiled is what was installed: nothing of the environment, nothing of the folder."""

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from maskq_cupy import compiler

ROOT = Path(__file__).resolve().parent.parent

PRINT = """
import hashlib
from maskq_cupy import compiler
for path in sorted(compiler.kernel_folder().glob("*.cu")):
    print(path.name, hashlib.sha256(compiler.source(path.name).encode()).hexdigest())
print(compiler.OPTIONS)
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
        f"{path.name} {hashlib.sha256(compiler.source(path.name).encode()).hexdigest()}"
        for path in sorted(compiler.kernel_folder().glob("*.cu"))
    ]
    assert printed.splitlines() == [*expected, str(compiler.OPTIONS)]


def test_options_are_constants():
    """A tuple of strings made of the module's own integers; a test that fails on a new option."""
    sizes = compiler.Sizes()._asdict()
    assert ("-std=c++17", *(f"-D{k.upper()}={v}" for k, v in sizes.items())) == compiler.OPTIONS


def test_the_package_reads_no_environment_variable():
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "expandvars", "expanduser"}
    for path in (ROOT / "maskq_cupy").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            used = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            assert used not in names, f"{path.name}:{node.lineno}"


def test_kernels_include_only_each_other():
    names = {path.name for path in compiler.kernel_folder().iterdir()}
    for name in names:
        for line in (compiler.kernel_folder() / name).read_text().splitlines():
            if line.lstrip().startswith("#include"):
                assert line.split('"')[1] in names
