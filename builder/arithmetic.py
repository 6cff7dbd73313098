"""Values of formulas: exact fractions while all steps are rational, double precision after that, bounded in size."""

import cmath
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Final

Value = Fraction | complex
Tree = tuple[Any, ...]
"""A formula: its kind, then its parts; made by `builder.formula.parse_formula`."""

_MOST_BITS: Final = 8192

FUNCTIONS: Final[dict[str, Callable[[complex], complex]]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "exp": cmath.exp,
}


class Unreadable(ValueError):
    """The text is not in the grammar, or is too large to evaluate."""


def variables(tree: Tree) -> set[str]:
    """Names of the free variables."""
    if tree[0] == "variable":
        return {tree[1]}
    return {name for part in tree[1:] if isinstance(part, tuple) for name in variables(part)}


def evaluate(tree: Tree, where: Mapping[str, Fraction]) -> Value:
    """Value of a formula: exact where all steps are rational, else double precision.

    Raises Unreadable past the size limit, ZeroDivisionError or OverflowError or ValueError where it is undefined.
    """
    kind, *parts = tree
    if kind == "number":
        return Fraction(parts[0])
    if kind == "variable":
        return where[parts[0]]
    if kind == "constant":
        return complex({"pi": math.pi, "e": math.e, "i": 1j}[parts[0]])
    values = [evaluate(part, where) for part in parts if isinstance(part, tuple)]
    if kind == "function":
        return FUNCTIONS[parts[0]](complex(values[0]))
    return _sized(_OPERATIONS[kind](*values))


def _sized(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
            raise Unreadable("a number is too large")
    elif not cmath.isfinite(value):
        raise OverflowError("not finite")
    return value


def _both(operation: Callable[[Any, Any], Any]) -> Callable[[Value, Value], Value]:
    def apply(one: Value, two: Value) -> Value:
        if isinstance(one, Fraction) and isinstance(two, Fraction):
            return Fraction(operation(one, two))
        return complex(operation(complex(one), complex(two)))

    return apply


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent.numerator) * size > _MOST_BITS:
            raise Unreadable("a power is too large")
        return Fraction(base ** int(exponent))
    return complex(base) ** complex(exponent)


def _root(value: Value, index: Value) -> Value:
    if isinstance(value, Fraction) and isinstance(index, Fraction) and index == 2 and value >= 0:
        above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if above * above == value.numerator and below * below == value.denominator:
            return Fraction(above, below)
    if isinstance(value, Fraction) and value < 0 and isinstance(index, Fraction) and index.numerator % 2 == 1:
        return -_root(-value, index)  # the real odd root, as school mathematics means it
    return complex(value) ** (1 / complex(index))


def _whole(value: Value) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 500:
        raise Unreadable(f"{value} is no small whole number")
    return int(value)


_OPERATIONS: Final[dict[str, Callable[..., Value]]] = {
    "plus": _both(lambda a, b: a + b),
    "minus": _both(lambda a, b: a - b),
    "times": _both(lambda a, b: a * b),
    "over": _both(lambda a, b: a / b),
    "negative": lambda a: -a,
    "absolute": lambda a: abs(a) if isinstance(a, Fraction) else complex(abs(a)),
    "power": _power,
    "root": _root,
    "factorial": lambda a: Fraction(math.factorial(_whole(a))),
    "binomial": lambda a, b: Fraction(math.comb(_whole(a), _whole(b))),
    "logarithm": lambda a, b: cmath.log(complex(a)) / cmath.log(complex(b)),
}
