"""A rule, selector, report or mix as a file: its text, what its header says, the parameters that it declares."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.errors import UsageError
from builder.identity import sha256_hex

KINDS: Final = {"rules": "rule", "selectors": "selector", "reports": "report", "mix": "mix", "staging": "staging"}
_INTEGERS: Final = ("TINYINT", "SMALLINT", "INTEGER", "INT", "BIGINT", "HUGEINT")
_NUMBERS: Final = (*_INTEGERS, "DOUBLE", "FLOAT", "REAL", "DECIMAL", "NUMERIC")

Value = float | int | str | bool


@dataclass(frozen=True)
class Parameter:
    """A number or word that a recipe may set: declared in the `params` CTE and in one header line."""

    name: str
    type: str
    default: str | None
    unit: str

    def check(self, value: Value, where: str) -> None:
        """Raise UsageError where a recipe's value is not of the declared type."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {
            "BOOLEAN": isinstance(value, bool),
            "VARCHAR": isinstance(value, str),
            "TEXT": isinstance(value, str),
            **dict.fromkeys(_NUMBERS, number),
            **dict.fromkeys(_INTEGERS, number and float(value) == int(value) if number else False),
        }.get(self.type, True)
        if not fits:
            raise UsageError(f"{where} is {value!r}, but parameter {self.name} is {self.type.lower()}: {self.unit}.")


@dataclass(frozen=True)
class SqlFile:
    """One SQL file: its text and what it says of itself."""

    name: str
    kind: str
    path: Path
    text: str
    header: Mapping[str, list[str]]
    parameters: tuple[Parameter, ...]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{KINDS[self.kind]} {self.name} ({self.path})"

    @property
    def sha256(self) -> str:
        return sha256_hex(self.text)

    @property
    def purpose(self) -> str:
        return " ".join(self.header.get("Purpose", []))
