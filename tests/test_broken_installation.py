"""What is missing around the package is said in one line: NVRTC, a cache folder that can be used.

Each in a process of its own: CuPy looks once.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskq_cupy import compiler

ROOT = Path(__file__).resolve().parent.parent

WITHOUT_NVRTC = """
import cuda.pathfinder

def missing(name, *rest):
    raise cuda.pathfinder.DynamicLibNotFoundError(f"no {name} here")

cuda.pathfinder.load_nvidia_dynamic_lib = missing
"""
LOAD = """
from maskq_cupy import compiler
try:
    compiler.load("columns_rule", 0)
except RuntimeError as error:
    print(error)
"""
CALL = """
import maskq_cupy
for _ in range(2):
    try:
        print(maskq_cupy.get_attn_mask_q([0, 3], [0, 3]).shape)
    except (ImportError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
"""
NO_CUPY = (
    "ImportError: "
    "maskq_cupy computes on the GPU with CuPy, which is not installed: "
    'pip install "cupy-cuda12x>=14" "nvidia-cuda-nvrtc-cu12>=12.8" '
    '(with CUDA 13: pip install "cupy-cuda13x>=14" "nvidia-cuda-nvrtc==13.*"); '
    "maskq_cupy.reference needs NumPy alone"
)
NO_NVRTC = (
    "CuPy compiles the kernels with NVRTC, which it does not find: "
    'pip install "cupy-cuda12x>=14" "nvidia-cuda-nvrtc-cu12>=12.8" '
    '(with CUDA 13: pip install "cupy-cuda13x>=14" "nvidia-cuda-nvrtc==13.*")'
)
NO_CACHE = (
    "CuPy keeps compiled kernels in a folder that it cannot use: "
    "set CUPY_CACHE_DIR to one that it can write to, got "
)


def printed(code, **environment):
    """Run the code in a process of its own; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_cupy():
    assert printed("import sys; sys.modules['cupy'] = None" + CALL) == [NO_CUPY] * 2


def test_no_nvrtc():
    pytest.importorskip("cupy")
    pytest.importorskip("cuda.pathfinder")
    assert printed(WITHOUT_NVRTC + LOAD) == [NO_NVRTC]


@pytest.mark.gpu
def test_no_nvrtc_in_a_call():
    pytest.importorskip("cuda.pathfinder")
    assert printed(WITHOUT_NVRTC + CALL) == [f"RuntimeError: {NO_NVRTC}"] * 2


def test_cache_folder_that_cannot_be_made(tmp_path):
    pytest.importorskip("cupy")
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "cache")
    line = printed(CALL, CUPY_CACHE_DIR=folder)[0]
    assert line.startswith(f"ImportError: {NO_CACHE}[Errno 20] Not a directory: ")
    doctor = "from maskq_cupy import __main__; __main__.main(['doctor'])"
    *_, missing = printed(doctor, CUPY_CACHE_DIR=folder)
    assert missing.startswith(f"Missing: a folder for its kernels: {NO_CACHE}[Errno 20]")


@pytest.mark.parametrize("kind", [PermissionError(13, "Permission denied"), OSError(28, "Full")])
def test_cache_folder_that_cannot_be_written_to(monkeypatch, kind):
    pytest.importorskip("cupy")

    def module(file):
        raise kind

    monkeypatch.setattr(compiler, "_module", module)
    with pytest.raises(RuntimeError) as raised:
        compiler.load("columns_rule", 0)
    assert str(raised.value) == f"{NO_CACHE}{kind}"


@pytest.mark.gpu
def test_cache_folder_that_is_gone(tmp_path):
    """After CuPy is imported: the first compile fails, and the next finds a folder again."""
    folder = tmp_path / "cache"
    remove = f"import cupy, os; os.rmdir({str(folder)!r}); "
    make = f"    os.makedirs({str(folder)!r}, exist_ok=True)\n"
    failed, good = printed(remove + CALL + make, CUPY_CACHE_DIR=str(folder))
    assert failed.startswith(f"RuntimeError: {NO_CACHE}[Errno 2] No such file or directory: ")
    assert good == "(3, 2)"
