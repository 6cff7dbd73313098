"""Rows as text: whatever is in them, lines hold the width, numbers stay whole, and what is left out is named."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from rich.cells import cell_len

from builder.grid import cut, folded, grid, plain, stacked

LONG = "a long text " * 30
ID = "8c58d7523aa41b667f94a0b85b694559"
ROWS = [
    (ID, 0.000714, 12345678, LONG, "每个苹果三元。" * 20, [1, 2, 3] * 20, None),
    (ID[::-1], -1234.5, 1, "x\ny", "", [], True),
]
NAMES = ("response_id", "a_share_with_a_name", "tokens", "reasoning", "answer", "counts", "flag")


@pytest.mark.parametrize("width", [40, 80, 120, 400])
@pytest.mark.parametrize("columns", [1, 2, 3, 7])
def test_no_line_is_wider_than_asked(width: int, columns: int) -> None:
    found = grid(NAMES[:columns], [row[:columns] for row in ROWS], width)
    assert max(map(cell_len, found.lines)) <= width
    assert max(map(cell_len, stacked(NAMES, ROWS[0], width))) <= width


def test_a_number_is_never_broken_or_cut() -> None:
    row = (0.000714, 123456789, -0.00025)
    found = grid(("share", "tokens", "delta", "text"), [(*row, LONG)], 46)
    assert found.lines[-1].split()[:3] == ["0.000714", "123,456,789", "-0.00025"]
    assert found.is_cut


def test_an_id_stays_whole_while_texts_can_give_way() -> None:
    found = grid(NAMES[:4], [row[:4] for row in ROWS], 80)
    assert ID in found.lines[-2]
    assert found.is_cut
    assert found.note == "long texts are cut"


def test_columns_without_room_are_named() -> None:
    found = grid([f"number_{place}" for place in range(30)], [[10**12] * 30], 80)
    assert len(found.left_out) + len(found.lines[-1].split()) == 30
    assert found.left_out[-1] == "number_29"
    assert "number_29" in found.note


def test_what_fits_is_shown_whole_and_without_a_note() -> None:
    found = grid(("rule", "breaks"), [("answer_wrong", 42), ("tail_loop", None)], 80)
    assert found.lines == ("rule          breaks", "answer_wrong      42", "tail_loop          –")
    assert found.note == ""


def test_no_rows_show_their_names() -> None:
    assert grid(("a", "b"), [], 80).lines == ("a  b",)


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert cut("a\x1b[31mb\r\nc\u2028d\x9b2Je", 80) == "a [31mb c d 2Je"
    assert folded("a\x1b[31mb\nc", 80) == ["a [31mb", "c"]
    assert grid(("n\x1b[2J",), [("x",)], 80).lines[0] == "n [2J"


def test_a_folded_text_that_is_cut_says_how_long_it_is() -> None:
    assert folded("one two three", 7) == ["one two", "three"]
    assert folded("one two three four", 5, most=2) == ["one", "… (1…"]
    assert folded("", 5) == [""]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (Decimal("123456789012345678901234567890"), 123456789012345678901234567890),
        (Decimal("1.50"), 1.5),
        (Decimal("0.1234567890123456789"), "0.1234567890123456789"),
        (date(2026, 11, 22), "2026-11-22"),
        (datetime(2026, 11, 22, 1, 2, 3, tzinfo=UTC), "2026-11-22T01:02:03+00:00"),
        (b"\xaa\x00", "aa00"),
        ({"a": [1.0, float("inf")]}, {"a": [1.0, "Infinity"]}),
        ([("k", 1)], [["k", 1]]),
        (None, None),
        (True, True),
    ],
)
def test_values_are_plain_for_json_and_lose_nothing(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)
    json.dumps(plain(value), allow_nan=False)
