"""Rows as lines of text that fit a terminal: numbers whole, long texts cut, too many columns left out and named."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from math import isfinite
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from builder.console import shown

_GAP: Final = 2
_TEXT_FLOOR: Final = 12
"""A column of texts is not made narrower than this, in cells of the terminal."""
_ID_WIDTH: Final = 36
"""A word without white space up to this width is an id: of use only whole."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_FOLDED_LINES: Final = 12


@dataclass(frozen=True)
class Grid:
    """Lines no wider than asked; whether a text in them was cut; columns that found no room."""

    lines: tuple[str, ...]
    is_cut: bool
    left_out: tuple[str, ...]

    @property
    def note(self) -> str:
        """What the lines do not show, in words; empty where they show all."""
        parts = ["long texts are cut"] if self.is_cut else []
        if self.left_out:
            parts.append(f"{len(self.left_out)} columns left out: {', '.join(self.left_out)}")
        return "; ".join(parts)


def plain(value: Any) -> Any:
    """A value of a query as JSON has it. NaN and infinities become words, for JSON has no number for them; dates are
    ISO 8601, bytes hexadecimal; a decimal stays exact: a number where a double holds it, else a word."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "nanoseconds"):  # an interval: a tuple that knows its units
        return {name: getattr(value, name) for name in ("months", "days", "nanoseconds")}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> bool | int | float | str | None:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        case Decimal() if value == value.to_integral_value():
            return int(value)
        case Decimal() if Decimal(repr(float(value))) == value:
            return float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def text_of(value: Any) -> str:
    """A value in words: lists as JSON, six significant digits, a dash for nothing."""
    value = plain(value)
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        text = f"{value:,.0f}" if 1e6 <= abs(value) < 1e15 else f"{value:.6g}"
        return text if set(text) & set(".e,") else f"{text}.0"
    return shown(value)


def one_line(text: str) -> str:
    """Line breaks and control characters, which would move a terminal's cursor, as spaces."""
    return _CONTROL.sub(" ", text)


def cut(text: str, width: int) -> str:
    """One line of at most `width` cells; what is longer ends in `…`."""
    text = one_line(text[: 4 * width + 4])
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def folded(text: str, width: int, most: int = _FOLDED_LINES) -> list[str]:
    """Lines of at most `width` cells, at most `most` of them; the last one then says how long the text is."""
    head = text[: width * (most + 1)]
    kept = "\n".join(one_line(line) for line in head.split("\n")[: most + 1])
    lines = [line.plain.rstrip() for line in Text(kept).wrap(Console(width=width), width, overflow="fold")] or [""]
    if len(lines) > most or len(kept) < len(text):
        lines = [*lines[: most - 1], cut(f"… ({len(text):,} characters)", width)]
    return lines


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> Grid:
    """Names and rows as lines. Texts give way first, down to 12 cells; then ids; then columns from the right."""
    columns = [one_line(name) for name in columns]
    cells = [[one_line(text_of(value)[: 4 * width]) for value in row] for row in rows]
    is_number = [_is_number([row[place] for row in rows]) for place in range(len(columns))]
    natural = [max([cell_len(row[place]) for row in cells], default=0) for place in range(len(columns))]
    heads = [max(map(cell_len, _pieces(name))) for name in columns]
    whole = [max(*pair) for pair in zip(heads, natural, strict=True)]
    is_id = [_is_id([row[place] for row in cells]) for place in range(len(columns))]
    text_floor = [max(head, min(value, _TEXT_FLOOR)) for head, value in zip(heads, natural, strict=True)]
    number_or_text = [most if number else low for most, low, number in zip(whole, text_floor, is_number, strict=True)]
    floors = [most if held else low for most, low, held in zip(whole, number_or_text, is_id, strict=True)]
    if _total(floors) > width:
        floors = number_or_text
    shows = len(columns)
    while shows > 1 and _total(floors[:shows]) > width:
        shows -= 1
    wanted = [max(cell_len(name), value) for name, value in zip(columns, natural, strict=True)]
    widths = _share(floors[:shows], wanted[:shows], width)
    lines = _head_lines(columns[:shows], widths, is_number)
    is_cut = False
    for row in cells:
        is_cut |= any(cell_len(cell) > room for cell, room in zip(row, widths, strict=False))
        lines.append(_line([cut(cell, room) for cell, room in zip(row, widths, strict=False)], widths, is_number))
    return Grid(tuple(lines), is_cut, tuple(columns[shows:]))


def stacked(columns: Sequence[str], row: Sequence[Any], width: int) -> list[str]:
    """One row with a name a line; long values are folded under themselves."""
    indent = min(max(map(cell_len, columns)), width // 2) + _GAP
    lines = []
    for name, value in zip(columns, row, strict=True):
        text = value if isinstance(value, str) else text_of(value)
        head, *rest = folded(text, max(width - indent, 1))
        lines.append(f"{set_cell_size(cut(name, indent - _GAP), indent)}{head}".rstrip())
        lines += [f"{' ' * indent}{line}" for line in rest]
    return lines


def _is_number(values: Sequence[Any]) -> bool:
    return any(value is not None for value in values) and all(
        isinstance(value, int | float | Decimal | None) for value in values
    )


def _is_id(cells: Sequence[str]) -> bool:
    return all(cell_len(cell) <= _ID_WIDTH and " " not in cell for cell in cells)


def _pieces(name: str) -> list[str]:
    """Where a name of a column may be folded: behind `_` and white space."""
    return re.findall(r"[^_\s]+_*|[_\s]+", name) or [""]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _share(floors: Sequence[int], wanted: Sequence[int], width: int) -> list[int]:
    """Widths between floor and wish; what is left goes to the narrowest first. One column never exceeds the line."""
    widths = [min(floor, width) for floor in floors]
    left = width - _total(widths)
    while left > 0:
        open_places = [place for place, value in enumerate(widths) if value < wanted[place]]
        if not open_places:
            break
        widths[min(open_places, key=lambda place: widths[place])] += 1
        left -= 1
    return widths


def _head_lines(columns: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> list[str]:
    stacks = []
    for name, room in zip(columns, widths, strict=True):
        stack = [""]
        for piece in _pieces(name):
            if cell_len(stack[-1] + piece) <= room:
                stack[-1] += piece
            else:
                stack += [piece] if stack[-1] else []
                stack[-1] = piece
        stacks.append([cut(part.strip(), room) for part in stack])
    height = max(map(len, stacks))
    return [
        _line([stack[row] if row < len(stack) else "" for stack in stacks], widths, is_number) for row in range(height)
    ]


def _line(cells: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    aligned = [
        " " * (room - cell_len(cell)) + cell if number else set_cell_size(cell, room)
        for cell, room, number in zip(cells, widths, is_number, strict=False)
    ]
    return (" " * _GAP).join(aligned).rstrip()
