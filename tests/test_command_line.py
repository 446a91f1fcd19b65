"""The command line, as its user sees it: output, error lines, exit codes."""

import fcntl
import os
import platform
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import maskq_cupy
from maskq_cupy import __main__ as command_line
from maskq_cupy import installing, reference


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(command_line, "gpu_problem", lambda: "none in this test")


def run(capsys, *argv):
    """Return the exit code and what was printed, on stdout and on stderr."""
    try:
        code = command_line.main(argv)
    except SystemExit as exit:
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def printed_columns(out):
    """Return the table's (LTS, UTE) rows."""
    table = out.split("\n\n")[1].split("\n")[1:-1]
    return [tuple(map(int, line.split()[-2:])) for line in table]


def test_show_prints_table_and_drawing(no_gpu, capsys):
    code, out, err = run(capsys, "show", "--q-lens", "3,2", "--k-lens", "3,4")
    assert (code, err) == (0, "")
    assert out.split("\n")[0] == "No GPU: NumPy reference (none in this test)"
    assert printed_columns(out) == [(3, 0), (3, 1), (3, 2), (5, 3), (5, 3), (5, 3), (5, 4)]
    assert "\n  1  A A . |\n" in out
    assert "\n  3        | B B B .\n" in out


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ("--window 2,0", {"window": (2, 0)}),
        ("--window -1,0", {"window": (-1, 0)}),
        ("--window=1,0 --sinks 2", {"window": (1, 0), "num_sink_tokens": 2}),
        ("--full", {"causal": False}),
        ("--full --window 1,-1", {"causal": False, "window": (1, -1)}),
        ("--align top_left", {"align": "top_left"}),
        ("--causal-block 3", {"causal_block": 3}),
        ("--chunk-size 4 --sinks 1", {"chunk_size": 4, "num_sink_tokens": 1}),
        ("--spans 1:3,8:11 --window 1,0", {"spans": [[1, 3], [8, 11]], "window": (1, 0)}),
        ("--kv-token-num 15", {"kv_token_num": 15}),
    ],
)
def test_show_passes_every_rule_on(no_gpu, capsys, options, rule):
    argv = ["show", "--q-lens", "4,0,6", "--k-lens", "5,2,6", *options.split()]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    expected = reference.get_attn_mask_q([0, 4, 4, 10], [0, 5, 7, 13], **rule)
    assert printed_columns(out) == [*map(tuple, expected.tolist())]


@pytest.mark.parametrize(
    ("ids", "cu"), [("7,7,9", [0, 2, 3]), ("-1,0,0,-1", [0, 1, 3, 4]), ("5", [0, 1]), ("", [0])]
)
def test_show_takes_ids(no_gpu, capsys, ids, cu):
    code, out, err = run(capsys, "show", "--ids", ids, "--full")
    assert (code, err) == (0, "")
    expected = reference.get_attn_mask_q(cu, cu, causal=False)
    assert printed_columns(out) == [*map(tuple, expected.tolist())]


def test_show_reads_intervals(no_gpu, capsys, tmp_path):
    path = tmp_path / "intervals.npy"
    np.save(path, [[0, 0], [0, 2], [0, 3]])
    argv = ["show", "--q-lens", "3", "--k-lens", "3", "--intervals", str(path)]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert printed_columns(out) == [(3, 1), (3, 1), (3, 2)]


@pytest.mark.parametrize(
    ("tiles", "first_line"),
    [
        ("2,3", "Tiles of 2 rows x 3 keys: 0 full, 5 partial, 4 empty"),
        ("1", "Tiles of 1 rows x 1 keys: 13 full, 0 partial, 22 empty"),
    ],
)
def test_show_draws_tiles(no_gpu, capsys, tiles, first_line):
    code, out, _ = run(capsys, "show", "--q-lens", "3,2", "--k-lens", "3,4", "--tiles", tiles)
    assert code == 0
    assert f"\n\n{first_line}\nrow  0" in out
    assert out.endswith("#: full, +: partial, .: empty\n")


