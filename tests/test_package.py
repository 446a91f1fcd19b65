"""What is shipped: the wheel holds all it needs, works in a clean environment, is reproducible."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

import maskq_cupy
from maskq_cupy import installing, reference

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "__pycache__")


def run(*command, cwd, check=True, **environment):
    """Run a command that sees this package only where it is told to; return the result."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 or not check, result.stdout + result.stderr
    return result


DAY = 1_700_000_000  # of the builds, in seconds: SOURCE_DATE_EPOCH


def build(folder, *what):
    """Build a copy of the checkout in a folder of its own; return the files made, by name."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE, copy_function=shutil.copyfile)
    command = (sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", folder)
    run(*command, cwd=source, SOURCE_DATE_EPOCH=str(DAY))
    return {file.name: file for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel made from what the sdist holds."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built):
    return next(file for name, file in built.items() if name.endswith(".whl"))


@pytest.fixture(scope="module", params=[".whl", pytest.param(".tar.gz", marks=pytest.mark.slow)])
def clean_python(built, tmp_path_factory, request):
    """The interpreter of an environment with the wheel or the sdist, and what it requires."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    python = folder / "bin" / "python"
    file = next(file for name, file in built.items() if name.endswith(request.param))
    run(python, "-m", "pip", "install", "--quiet", file, cwd=folder)
    return python


def kernel_names():
    return {file.name for pattern in ("*.cu", "*.cuh") for file in (ROOT / "kernels").glob(pattern)}


def test_wheel_holds_the_kernels_the_types_and_the_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"maskq_cupy/{file.name}" for file in (ROOT / "maskq_cupy").glob("*.py")}
    kernels = {f"maskq_cupy/kernels/{name}" for name in kernel_names()}
    info = wheel.name.rsplit("-", 3)[0] + ".dist-info"
    assert kernels
    assert names >= modules | kernels | {"maskq_cupy/py.typed", f"{info}/licenses/LICENSE"}
    assert all(name.startswith(("maskq_cupy/", info)) for name in names)


def test_sdist_holds_what_its_tests_need(built):
    sdist = next(file for name, file in built.items() if name.endswith(".tar.gz"))
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    kernels = {f"kernels/{name}" for name in kernel_names()}
    files = {"Makefile", "README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"}
    examples = {f"examples/{file.name}" for file in (ROOT / "examples").glob("*.py")}
    assert examples
    assert names >= kernels | files | examples | {
        "tests/conftest.py",
        f"tests/{Path(__file__).name}",
    }


def test_two_builds_are_one(built, tmp_path):
    """The second is built at another time, in another place, and its wheel not from the sdist."""
    again = build(tmp_path, "--sdist", "--wheel")
    assert hashes(again) == hashes(built)
    wheel = next(file for name, file in again.items() if name.endswith(".whl"))
    days = {info.date_time for info in zipfile.ZipFile(wheel).infolist()}
    assert days == {time.gmtime(DAY)[:6]}


def hashes(files):
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def test_what_is_installed_shows_the_columns(clean_python, tmp_path):
    command = (clean_python, "-m", "maskq_cupy", "show", "--q-lens", "3,2", "--k-lens", "3,4")
    shown = run(*command, cwd=tmp_path).stdout
    # A line of the table: column, number and letter of its sequence, LTS, UTE.
    table = re.findall(r"^ *(\d+) +\d+ [A-Z] +(\d+) +(\d+) *$", shown, flags=re.MULTILINE)
    lts, ute = [3, 3, 3, 5, 5, 5, 5], [0, 1, 2, 3, 3, 3, 4]
    assert [tuple(map(int, line)) for line in table] == list(zip(range(7), lts, ute, strict=True))


def test_what_is_installed_says_what_to_install_where_cupy_is_missing(clean_python, tmp_path):
    run(clean_python, "-c", "import maskq_cupy, maskq_cupy.reference", cwd=tmp_path)
    call = "import maskq_cupy; maskq_cupy.get_attn_mask_q([0, 3], [0, 3])"
    failed = run(clean_python, "-c", call, cwd=tmp_path, check=False)
    # The whole message on the last line: it has one.
    line = failed.stderr.splitlines()[-1]
    assert line.startswith("ImportError: ")
    assert installing.CUPY[12] in line


def test_import_needs_numpy_alone(tmp_path):
    """No framework is imported, installed or not."""
    code = "import sys, maskq_cupy, maskq_cupy.reference; print(*sys.modules)"
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout
    packages = {name.split(".")[0] for name in printed.split()}
    assert "maskq_cupy" in packages
    assert not packages & {"cupy", "cuda", "torch", "jax", "paddle", "numba", "matplotlib"}


WITHOUT_CUPY = """
import importlib, inspect, pkgutil, pydoc, sys
sys.modules["cupy"] = None
import maskq_cupy
for module in pkgutil.iter_modules(maskq_cupy.__path__):
    if module.name not in {needs_torch}:
        importlib.import_module(f"maskq_cupy.{{module.name}}")
missing = set(maskq_cupy.__all__) - set(dir(maskq_cupy))
print(missing or "all there")
print("[LTS, UTE]" in pydoc.render_doc(maskq_cupy.get_attn_mask_q))
print(*inspect.signature(maskq_cupy.get_attn_mask_q).parameters)
"""
NEEDS_TORCH = {"__main__", "torch_ops", "flex", "fa4", "fa4_mask"}  # or runs when it is imported


def test_names_help_and_signatures_need_no_cupy(tmp_path):
    code = WITHOUT_CUPY.format(needs_torch=NEEDS_TORCH)
    printed = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout
    there, helps, parameters = printed.splitlines()
    assert there == "all there"
    assert helps == "True"
    assert parameters.startswith("cu_seqlens_q cu_seqlens_k attn_mask_kv kv_token_num causal")


def test_changelog_and_citation_are_of_this_version():
    newest = re.search(r"^## \[(.*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == maskq_cupy.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {newest[1]}\ndate-released: {newest[2]}\n" in citation


def test_hints_are_the_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    hints = {
        "cuda12x": installing.CUPY[12],
        "cuda13x": installing.CUPY[13],
        "plot": installing.PLOT,
    }
    for extra, hint in hints.items():
        assert hint == " ".join(["pip install", *(f'"{each}"' for each in extras[extra])])


@pytest.mark.slow
def test_the_readmes_line_installs(tmp_path):
    """In a fresh copy of the checkout; of what it requires, only found, not installed."""
    line = re.search(r"`pip install (\"\.\[\w+\]\")`", (ROOT / "README.md").read_text())
    assert line, "the README says how to install"
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE, copy_function=shutil.copyfile)
    what = shlex.split(line[1])
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", *what]
    planned = run(*command, cwd=source).stdout.splitlines()[-1]
    assert planned.startswith("Would install")
    assert "maskq" in planned
    assert "cupy-cuda12x-" in planned


def test_the_sample_function_in_contributing():
    """Its part of the reference, run where it says that it goes."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"```python\n( +def to_counts\(columns: Any\) -> np.*?)```", text, re.DOTALL)
    space = dict(vars(reference))
    exec(textwrap.dedent(block[1]), space)
    columns = reference.get_attn_mask_q([0, 3, 5], [0, 3, 7])
    assert space["to_counts"](columns).tolist() == [3, 2, 1, 2, 2, 2, 1]
    assert space["to_counts"](columns[None, None]).shape == (1, 1, 7)
