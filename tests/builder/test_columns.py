"""Columns made buffer by buffer are those that pyarrow makes, and refuse what it refuses."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.columns import column
from builder.schema import BENCHMARK_MATCHES, MESSAGES, TABLES

MATCH = {
    "benchmark": "b", "revision": None, "benchmark_row": 3, "benchmark_column": "q", "shared_words": 8,
    "row_share": 0.25, "is_whole": False, "shared_text": "äß 🙂",
}  # fmt: skip
NOON = datetime(2026, 1, 2, 12, 0, 0, 123_456, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["", None, "a\u0000b", "日本 🙂"], pa.string()),
        ([0, None, -(2**31), 2**31 - 1], pa.int32()),
        ([None, 2**63 - 1, -(2**63), np.int32(7)], pa.int64()),
        ([2**32 - 1, 0], pa.uint32()),
        ([1.5, None, 2, np.float32(0.25), float("inf")], pa.float64()),
        ([True, None, False], pa.bool_()),
        ([NOON, None, NOON.astimezone(timezone(timedelta(hours=3))), NOON - timedelta(days=40_000)],
         pa.timestamp("us", "UTC")),
        ([["a", None], [], None, ["b"]], pa.list_(pa.string())),
        ([[{"role": "user", "content": None}, None], None, []], MESSAGES),
        ([[MATCH, MATCH | {"is_whole": True, "benchmark_row": None}], []], BENCHMARK_MATCHES),
        ([{}, None, {"a": 1, "other": 2}], pa.struct([("a", pa.int32())])),
        ([None] * 9, pa.list_(pa.float32())),
    ],
)  # fmt: skip
def test_a_column_is_the_one_that_pyarrow_makes(values: list[Any], kind: Any) -> None:
    for given_values in (values, values * 5, []):
        made = column(given_values, kind)
        made.validate(full=True)
        assert made.equals(pa.array(given_values, kind))
        assert made.null_count == sum(value is None for value in given_values)


@given(st.lists(st.none() | st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]))), max_size=20))
def test_texts_come_back_whatever_they_hold(values: list[Any]) -> None:
    made = column(values, pa.list_(pa.string()))
    made.validate(full=True)
    assert made.to_pylist() == values


def test_every_column_of_every_table_can_be_made() -> None:
    for table in TABLES.values():
        for field in table.schema:
            assert column([None, None], field.type).equals(pa.nulls(2, field.type))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1], pa.string()),
        ([b"bytes"], pa.string()),
        (["\ud800"], pa.string()),
        ([1.0], pa.int32()),
        (["1"], pa.int32()),
        ([2**31], pa.int32()),
        ([-1], pa.uint32()),
        (["1"], pa.float64()),
        ([1], pa.bool_()),
        (["2026"], pa.timestamp("us", "UTC")),
        ([NOON.replace(tzinfo=None)], pa.timestamp("us", "UTC")),
        (["text"], pa.list_(pa.string())),
        ([np.array([0.5])], pa.list_(pa.int32())),
        ([np.array(["1"])], pa.list_(pa.float32())),
        ([1], pa.struct([("a", pa.int32())])),
        ([1], pa.decimal128(5)),
    ],
)
def test_a_value_of_another_type_is_refused_and_never_bent(values: list[Any], kind: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, AttributeError)):
        column(values, kind)


def test_lists_and_arrays_may_stand_together_and_nan_in_an_array_is_null() -> None:
    values = [np.array([0.5, np.nan]), [], None, [1.5]]
    assert column(values, pa.list_(pa.float32())).to_pylist() == [[0.5, None], [], None, [1.5]]
    numbers = [np.array([1, 2], np.int64), [3], None]
    assert column(numbers, pa.list_(pa.int32())).to_pylist() == [[1, 2], [3], None]