def test_show_draws_shards(no_gpu, capsys):
    argv = ["show", "--q-lens", "8,4", "--k-lens", "8,4", "--shards", "2"]
    code, out, err = run(capsys, *argv, "--scheme", "per_sequence", "--tiles", "2")
    assert (code, err) == (0, "")
    assert "\n  001111000110\n" in out
    assert "\n     0           6         3           7           12\n" in out
    assert "\n     1           6         2           7            9\n" in out
    assert "Rank 0 holds the rows 0 to 1, 6 to 8, 11, as its own:\n" in out
    assert "\n  2  A A A A A A A . |\n" in out
    assert "\n  5                  | B B B .\n" in out


def test_show_balances_shards_by_the_tiles(no_gpu, capsys, tmp_path):
    """Intervals are no rule that cp_chunks knows: the work of rows is their tiles."""
    path = tmp_path / "intervals.npy"
    heavy_end = np.where(np.arange(512) < 384, 1, 512)
    np.save(path, np.stack([np.zeros(512, int), heavy_end], axis=1))
    argv = ["show", "--q-lens", "512", "--k-lens", "512", "--intervals", str(path)]
    code, out, _ = run(capsys, *argv, "--shards", "2")
    assert code == 0
    assert "Rank 0 holds the rows 256 to 511" in out
    code, out, _ = run(capsys, *argv, "--shards", "40")
    assert code == 0
    assert "Rank 7 holds the rows none" in out
    assert "Rank 8" not in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--q-lens 3 --k-lens 3 --shards 0", "world_size must be in"),
        ("--q-lens 3 --k-lens 3 --shards 2 --scheme even", "'even'"),
        ("--q-lens 3 --k-lens 3 --scheme zigzag", "--scheme needs --shards"),
        ("--q-lens 3,x --k-lens 3,4", "'3,x'"),
        ("--q-lens 3,2 --k-lens 3", "--k-lens"),
        ("--q-lens 3,-2 --k-lens 3,4", "-2"),
        ("--q-lens 3", "--k-lens"),
        ("--q-lens 3 --k-lens 3 --window 1", "window"),
        ("--q-lens 3 --k-lens 3 --window 1,1", "(1, 1)"),
        ("--q-lens 3 --k-lens 3 --sinks 4", "num_sink_tokens"),
        ("--q-lens 3 --k-lens 3 --sinks x", "--sinks"),
        ("--q-lens 3 --k-lens 3 --chunk-size 0", "chunk_size"),
        ("--q-lens 3 --k-lens 3 --causal-block 2 --full", "causal_block"),
        ("--q-lens 3 --k-lens 3 --align left", "align"),
        ("--q-lens 3 --k-lens 3 --spans 2:4", "spans"),
        ("--q-lens 3 --k-lens 3 --spans 2-4", "'2-4'"),
        ("--q-lens 3 --k-lens 3 --spans 1:2:3", "'1:2:3'"),
        ("--ids 1,x", "'1,x'"),
        ("--ids 1,1 --k-lens 2", "--ids"),
        ("", "--ids"),
        ("--q-lens 12", "give --k-lens too"),
        ("--k-lens 12", "give --q-lens too"),
        ("--q-lens 3 --k-lens 3 --kv-token-num 2", "kv_token_num"),
        ("--q-lens 3 --k-lens 3 --tiles 0", "block_size"),
        ("--q-lens 3 --k-lens 3 --tiles 1,2,3", "block_size"),
        ("--q-lens 3 --k-lens 3 --intervals missing.npy", "missing.npy"),
        (f"--q-lens 3 --k-lens 3 --intervals {__file__}", "must be a .npy file"),
        ("--q-lens 3 --k-lens 3 --no-such", "--no-such"),
        (f"--q-lens {10**30} --k-lens 3", "cu_seqlens_q"),
    ],
)
def test_bad_arguments_give_one_line_and_code_2(no_gpu, capsys, options, words):
    code, out, err = run(capsys, "show", *options.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("python -m maskq_cupy")
    assert words in err


def test_float_intervals_are_refused(no_gpu, capsys, tmp_path):
    np.save(tmp_path / "floats.npy", np.ones((3, 2)))
    argv = ["show", "--q-lens", "3", "--k-lens", "3", "--intervals", str(tmp_path / "floats.npy")]
    code, out, err = run(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "float64" in err


def test_show_marks_what_is_shown_beyond_the_intervals(no_gpu, capsys, tmp_path):
    """The second row sees less than the first: two columns show it two keys more."""
    path = tmp_path / "intervals.npy"
    np.save(path, np.array([[0, 3], [0, 1], [2, 4]]))
    argv = ["show", "--q-lens", "3", "--k-lens", "4", "--intervals", str(path)]
    code, out, err = run(capsys, *argv)
    assert code == 0
    assert err == "warning: 2 pairs are shown beyond the intervals, the first in row 1\n"
    lines = [line.split() for line in out.splitlines()]
    assert ["0", "A", "A", "A", "."] in lines
    assert ["1", "A", "!", "!", "."] in lines
    assert ["2", ".", ".", "A", "A"] in lines
    assert "!: the row is shown the key, or one of them, beyond its interval" in out
    np.save(path, np.array([[0, 1], [0, 3], [2, 4]]))
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "")
    assert "!" not in out


def test_show_saves_the_png(no_gpu, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "mask.png"
    argv = ["show", "--q-lens", "3,2", "--k-lens", "3,4", "--png", str(path)]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert f"Saved {path}" in out
    assert path.read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, *argv[:-1], str(tmp_path / "missing" / "mask.png"))
    assert (code, err.count("\n")) == (2, 1)


def test_show_points_out_a_column(no_gpu, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "mask.svg"
    argv = ["show", "--q-lens", "3,2", "--k-lens", "3,4", "--png", str(path)]
    assert run(capsys, *argv, "--arrows", "1")[0] == 0
    arrows = path.stat().st_size
    assert run(capsys, *argv)[0] == 0
    assert path.stat().st_size < arrows
    code, _, err = run(capsys, *argv, "--arrows", "7")
    assert (code, err.count("\n")) == (2, 1)
    assert "arrows must be a column in [0, 7), got 7" in err
    code, _, err = run(capsys, *argv[:-2], "--arrows", "1")
    assert (code, err.count("\n")) == (2, 1)
    assert "--arrows needs --png" in err


def test_module_runs_as_a_command():
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "maskq_cupy", "show", "--q-lens", "2", "--k-lens"]
    options = {"capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": str(root)}}
    done = subprocess.run([*command, "3"], **options)
    assert done.returncode == 0
    assert "GPU: " in done.stdout.split("\n")[0]
    done = subprocess.run([*command, "x"], **options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


MILLION = "400000,1000,599000"
LARGE = ["show", "--q-lens", MILLION, "--k-lens", MILLION, "--tiles", "16", "--shards", "3"]


@pytest.mark.parametrize("options", [["show", "--q-lens", "3,2", "--k-lens", "3,4"], LARGE])
def test_show_fits_a_terminal_and_a_pipe(options):
    """Of 80 columns; in plain text, without the codes of colours, in both."""
    command = [sys.executable, "-m", "maskq_cupy", *options]
    root = Path(__file__).parent.parent
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment["PYTHONPATH"] = str(root)
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = piped.stdout.split("\n")
    assert all(map(str.isprintable, lines))
    assert 0 < max(map(len, lines[1:])) <= 80  # behind the line that names the device
    assert in_a_terminal(command, environment, columns=80) == piped.stdout
    if options == LARGE:
        assert len(in_a_terminal(command, environment, columns=120)) > 1.2 * len(piped.stdout)


def in_a_terminal(command, environment, columns):
    """Return what a command prints in a terminal so wide."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(command, env=environment, stdout=its, stderr=its)
    os.close(its)
    printed = b""
    with suppress(OSError):  # that is how a terminal ends
        while some := os.read(ours, 1 << 16):
            printed += some
    os.close(ours)
    assert process.wait() == 0
    return printed.decode().replace("\r\n", "\n")


def test_demo_checks_draws_and_times(no_gpu, capsys):
    code, out, err = run(capsys, "demo")
    assert (code, err) == (0, "")
    assert out.startswith("No GPU: NumPy reference")
    assert "pairs of row and key is as defined" in out
    assert "ms a call" in out
    assert "A: all shown" in out


@pytest.mark.parametrize(
    ("bound", "change"), [("LTS", 1), ("LTS", -1), ("UTE", 1), ("UTE", -1), ("both", -1000)]
)
def test_demo_catches_one_wrong_column(no_gpu, capsys, monkeypatch, bound, change):
    right = reference.get_attn_mask_q

    def wrong(*args, **kwargs):
        columns = right(*args, **kwargs)
        columns[100, {"LTS": 0, "UTE": 1, "both": slice(2)}[bound]] += change
        return columns

    monkeypatch.setattr(reference, "get_attn_mask_q", wrong)
    code, out, _ = run(capsys, "demo")
    assert code == 1
    assert "FAILED" in out


@pytest.fixture
def stand_in_cupy(monkeypatch):
    """A machine with CuPy for CUDA 12.9 and a driver for 12.8, whatever this one has."""
    device = SimpleNamespace(id=0, compute_capability="90")
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: 12090,
        getDeviceProperties=lambda device: {"name": b"A GPU"},
    )
    cuda = SimpleNamespace(
        runtime=runtime, nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)), Device=lambda: device
    )
    cupy = SimpleNamespace(__version__="14.2.0", cuda=cuda, asnumpy=np.asarray)
    monkeypatch.setattr(command_line, "require_cupy", lambda: cupy)
    monkeypatch.setattr(command_line, "gpu_problem", lambda: None)
    monkeypatch.setattr(command_line, "compile_sources", lambda arch: {f"sm_{arch}.cu": ""})
    monkeypatch.setattr(command_line, "get_attn_mask_q", reference.get_attn_mask_q)
    monkeypatch.setattr(command_line, "_driver_version", lambda: 12080)
    return cupy


def test_doctor_finds_nothing_missing(stand_in_cupy, capsys):
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert out.startswith("GPU: A GPU, CuPy 14.2.0\n")
    assert "CUDA 12.8" in out
    assert "NVRTC    12.9" in out
    assert f"maskq    {maskq_cupy.__version__}, {platform.platform()}\n" in out
    assert f"Python   {platform.python_version()}, NumPy {np.__version__}\n" in out
    assert "sm_90" in out
    assert "Nothing is missing." in out


def test_doctor_names_the_frameworks_beside(stand_in_cupy, capsys, monkeypatch):
    def version(name):
        if name != "torch":
            raise metadata.PackageNotFoundError
        return "9.8"

    monkeypatch.setattr(command_line.metadata, "version", version)
    assert "\nbeside   torch 9.8\n" in run(capsys, "doctor")[1]


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"maskq_cupy {maskq_cupy.__version__}\n", "")


def test_doctor_catches_a_wrong_result(stand_in_cupy, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "get_attn_mask_q", lambda *batch: np.zeros((7, 2)))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "FAILED" in out


@pytest.mark.parametrize(("driver", "extra"), [(0, 12), (12040, 12), (13000, 13)])
def test_doctor_without_cupy_names_the_extra_for_the_driver(
    no_gpu, capsys, monkeypatch, driver, extra
):
    def require_cupy():
        raise ImportError("no CuPy")

    monkeypatch.setattr(command_line, "require_cupy", require_cupy)
    monkeypatch.setattr(command_line, "_driver_version", lambda: driver)
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert out.endswith(f"\nMissing: {installing.CUPY[extra]}\n")


def test_doctor_without_a_gpu_still_compiles(stand_in_cupy, no_gpu, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "_driver_version", lambda: 0)
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert out.startswith("No GPU: NumPy reference")
    assert "compiled for sm_90" in out
    assert "Missing: an NVIDIA driver" in out


def test_doctor_with_too_old_a_driver_names_the_other_extra(
    stand_in_cupy, no_gpu, capsys, monkeypatch
):
    monkeypatch.setattr(stand_in_cupy.cuda.runtime, "runtimeGetVersion", lambda: 13000)
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert f"Missing: {installing.CUPY[12]}\n" in out


def test_doctor_where_nothing_compiles_names_the_extra(stand_in_cupy, capsys, monkeypatch):
    def compile_sources(arch):
        raise RuntimeError("no NVRTC\nmany more lines")

    monkeypatch.setattr(command_line, "compile_sources", compile_sources)
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "kernels  not compiled: no NVRTC\n" in out
    assert f"Missing: {installing.CUPY[12]}\n" in out


@pytest.mark.gpu
@pytest.mark.parametrize("command", ["show --q-lens 3,2 --k-lens 3,4", "demo", "doctor"])
def test_every_command_uses_the_gpu_where_there_is_one(capsys, command):
    code, out, err = run(capsys, *command.split())
    assert (code, err) == (0, "")
    assert out.startswith("GPU: ")
