r"""What an answer is worth: typed comparison of numbers and formulas, independent of sympy and math-verify.

Plain rational numbers, and formulas of rational numbers without variables, are compared as exact fractions. Other
formulas are evaluated in double precision at fixed points (Schwartz-Zippel: two different polynomials rarely agree
where nobody chose the points to fool them). Whatever the grammar does not read gives None: no opinion.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from builder.answers import ASCII_FORMS, LONGEST_ANSWER
from builder.formula import Unreadable, Value, evaluate, parse_formula, variables

_REMOVED: Final = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])\.?|(?<!\\)\\(?:[!,;:]|(?=\s))"
)
_DEGREES: Final = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°")
_LETTER_FONT: Final = re.compile(r"\\(?:mathrm|mathbf|mathit|rm|operatorname|text)\s*\{\s*([a-zA-Z])\s*\}")
_TEXT: Final = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_JOINT: Final = re.compile(r",?\s*\\(?:text|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|,?\s+(?:and|or)\s+")
_REPLACED: Final = (
    ("{,}", ","),
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("\\%", "%"),
    ("\\$", "$"),
    ("\\cdot", "*"),
    ("\\times", "*"),
    ("·", "*"),
    ("×", "*"),
    ("\\div", "/"),
    ("÷", "/"),
    ("π", "\\pi "),
    ("√", "\\sqrt "),
    ("∞", "\\infty "),
    ("~", " "),
    ("\\quad", " "),
    ("\\lbrace", "\\{"),
    ("\\rbrace", "\\}"),
    ("**", "^"),
)
_SCALES: Final = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT: Final = (
    r"(?:\\(?:text|textbf|textrm|mbox|mathrm)\s*\{[^{}]*\}(?:\s*\^\s*\{?[23]\}?)?"
    r"|(?:\s(?:[a-zA-Z]{3,}|(?:of|per|a|an|in))(?![a-zA-Z({\\]))+(?:\s*\^\s*\{?[23]\}?)?"
    r"|\s?(?:cm|mm|km|kg|mg|ml|ft|in|lb|oz|hr|pm|am|mph|kph)\b(?:\s*\^\s*\{?[23]\}?)?)"
)
_LITERAL: Final = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<currency>[$€£¥]?)\s*(?P<sign2>-?)\s*(?:"
    r"(?P<whole>\d+)?\s*\\frac\s*(?:\{\s*(?P<n>-?\d+)\s*\}|(?P<n1>\d))\s*(?:\{\s*(?P<d>\d+)\s*\}|(?P<d1>\d))"
    r"|(?:(?P<whole2>\d+)\s+)?(?P<n2>\d+)\s*/\s*(?P<d2>\d+)"
    r"|(?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE](?P<exponent>[+-]?\d{1,3}))?"
    rf")\s*(?P<percent>%|percent\b)?(?P<unit>(?:\s*{_UNIT})*)\s*\.?"
)
_THOUSANDS: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)")
_NAMED: Final = re.compile(r"[a-zA-Z](?:_\{?\w\}?)?(?:\([a-zA-Z]\))?|\\(?:theta|alpha|beta|lambda|mu|phi|angle\s*\w+)")
_MATRIX: Final = re.compile(r"\\begin\{([pbBvV]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_BRACKETS: Final = {"(": ")]", "[": ")]", "\\{": ("\\}",)}
_RELATION: Final = re.compile(r"[<>≤≥≠]|\\(?:leq?|geq?|neq?|lt|gt|in|subset|to|equiv|approx|mid)(?![a-zA-Z])")
_MEMBER: Final = re.compile(r"^\s*[a-zA-Z]\s*\\in(?![a-zA-Z])")


@dataclass(frozen=True)
class Comparison:
    """Equal or not; `exact` where that is a proof rather than strong evidence."""

    equal: bool
    exact: bool


@dataclass(frozen=True)
class Literal:
    """A plain number as written. `unit` is lower case without inner marks; `step` is the last decimal place."""

    value: Fraction
    percent: bool
    unit: str
    step: Fraction


def normalize(text: str) -> str:
    """LaTeX with one spelling for what means the same: fractions, signs, spaces, fonts of single letters."""
    text = text.translate(ASCII_FORMS)
    for old, new in _REPLACED:
        text = text.replace(old, new)
    text = _DEGREES.sub("", _REMOVED.sub("", text))
    text = _LETTER_FONT.sub(r" \1 ", text).strip()
    while (inner := _unwrapped(text)) != text:
        text = inner
    return re.sub(r"\s+", " ", text).lstrip(" ;,").rstrip(" .;,")


def read_literal(text: str) -> Literal | None:
    """A plain number: thousands commas, currency, percent, fraction, mixed number, scale word, unit. None for more."""
    match = _LITERAL.fullmatch(normalize(text))
    if match is None:
        return None
    value, step = _magnitude(match)
    if value is None:
        return None
    words = " ".join(_TEXT.sub(r"\1", match["unit"]).lower().split())
    scale, _, rest = words.partition(" ")
    if scale in _SCALES:
        value, step, words = value * _SCALES[scale], step * _SCALES[scale], rest
    if "-" in (match["sign"], match["sign2"]):
        value = -value
    return Literal(value, bool(match["percent"]), words, step)


def is_text(gold: str) -> bool:
    """Whether a gold is words, such as `\\text{even}` or `Evelyn`, rather than mathematics."""
    plain = _TEXT.sub(r"\1", normalize(gold))
    return bool(re.fullmatch(r"[^\W\d_][^\W\d_\s]+(?:[\s-][^\W\d_]+)*", plain)) and "\\" not in plain


def compare(gold: str, answer: str) -> Comparison | None:
    """Typed comparison of two answers, gold first; None where this check has no opinion. Bounded in time."""
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        return None
    return _compare(normalize(gold), normalize(answer), 0)


def _compare(gold: str, answer: str, depth: int) -> Comparison | None:  # noqa: PLR0911
    if _compact(gold) == _compact(answer) and gold:
        return Comparison(True, True)
    if depth > 4 or not gold or not answer:
        return None
    first, second = read_literal(gold), read_literal(answer)
    if first and second:
        return _compare_literals(first, second)
    gold, answer = _MEMBER.sub("", gold).strip(), _MEMBER.sub("", answer).strip()
    for split in (_matrix, _items):
        one, two = split(gold), split(answer)
        if one and two:
            return _compare_items(one, two, depth)
        if one or two:
            return None
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
        return _compare(gold, two[-1], depth + 1)
    if len(two) == 1:
        return _compare(one[-1], answer, depth + 1) if _NAMED.fullmatch(one[0]) else None
    if _compact(one[0]) == _compact(two[0]):
        return _compare(one[-1], two[-1], depth + 1)
    first, second = (_values(f"({sides[0]})-({sides[-1]})") for sides in (one, two))
    if first is None or second is None:
        return None
    ratios = [complex(a) / complex(b) for a, b in zip(first, second, strict=True) if a is not None and b]
    if len(ratios) < 3:
        return None
    return Comparison(bool(ratios[0]) and all(_close(ratio, ratios[0]) for ratio in ratios), False)


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
    except Unreadable:
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
        except (Unreadable, ZeroDivisionError, OverflowError, ValueError):
            values.append(None)
    return values


def _close(one: complex, two: complex) -> bool:
    return abs(one - two) <= 1e-9 * max(abs(one), abs(two), 1e-6)


def _magnitude(match: re.Match[str]) -> tuple[Fraction | None, Fraction]:
    if match["decimal"] is not None:
        digits = match["decimal"].replace(",", "")
        exponent = int(match["exponent"] or 0)
        places = len(digits.partition(".")[2])
        step = Fraction(10) ** (exponent - places) if places else Fraction(0)
        return Fraction(digits.rstrip(".")) * Fraction(10) ** exponent, step
    above = int(match["n"] or match["n1"] or match["n2"])
    below = int(match["d"] or match["d1"] or match["d2"])
    whole = int(match["whole"] or match["whole2"] or 0)
    return (None if below == 0 else whole + Fraction(above, below)), Fraction(0)


def _unwrapped(text: str) -> str:
    text = text.strip()
    for left, right in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            inside = text[len(left) : -len(right)]
            if left not in inside:
                return inside.strip()
    if text.startswith("{") and text.endswith("}") and _closes_at(text, 0) == len(text) - 1:
        return text[1:-1].strip()
    return text


def _compact(text: str) -> str:
    """One spelling for string comparison; words fold case, formulas do not."""
    plain = re.sub(r"\s+", "", _TEXT.sub(r"\1", text))
    if match := re.fullmatch(r"\(?([A-Za-z])\)?", plain):
        return match[1]
    return plain.casefold() if re.fullmatch(r"[^\W\d_]{3,}", plain) else plain


def _matrix(text: str) -> tuple[str, list[str]] | None:
    match = _MATRIX.fullmatch(text.strip())
    if not match:
        return None
    rows = [row.split("&") for row in match[2].strip().removesuffix("\\\\").split("\\\\")]
    return f"matrix {[len(row) for row in rows]}", [cell.strip() for row in rows for cell in row]


def _items(text: str) -> tuple[str, list[str]] | None:
    """Brackets and elements of a tuple, interval, set, union or bare list; None for a single thing."""
    if "\\cup" in text:
        return "cup", [part.strip() for part in text.split("\\cup")]
    text = _JOINT.sub(",", text)
    if "\\pm" in text and "," not in text:
        return (",", [text.replace("\\pm", "+"), text.replace("\\pm", "-")]) if text.count("\\pm") == 1 else None
    for left, rights in _BRACKETS.items():
        right = next((right for right in rights if text.endswith(right)), None)
        if text.startswith(left) and right and _closes_at(text, len(left) - 1) == len(text) - 1:
            parts = _split_commas(text[len(left) : -len(right)])
            return (left + right, parts) if len(parts) > 1 or left == "\\{" else None
    parts = _split_commas(text)
    return (",", parts) if len(parts) > 1 else None


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


def _closes_at(text: str, opening: int) -> int:
    """Index of the bracket that closes the one at `opening`, whatever its kind; −1 where none does."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index
    return -1


def _singular(unit: str) -> str:
    return re.sub(r"s\b|[^a-z0-9 ]", "", unit).strip()
