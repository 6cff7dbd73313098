r"""One spelling for what means the same, and plain numbers as people write them."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from builder.answers import ASCII_FORMS

_REMOVED: Final = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])\.?|(?<!\\)\\(?:[!,;:]|(?=\s))"
)
_DEGREES: Final = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|°")
_LETTER_FONT: Final = re.compile(r"\\(?:mathrm|mathbf|mathit|rm|operatorname|text)\s*\{\s*([a-zA-Z])\s*\}")
_TEXT: Final = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
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
    ("±", "\\pm "),
    ("∞", "\\infty "),
    ("∅", "\\emptyset "),
    ("\\varnothing", "\\emptyset"),
    ("~", " "),
    ("\\quad", " "),
    ("\\lbrace", "\\{"),
    ("\\rbrace", "\\}"),
    ("**", "^"),
)
_REPEATING: Final = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_SHORT: Final = r"(?:[mcdk]?[mgL]|[sh]|min|[kM]?(?:N|J|W|Pa|Hz)|V|A|K|C|F|mol)(?:\s?\^\s?\{?-?[1-3]\}?)?"
_LETTER_UNIT: Final = re.compile(rf"(-?[\d.,]*\d)\s+(?:\^\{{?\\circ\}}?|°)?\s?{_SHORT}(?:\s?[/*·]\s?{_SHORT})*+\.?")
_SCALES: Final = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# One word of a unit. Atomic groups below: two ways to read the same blanks would take exponential time.
_UNIT: Final = (
    r"(?:\\(?:text|textbf|textrm|mbox|mathrm)\s*\{[^{}]*\}"
    r"|(?<=\s)(?:[a-zA-Z]{3,}|of|per|a|an|in)(?![a-zA-Z({\\])"
    r"|(?:cm|mm|km|kg|mg|ml|ft|in|lb|oz|hr|pm|am|mph|kph)\b)(?:\s*\^\s*\{?[23]\}?)?"
)
_LITERAL: Final = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<currency>[$€£¥]?)\s*(?P<sign2>-?)\s*(?:"
    r"(?P<whole>\d+)?\s*\\frac\s*(?:\{\s*(?P<n>-?\d+)\s*\}|(?P<n1>\d))\s*(?:\{\s*(?P<d>\d+)\s*\}|(?P<d1>\d))"
    r"|(?:(?P<whole2>\d+)\s+)?(?P<n2>\d+)\s*/\s*(?P<d2>\d+)"
    r"|(?P<decimal>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE](?P<exponent>[+-]?\d{1,3}))?\s*[$€£¥]?"
    rf")\s*(?P<percent>%|percent\b)?(?P<unit>(?>\s*+{_UNIT})*+)\s*\.?"
)


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
    text = _REPEATING.sub(_repeating, _DEGREES.sub("", _REMOVED.sub("", text)))
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


def without_unit_letter(text: str) -> str:
    """A number without a unit that formulas could not tell from variables: `10 m`, `9.8 m/s^2`. Else the text."""
    match = _LETTER_UNIT.fullmatch(text.strip())
    return match[1] if match else text


def is_text(gold: str) -> bool:
    """Whether a gold is words, such as `\\text{even}` or `Evelyn`, rather than mathematics."""
    plain = _TEXT.sub(r"\1", normalize(gold))
    return bool(re.fullmatch(r"[^\W\d_][^\W\d_\s]+(?:[\s-][^\W\d_]+)*", plain)) and "\\" not in plain


def compact(text: str) -> str:
    """One spelling for string comparison; words fold case, formulas do not."""
    # "2 3/4" is not 23/4; "18 000" is 18000
    apart = re.sub(r"(?<=\d)\s+(?=\d)(?!\d{3}(?!\d))", "_", _TEXT.sub(r"\1", text))
    plain = re.sub(r"\s+", "", apart)
    if match := re.fullmatch(r"\(?([A-Za-z])\)?", plain):
        return match[1]
    return plain.casefold() if re.fullmatch(r"[^\W\d_]{3,}", plain) else plain


def closes_at(text: str, opening: int) -> int:
    """Index of the bracket that closes the one at `opening`, whatever its kind; −1 where none does."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index
    return -1


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


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as the fraction that it is, 15/90."""
    before, once, again = match[1] or "0", match[2], match[3] or match[4]
    below = 10 ** len(once) * (10 ** len(again) - 1)
    above = int(before + once + again) - int(before + once)
    return f"\\frac{{{above}}}{{{below}}}"


def _unwrapped(text: str) -> str:
    text = text.strip()
    for left, right in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
        if len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right):
            inside = text[len(left) : -len(right)]
            if left not in inside:
                return inside.strip()
    if text.startswith("{") and text.endswith("}") and closes_at(text, 0) == len(text) - 1:
        return text[1:-1].strip()
    return text
