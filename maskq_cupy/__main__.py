"""``python -m maskq_cupy``: show a mask, run a demo on real documents, examine the installation.

All three work without a GPU: the NumPy reference stands in, and their first line says so.
"""

import argparse
import ctypes
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np

from maskq_cupy import __version__, checks, cp, installing, picture, reference
from maskq_cupy.columns import get_attn_mask_q
from maskq_cupy.compiler import compile_sources
from maskq_cupy.gpu import gpu_problem, require_cupy

FRAMEWORKS = ("torch", "flash-attn-4", "paddlepaddle", "paddlepaddle-gpu", "jax", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; return its exit code."""
    words = [*(sys.argv[1:] if argv is None else argv)]
    for option in ("--window", "--ids"):  # argparse takes a "-1,0" by itself for an option
        if option in words[:-1]:
            i = words.index(option)
            words[i : i + 2] = [f"{option}={words[i + 1]}"]
    options = _parser().parse_args(words)
    return options.run(options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong; argparse puts the whole usage before it."""
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m maskq_cupy", description="Packed attention masks as columns.")
    parser.add_argument("--version", action="version", version=f"maskq_cupy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="{show,demo,doctor}")
    show = commands.add_parser("show", help="print the columns of a packed batch and draw its mask")
    show.set_defaults(run=_show)
    add = show.add_argument
    add("--q-lens", type=_ints, metavar="3,2", help="query rows a sequence")
    add("--k-lens", type=_ints, metavar="3,4", help="keys a sequence")
    add("--ids", type=_ints, metavar="7,7,9", help="instead: the document's id of each token")
    add("--window", type=_ints, metavar="128,0", help="LEFT,RIGHT of the diagonal, -1: unbounded")
    add("--chunk-size", type=int, metavar="8192", help="see the diagonal's chunk of keys alone")
    add("--sinks", type=int, default=0, metavar="4", help="first keys seen left of window or chunk")
    add("--full", action="store_true", help="not causal")
    add("--align", default="bottom_right", metavar="top_left", help="where the diagonal begins")
    add("--causal-block", type=int, metavar="32", help="see all of the diagonal's block of keys")
    add("--spans", type=_spans, metavar="2:5,6:8", help="keys of the pack seen whole, as images")
    add("--intervals", metavar="FILE.npy", help="int (Q, 2): the keys [start, end) of each row")
    add("--kv-token-num", type=int, metavar="N", help="columns in all, padding included")
    add(
        "--tiles",
        type=_ints,
        metavar="128,128",
        help="draw tiles of ROWS,KEYS, or of one size, too",
    )
    add("--shards", type=int, metavar="4", help="deal the rows to so many ranks, and draw each")
    add("--scheme", metavar="zigzag", help=f"how to deal them: {', '.join(cp.SCHEMES)}")
    add(
        "--png",
        metavar="FILE",
        help="save the picture too, as SVG or PDF by its ending (needs matplotlib)",
    )
    add(
        "--arrows", type=int, metavar="2", help="point out this column's UTE and LTS in the picture"
    )
    demo = commands.add_parser("demo", help="pack, check, draw and time real documents")
    demo.set_defaults(run=_demo)
    doctor = commands.add_parser("doctor", help="say what is installed and what is missing")
    doctor.set_defaults(run=_doctor)
    return parser


def _ints(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")] if text else []
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ints such as 3,2, got {text!r}") from None


def _spans(text: str) -> list[list[int]]:
    try:
        spans = [[int(word) for word in pair.split(":")] for pair in text.split(",") if text]
        if any(len(span) != 2 for span in spans):
            raise ValueError
        return spans
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected spans such as 2:5,6:8, got {text!r}") from None


def _backend() -> tuple[str, Callable[..., np.ndarray]]:
    """Return the first line of every command, and the function that makes columns on the host."""
    problem = gpu_problem()
    if problem is not None:
        reason = problem.partition(":")[0]  # doctor says the rest
        return f"No GPU: NumPy reference ({reason})", reference.get_attn_mask_q
    cupy = require_cupy()

    def on_gpu(*args: Any, **kwargs: Any) -> np.ndarray:
        return cupy.asnumpy(get_attn_mask_q(*args, **kwargs))

    return f"GPU: {_gpu_name(cupy)}, CuPy {cupy.__version__}", on_gpu


def _gpu_name(cupy: Any) -> str:
    return cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()


def _pack(lengths: list[int]) -> np.ndarray:
    return np.array([*accumulate(lengths, initial=0)])


def _draw(
    columns: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    beyond: picture.Runs | None = None,
) -> None:
    print("\n" + picture.drawing(columns, cu_seqlens_q, cu_seqlens_k, _width(), beyond=beyond))


def _width() -> int:
    return min(max(shutil.get_terminal_size().columns, 40), 160)


def _block_size(sizes: list[int] | None) -> tuple[int, int] | None:
    """Return (rows, keys) of a tile from the ints of --tiles, one or two."""
    if sizes is None:
        return None
    return checks.check_block_size(sizes * 2 if len(sizes) == 1 else sizes)


def _show(options: argparse.Namespace) -> int:
    """Print and draw the mask; 2 and one line on stderr where the arguments are at fault."""
    headline, get_columns = _backend()
    try:
        cu_seqlens_q, cu_seqlens_k = _cu_seqlens(options)
        intervals = _load_intervals(options.intervals) if options.intervals else None
        columns = get_columns(
            cu_seqlens_q,
            cu_seqlens_k,
            intervals,
            options.kv_token_num,
            causal=not options.full,
            window=None if options.window is None else tuple(options.window),
            num_sink_tokens=options.sinks,
            align=options.align,
            causal_block=options.causal_block,
            chunk_size=options.chunk_size,
            spans=options.spans,
        )
        beyond = None
        if intervals is not None:
            beyond = reference.excess_runs(cu_seqlens_q, cu_seqlens_k, intervals)
        tile = _block_size(options.tiles)
        shards = _shards(options, columns, cu_seqlens_q, cu_seqlens_k, tile)
        if options.arrows is not None and not options.png:
            raise ValueError("--arrows needs --png: the file of the picture")
        if options.png:
            picture.save_png(
                columns, cu_seqlens_q, cu_seqlens_k, options.png, tile, beyond,
                arrows=options.arrows,
            )  # fmt: skip
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        print(f"python -m maskq_cupy show: {error}", file=sys.stderr)
        return 2
    print(f"{headline}\n\n{picture.column_table(columns, cu_seqlens_k)}")
    print("A column is shown to the rows UTE, UTE + 1, ... LTS - 1.")
    _draw(columns, cu_seqlens_q, cu_seqlens_k, beyond)
    if tile is not None:
        print("\n" + picture.tile_drawing(columns, int(cu_seqlens_q[-1]), tile, width=_width()))
    if shards:
        print("\n" + shards)
    if options.png:
        print(f"\nSaved {options.png}")
    if beyond is not None and len(beyond[0]):
        row, first, end = beyond
        print(
            f"warning: {(end - first).sum()} pairs are shown beyond the intervals, "
            f"the first in row {row[0]}",
            file=sys.stderr,
        )
    return 0


def _cu_seqlens(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return the cuts of rows and of keys: from the ids of tokens, or from the lengths."""
    q_lens, k_lens, ids = options.q_lens, options.k_lens, options.ids
    if (ids is None) == (q_lens is None and k_lens is None):
        raise ValueError("give --q-lens and --k-lens, or --ids")
    if ids is None and (q_lens is None or k_lens is None):
        missing = "--k-lens" if k_lens is None else "--q-lens"
        raise ValueError(f"give {missing} too: a length for every sequence")
    if ids is not None:
        padded = reference.cu_seqlens_from_ids(ids, max(len(ids), 1))
        cu_seqlens = np.unique(padded)  # without the empty documents at the end
        return cu_seqlens, cu_seqlens
    q_lens, k_lens = q_lens or [], k_lens or []
    if len(q_lens) != len(k_lens) or min(q_lens + k_lens, default=0) < 0:
        expected = "--q-lens and --k-lens must each have a length >= 0 for every sequence"
        raise ValueError(f"{expected}, got {q_lens!s:.60} and {k_lens!s:.60}")
    return _pack(q_lens), _pack(k_lens)


def _shards(
    options: argparse.Namespace,
    columns: np.ndarray,
    cu_seqlens_q: np.ndarray,
    cu_seqlens_k: np.ndarray,
    tile: tuple[int, int] | None,
) -> str:
    """Return the drawing of the ranks that --shards asks for; their work is the mask's tiles."""
    if options.shards is None:
        if options.scheme is not None:
            raise ValueError("--scheme needs --shards: how many ranks there are")
        return ""
    chunks = cp.cp_chunks(
        cu_seqlens_q, cu_seqlens_k, options.shards, options.scheme or "balanced",
        work=picture.live_tiles(columns, int(cu_seqlens_q[-1]), (cp.TILE, cp.TILE)),
    )  # fmt: skip
    return picture.shard_drawing(
        columns, cu_seqlens_q, cu_seqlens_k, chunks, tile or cp.TILE, width=_width()
    )


def _load_intervals(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} must be a .npy file of ints, got: {error}") from None


def _demo(options: argparse.Namespace) -> int:
    """Pack, check, time and draw documents that ship with CPython; 1 if the check fails."""
    from pydoc_data.topics import topics

    headline, get_columns = _backend()
    k_lens = [len(text.split()) for text in topics.values()]
    # By turns: nothing cached; the first half cached; all but the last word cached, as in decoding.
    q_lens = [(n, n - n // 2, 1)[b % 3] for b, n in enumerate(k_lens)]
    cu_seqlens_q, cu_seqlens_k = _pack(q_lens), _pack(k_lens)
    q_total, k_total = int(cu_seqlens_q[-1]), int(cu_seqlens_k[-1])
    print(f"{headline}\n")
    print(f"Batch:   {len(topics)} documents from pydoc_data.topics: {k_total:,} words, the keys;")
    print(f"         {q_total:,} of them not cached yet, the query rows. Causal.")
    columns = get_columns(cu_seqlens_q, cu_seqlens_k)
    print(f"Columns: {len(columns):,} x [LTS, UTE], {columns.nbytes:,} bytes;", end=" ")
    print(f"as a dense mask {q_total * k_total:,} bytes.")
    pairs, wrong = _compare_with_definition(columns, q_lens, k_lens)
    if wrong:
        print(f"Check:   FAILED, {wrong:,} of {pairs:,} pairs of row and key are not as defined.")
        return 1
    print(f"Check:   each of {pairs:,} pairs of row and key is as defined, no other is shown.")
    print(f"Time:    {_timing(cu_seqlens_q, cu_seqlens_k)}\n")
    for b, name in enumerate([*topics][:6]):
        print(f"{picture.LETTERS[b]}  {name}: {k_lens[b]} words, {k_lens[b] - q_lens[b]} cached")
    _draw(columns[: cu_seqlens_k[6]], cu_seqlens_q[:7], cu_seqlens_k[:7])
    return 0


def _compare_with_definition(
    columns: np.ndarray, q_lens: list[int], k_lens: list[int]
) -> tuple[int, int]:
    """Return how many pairs of row and key were compared, and how many of them are wrong.

    The definition: a word sees itself and the words before it in its own document.
    """
    pairs = wrong = q_start = kv_start = 0
    for q_len, kv_len in zip(q_lens, k_lens, strict=True):
        lts, ute = columns[kv_start : kv_start + kv_len].T.astype(np.int64)
        inside = np.zeros(kv_len, np.int64)
        for first in range(0, q_len, 1024):
            i = np.arange(first, min(first + 1024, q_len))[:, None]
            visible = np.arange(kv_len) <= i + (kv_len - q_len)  # positions in the document
            shown = (q_start + i >= ute) & (q_start + i < lts)
            inside += np.count_nonzero(shown, axis=0)
            wrong += int(np.count_nonzero(shown != visible))
            pairs += visible.size
        wrong += int((np.maximum(lts - ute, 0) - inside).sum())  # shown to other documents' rows
        q_start, kv_start = q_start + q_len, kv_start + kv_len
    return pairs, wrong


def _timing(cu_seqlens_q: np.ndarray, cu_seqlens_k: np.ndarray) -> str:
    if gpu_problem() is not None:
        call = partial(reference.get_attn_mask_q, cu_seqlens_q, cu_seqlens_k)
        return f"{1e3 * _seconds_a_call(call, 20):.2f} ms a call of the NumPy reference"
    cupy = require_cupy()
    arrays = cupy.asarray(cu_seqlens_q), cupy.asarray(cu_seqlens_k)
    out = cupy.empty((int(cu_seqlens_k[-1]), 2), np.int32)
    call = partial(get_attn_mask_q, *arrays, out=out)
    _seconds_a_call(call, 20)
    cupy.cuda.Device().synchronize()
    host = _seconds_a_call(call, 500)  # few enough that the launch queue never fills
    device = _device_seconds_a_call(cupy, call)
    return f"{1e6 * device:.1f} us a call on the GPU; {1e6 * host:.1f} us of the host a call"


def _seconds_a_call(call: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def _device_seconds_a_call(cupy: Any, call: Callable[[], Any]) -> float:
    """Return the GPU's time: of calls replayed from a graph, where no launch waits for the host."""
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        _seconds_a_call(call, 100)
        graph = stream.end_capture()
        graph.launch(stream)
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record(stream)
        for _ in range(10):
            graph.launch(stream)
        end.record(stream)
        end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1e3 / 1000  # milliseconds of 1,000 calls


def _doctor(options: argparse.Namespace) -> int:
    """Print what was found and the one thing to install; 0 if all is usable on a GPU, else 1."""
    headline, get_columns = _backend()
    driver = _driver_version()
    print(f"{headline}\n\nmaskq    {__version__}, {platform.platform()}")
    print(f"Python   {platform.python_version()}, NumPy {np.__version__}")
    print(f"beside   {_versions_beside() or 'no framework'}")
    print(f"driver   {'for CUDA ' + _version(driver) if driver else 'no NVIDIA driver found'}")
    try:
        cupy = require_cupy()
    except ImportError as error:
        if isinstance(error.__context__, OSError):
            print("CuPy     found, not imported")
            return _install(f"a folder for its kernels: {error}")
        print("CuPy     not found")
        return _install(_cupy_for(driver))
    built_for = cupy.cuda.runtime.runtimeGetVersion()
    print(f"CuPy     {cupy.__version__}, for CUDA {_version(built_for)}")
    problem = gpu_problem()
    capability = "90" if problem else cupy.cuda.Device().compute_capability
    gpu = f"none found, {problem}" if problem else f"{_gpu_name(cupy)}, sm_{capability}"
    print(f"GPU      {gpu}")
    try:
        print("NVRTC    {}.{}".format(*cupy.cuda.nvrtc.getVersion()))
        compiled = compile_sources(int(capability))
    except Exception as error:  # whatever it is, doctor is there to report it
        reason = str(error).strip().partition("\n")[0]
        print(f"kernels  not compiled: {reason}")
        return _install(_cupy_for(built_for))
    print(f"kernels  {len(compiled)} files compiled for sm_{capability}")
    if problem and driver < 12000:
        return _install("an NVIDIA driver for CUDA 12 or later, and its GPU")
    if problem and driver // 1000 < built_for // 1000:
        return _install(_cupy_for(driver))
    if problem:
        return _install("a GPU that this process may use; the software is complete")
    batch = [0, 3, 5], [0, 3, 7]
    if not np.array_equal(get_columns(*batch), reference.get_attn_mask_q(*batch)):
        print("result   FAILED, not what the reference gives")
        return 1
    print("result   as the reference's\n\nNothing is missing.")
    return 0


def _versions_beside() -> str:
    """Return the versions of the frameworks that are installed, without importing them."""
    found = []
    for name in FRAMEWORKS:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def _driver_version() -> int:
    """Return the driver's CUDA version, 1000 * major + 10 * minor; 0 without a driver."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _cupy_for(cuda: int) -> str:
    return installing.CUPY[13 if cuda >= 13000 else 12]


def _install(what: str) -> int:
    print(f"\nMissing: {what}")
    return 1


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end quietly in `| head`
    raise SystemExit(main())
