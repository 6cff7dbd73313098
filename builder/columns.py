"""Rows of Python values → Arrow columns, buffer by buffer.

Not by `pa.array`, which looks for pandas objects and loads pandas for it (47 MB), nor by polars (44 MB): `generate`
needs neither. The form of the buffers: https://arrow.apache.org/docs/format/Columnar.html
"""

from array import array
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa

_CODES: Final = {
    pa.int32(): "i",
    pa.int64(): "q",
    pa.uint32(): "I",
    pa.float32(): "f",
    pa.float64(): "d",
}
"""Types of numbers, and how `array` calls them."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def column(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of type `kind`; None is null.

    A list may be a numpy array, which holds 16,000 numbers in 64 kB where Python's objects take half a megabyte; NaN in
    an array of floats stands for null. Raises TypeError, ValueError or OverflowError where a value is no `kind`.
    """
    present = np.fromiter((value is not None for value in values), bool, len(values))
    valid = None if present.all() else _bits(present)
    if kind in _CODES:
        numbers = array(_CODES[kind], [0 if value is None else value for value in values])
        return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(numbers)])
    if pa.types.is_string(kind):
        texts = [b"" if value is None else _utf8(value) for value in values]
        return pa.Array.from_buffers(kind, len(values), [valid, _ends(texts), pa.py_buffer(b"".join(texts))])
    if pa.types.is_boolean(kind):
        return pa.Array.from_buffers(kind, len(values), [valid, _bits(_flags(values))])
    if pa.types.is_timestamp(kind):
        numbers = array("q", [0 if value is None else (value - _EPOCH) // _MICROSECOND for value in values])
        return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(numbers)])
    if pa.types.is_list(kind):
        lists = [() if value is None else _list(value) for value in values]
        inner = _inner(lists, kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [valid, _ends(lists)], children=[inner])
    if pa.types.is_struct(kind):
        fields = [kind.field(place) for place in range(kind.num_fields)]
        children = [
            column([None if value is None else value.get(field.name) for value in values], field.type)
            for field in fields
        ]
        return pa.Array.from_buffers(kind, len(values), [valid], children=children)
    raise TypeError(f"no column of type {kind} can be made")


def _inner(lists: Sequence[Any], kind: Any) -> Any:
    """What stands in all lists, one after the other."""
    if not any(isinstance(values, np.ndarray) for values in lists):
        return column(list(chain.from_iterable(lists)), kind)
    wanted = np.dtype(_CODES[kind])
    numbers = np.concatenate([np.zeros(0, wanted), *(np.asarray(values) for values in lists if len(values))])
    found = numbers.astype(wanted, casting="same_kind", copy=False)
    if wanted.kind != "f":
        if (found != numbers).any():
            raise OverflowError(f"{numbers[found != numbers][0]} is no {kind}")
        return pa.Array.from_buffers(kind, len(found), [None, pa.py_buffer(found.data)])
    absent = np.isnan(found)
    valid = _bits(~absent) if absent.any() else None
    return pa.Array.from_buffers(kind, len(found), [valid, pa.py_buffer(found.data)])


def _ends(values: Sequence[Any]) -> Any:
    """Where each of these texts or lists ends in all of them together, behind a 0."""
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=ends[1:])
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"a column of {ends[-1]:,} bytes or numbers is more than Arrow's short lists hold")
    return pa.py_buffer(ends.astype(np.int32).data)


def _list(value: Any) -> Any:
    if not isinstance(value, list | tuple | np.ndarray):
        raise TypeError(f"{value!r} is no list")
    return value


def _utf8(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value.encode()


def _flags(values: Sequence[Any]) -> np.ndarray:
    wrong = [value for value in values if not isinstance(value, bool | np.bool_ | None)]
    if wrong:
        raise TypeError(f"{wrong[0]!r} is neither true nor false")
    return np.fromiter((bool(value) for value in values), bool, len(values))


def _bits(flags: np.ndarray) -> Any:
    return pa.py_buffer(np.packbits(flags, bitorder="little").data)
