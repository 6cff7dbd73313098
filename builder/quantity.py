r"""What an answer is worth: typed comparison of numbers and formulas, independent of sympy and math-verify.

Plain rational numbers, and formulas of rational numbers without variables, are compared as exact fractions. Other
formulas are evaluated in double precision at fixed points (Schwartz-Zippel: two different polynomials rarely agree
where nobody chose the points to fool them). Whatever the grammar does not read gives None: no opinion.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from builder.answers import LONGEST_ANSWER
from builder.arithmetic import Unreadable, Value, evaluate, variables
from builder.formula import parse_formula
from builder.literals import Literal, closes_at, compact, normalize, read_literal

_JOINT: Final = re.compile(r",?\s*\\(?:text|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+")
_THOUSANDS: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_NAMED: Final = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?(?:\([a-zA-Z]\))?|\\(?:theta|alpha|beta|lambda|mu|phi|angle\s*\w+)")
_MATRIX: Final = re.compile(r"\\begin\{([pbBvV]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_BRACKETS: Final = {"(": ")]", "[": ")]", "\\{": ("\\}",)}
_RELATION: Final = re.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt|in|subset|to|equiv|approx|mid)(?![a-zA-Z])")
_LESS: Final = r"(<|≤|\\(?:lt|leq?)(?![a-zA-Z]))"
_BETWEEN: Final = re.compile(rf"([^<>]+?)\s*{_LESS}\s*[a-zA-Z]\s*{_LESS}\s*([^<>]+)")
_BOUND: Final = re.compile(r"[a-zA-Z]\s*([<>≤≥]|\\(?:[lg]t|[lg]eq?)(?![a-zA-Z]))\s*([^<>]+)")
_STRICT: Final = ("<", ">", "\\lt", "\\gt")
_UNEQUAL: Final = re.compile(r"[<>≤≥]|\\(?:[lg]t|[lg]eq?)(?![a-zA-Z])")
_MEMBER: Final = re.compile(r"^\s*[a-zA-Z]\s*\\in(?![a-zA-Z])")


@dataclass(frozen=True)
class Comparison:
    """Equal or not; `exact` where that is a proof rather than strong evidence."""

    equal: bool
    exact: bool


def compare(gold: str, answer: str) -> Comparison | None:
    """Typed comparison of two answers, gold first; None where this check has no opinion. Bounded in time."""
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        return None
    return _compare(normalize(gold), normalize(answer), 0)


def _compare(gold: str, answer: str, depth: int) -> Comparison | None:  # noqa: PLR0911
    if compact(gold) == compact(answer) and gold:
        return Comparison(True, True)
    if depth > 4 or not gold or not answer:
        return None
    first, second = read_literal(gold), read_literal(answer)
    if first and second:
        return _compare_literals(first, second)
    gold, answer = _MEMBER.sub("", gold).strip(), _MEMBER.sub("", answer).strip()
    if gold[:1] in ("(", "["):
        answer = _interval(answer)
    elif answer[:1] in ("(", "["):
        gold = _interval(gold)
    for split in (_matrix, _items):
        one, two = split(gold), split(answer)
        if one and two:
            return _compare_items(one, two, depth)
        if one or two:
            return None
    if (first and _UNEQUAL.search(answer)) or (second and _UNEQUAL.search(gold)):
        return Comparison(False, False)  # a bound is no value
    if _RELATION.search(gold) or _RELATION.search(answer):
        return None
    return _compare_equations(gold, answer, depth)


def _compare_literals(gold: Literal, answer: Literal) -> Comparison | None:
    """Exact, with two honest gaps: different units, and decimals that may be the other number rounded."""
    if gold.unit and answer.unit and _singular(gold.unit) != _singular(answer.unit):
        return None
    accepted = {answer.value}
    if gold.percent != answer.percent:
        # "50%" answers a question for a percentage with gold 50, and a question for a share with gold 0.5.
        accepted.add(answer.value / 100 if answer.percent else answer.value * 100)
    if gold.value in accepted:
        return Comparison(True, True)
    step = max(gold.step, answer.step)
    if step and abs(gold.value - answer.value) <= step / 2:
        return None
    return Comparison(False, True)


def _compare_items(gold: tuple[str, list[str]], answer: tuple[str, list[str]], depth: int) -> Comparison | None:
    """Element by element; sets and bare lists in any order."""
    if gold[0] != answer[0]:
        return None if "," in (gold[0], answer[0]) else Comparison(False, False)
    if len(gold[1]) != len(answer[1]):
        return Comparison(False, False)
    rest = list(answer[1])
    doubt = False
    for item in gold[1]:
        candidates = rest if gold[0] in (",", "\\{\\}", "cup") else rest[:1]
        verdicts = [_compare(item, other, depth + 1) for other in candidates]
        match = next((index for index, found in enumerate(verdicts) if found and found.equal), None)
        if match is None:
            if all(found is not None for found in verdicts):
                return Comparison(False, False)
            doubt, match = True, 0
        rest.pop(match)
    return None if doubt else Comparison(True, False)


def _compare_equations(gold: str, answer: str, depth: int) -> Comparison | None:  # noqa: PLR0911
    """`x = 5` against `5`; two equations as multiples of each other; else plain formulas."""
    one, two = [side.strip() for side in gold.split("=")], [side.strip() for side in answer.split("=")]
    if len(one) == 1 and len(two) == 1:
        return _compare_formulas(gold, answer)
    if "" in one or "" in two:
        return None
    if len(two) > 1 and len(one) == 1:
        return _compare(gold, _side(two), depth + 1)
    if len(two) == 1:
        named = _NAMED.fullmatch(one[0]) or _NAMED.fullmatch(one[-1])
        return _compare(_side(one), answer, depth + 1) if named else None
    if compact(one[0]) == compact(two[0]):
        return _compare(one[-1], two[-1], depth + 1)
    first, second = (_values(f"({sides[0]})-({sides[-1]})") for sides in (one, two))
    if first is None or second is None:
        return None
    ratios = [complex(a) / complex(b) for a, b in zip(first, second, strict=True) if a is not None and b]
    if len(ratios) < 3:
        return None
    return Comparison(bool(ratios[0]) and all(_close(ratio, ratios[0]) for ratio in ratios), False)


def _side(sides: list[str]) -> str:
    """The side of an equation that is its value: the last, or the first where the last is a mere name (`12 = x`)."""
    return sides[0] if _NAMED.fullmatch(sides[-1]) and not _NAMED.fullmatch(sides[0]) else sides[-1]


def _compare_formulas(gold: str, answer: str) -> Comparison | None:
    first, second = _values(gold), _values(answer)
    if first is None or second is None:
        return None
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return None
    if all(isinstance(a, Fraction) and isinstance(b, Fraction) for a, b in pairs):
        constant = len(set(first)) == 1 and len(set(second)) == 1
        return Comparison(all(a == b for a, b in pairs), constant)
    return Comparison(all(_close(complex(a), complex(b)) for a, b in pairs), False)


def _values(text: str) -> list[Value | None] | None:
    """Values of a formula at five fixed points of its variables, None where undefined; None for no formula."""
    literal = read_literal(text)
    if literal and not literal.percent:
        return [literal.value] * 5
    try:
        formula = parse_formula(text)
    except (Unreadable, RecursionError):
        return None
    values: list[Value | None] = []
    for point in range(5):
        # Positive reals: most formulas of answers are meant there, and roots and logarithms are single-valued.
        where = {
            name: Fraction(30 + (61803 * sum(map(ord, name)) + 75488 * point) % 19013, 10007)
            for name in variables(formula)
        }
        try:
            values.append(evaluate(formula, where))
        except (Unreadable, RecursionError, ZeroDivisionError, OverflowError, ValueError):
            values.append(None)
    return values


def _close(one: complex, two: complex) -> bool:
    return abs(one - two) <= 1e-9 * max(abs(one), abs(two), 1e-6)


def _interval(text: str) -> str:
    r"""An inequality of one variable as the interval that it is: `0 \le x < 1`, `x > 2`. Any other text as it is."""
    if match := _BETWEEN.fullmatch(text):
        low, above, below, high = match.groups()
        return f"{'(' if above in _STRICT else '['}{low}, {high}{')' if below in _STRICT else ']'}"
    if not (match := _BOUND.fullmatch(text)):
        return text
    sign, bound = match.groups()
    if sign in (*_STRICT, "≤", "\\le", "\\leq") and sign not in (">", "\\gt"):
        return f"(-\\infty, {bound}{')' if sign in _STRICT else ']'}"
    return f"{'(' if sign in _STRICT else '['}{bound}, \\infty)"


def _matrix(text: str) -> tuple[str, list[str]] | None:
    match = _MATRIX.fullmatch(text.strip())
    if not match:
        return None
    rows = [row.split("&") for row in match[2].strip().removesuffix("\\\\").split("\\\\")]
    kind = "determinant" if match[1] in ("v", "V") else "matrix"
    return f"{kind} {[len(row) for row in rows]}", [cell.strip() for row in rows for cell in row]


def _items(text: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of a tuple, interval, set, union or bare list; None for a single thing."""
    if "\\cup" in text:
        return "cup", [part.strip() for part in text.split("\\cup")]
    text = _JOINT.sub(",", text)
    for left, rights in _BRACKETS.items():
        right = next((right for right in rights if text.endswith(right)), None)
        if text.startswith(left) and right and closes_at(text, len(left) - 1) == len(text) - 1:
            parts = _split_commas(text[len(left) : -len(right)])
            if left == "\\{":
                signed = _both_signs(parts)
                return (left + right, signed) if signed else None
            return (left + right, parts) if len(parts) > 1 else None
    signed = _both_signs(_split_commas(text))
    return (",", signed) if signed and len(signed) > 1 else None


def _both_signs(parts: list[str]) -> list[str] | None:
    r"""`\pm 7` as the two elements that it stands for; None where a part has two of them, which may belong together."""
    if any(part.count("\\pm") > 1 for part in parts):
        return None
    return [part.replace("\\pm", sign) for part in parts for sign in ("+-" if "\\pm" in part else "+")]


def _split_commas(text: str) -> list[str]:
    """Parts between commas outside brackets; a comma before a group of three digits belongs to the number."""
    inside = {index for match in _THOUSANDS.finditer(text) for index in range(*match.span())}
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and index not in inside:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _singular(unit: str) -> str:
    return re.sub(r"s\b|[^a-z0-9 ]", "", unit).strip()
