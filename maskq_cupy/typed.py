"""What signatures say of results: the type of ``out=``, and that of CuPy where it is not given.

A type variable with a default says so in a word, where two overloads would repeat each signature.
Only type checkers read the default: importing the package needs neither CuPy nor typing_extensions.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cupy
    from typing_extensions import TypeVar

    from maskq_cupy.reference import CuSeqlens

    Out = TypeVar("Out", default=cupy.ndarray)
    Pair = TypeVar("Pair", default=CuSeqlens)
else:
    from typing import TypeVar

    Out = TypeVar("Out")
    Pair = TypeVar("Pair")
