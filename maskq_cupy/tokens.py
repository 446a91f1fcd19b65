"""What ids, positions, padding masks and slots must look like, and the errors that say so.

These are forms, checked on every call. Values are checked by `reference_cu_seqlens`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskq_cupy import checks
from maskq_cupy.host import host_array
from maskq_cupy.rule import INT32_MAX

TOKENS = "int32 or int64 of shape (N,) or (b, L)"
MASK = "bool or of an int dtype, of shape (b, L)"
MASK_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def check_tokens_form(name: str, dtype: str, shape: Sequence[int]) -> tuple[int, int]:
    """Require int32 or int64 of shape (N,) or (b, L); return (b, L), b = 1 of the first."""
    if dtype not in checks.INDEX_DTYPES or len(shape) not in (1, 2):
        raise checks.form_error(name, TOKENS, dtype, shape)
    batch, length = (1, shape[0]) if len(shape) == 1 else shape
    _check_token_num(name, batch * length)
    return batch, length


def check_mask_form(dtype: str, shape: Sequence[int]) -> tuple[int, int]:
    """Require bool or ints of shape (b, L); return it."""
    if dtype not in MASK_DTYPES or len(shape) != 2:
        raise checks.form_error("mask", MASK, dtype, shape, MASK_DTYPES)
    batch, length = shape
    _check_token_num("mask", batch * length)
    return batch, length


def _check_token_num(name: str, token_num: int) -> None:
    if token_num > INT32_MAX:
        raise ValueError(f"{name} must hold at most 2**31 - 1 tokens, got {token_num}")


def check_max_num(value: object, name: str) -> int:
    """Require an int in [0, 2**31 - 2], so that entries can be counted; return it."""
    most = checks.check_int(value, name)
    if most == INT32_MAX:
        raise ValueError(f"{name} must be in [0, 2**31 - 2], got {most}")
    return most


def check_id(value: object, name: str) -> int:
    """Require an int of at most 64 bits; return it."""
    if not checks.is_int(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    number = int(value)  # type: ignore[call-overload]
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must be in [-2**63, 2**63 - 1], got {number}")
    return number


def check_padding_id(value: object, shape: Sequence[int]) -> int | None:
    """Require None, or an id to go with ids of shape (N,)."""
    if value is None:
        return None
    if len(shape) != 1:
        raise ValueError(f"padding_id goes with ids of shape (N,), got ids of shape {tuple(shape)}")
    return check_id(value, "padding_id")


def check_slots_forms(forms: dict[str, tuple[str, Sequence[int]]]) -> int:
    """Require of the dtypes and shapes of four cu_seqlens int32 or int64, (B + 1,); return B."""
    for name, (dtype, shape) in forms.items():
        checks.check_cu_seqlens_form(name, dtype, shape)
    entries = forms["cu_seqlens_q"][1][0]
    for name, (_, shape) in forms.items():
        if shape[0] != entries:
            raise ValueError(
                f"{name} must have as many entries as cu_seqlens_q, got {shape[0]} and {entries}"
            )
    return entries - 1


def check_split(column_num: int, b: object, q_token_num: object) -> tuple[int, int]:
    """Require that b equal parts make up the columns and the rows; return b and a part's rows."""
    parts, rows = checks.check_int(b, "b", lowest=1), checks.check_int(q_token_num, "q_token_num")
    for name, number in (("columns", column_num), ("q_token_num", rows)):
        if number % parts:
            raise ValueError(f"{name} must be a multiple of b = {parts}, got {number}")
    return parts, rows // parts


def host_tokens(name: str, value: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """Return a list or host array of ids or positions as int64 of its own shape, and (b, L)."""
    tokens = host_array(name, value, TOKENS)
    form = check_tokens_form(name, str(tokens.dtype), tokens.shape)
    return tokens.astype(np.int64), form


def host_mask(value: Any) -> np.ndarray:
    """Return a list or host array of zeros and others as bool (b, L)."""
    mask = host_array("mask", value, MASK)
    check_mask_form(str(mask.dtype), mask.shape)
    return mask != 0


def host_slots(named: dict[str, Any]) -> list[np.ndarray]:
    """Return the four lists or host arrays of slots as int64."""
    slots = {name: host_array(name, value, checks.CU_SEQLENS) for name, value in named.items()}
    check_slots_forms({name: (str(cuts.dtype), cuts.shape) for name, cuts in slots.items()})
    return [cuts.astype(np.int64) for cuts in slots.values()]
