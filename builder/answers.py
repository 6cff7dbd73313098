r"""Which part of a reply is its answer. Pure, bounded in time: nothing here looks at more than the reply's end.

The text given is the final part of a reply, never its reasoning. Order of trust: the last balanced `\boxed{}`, then
what follows `####`, then the last "answer is …" sentence, then the last formula or number of the whole text.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

BOX_TAIL: Final = 100_000
"""Characters at the end of a reply that are searched for a box, tag or letter."""

FORMULA_TAIL: Final = 20_000
"""Characters at the end that are searched for formulas: their patterns cost more per character."""

LONGEST_ANSWER: Final = 2_000
"""Characters; what is longer than this is no final answer, and no parser is asked about it."""

ASCII_FORMS: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x2212: "-", 0x2013: "-", 0x3000: " "}
"""Full-width letters, digits and signs, and typographic minus signs, as the ASCII they stand for."""
_RAISED: Final = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED: Final = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SHIFTED: Final = re.compile(f"[{''.join(_RAISED)}]+|[{''.join(_LOWERED)}]+")
_VULGAR: Final = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_SIGNS: Final = {"⁄": "/", "∞": "\\infty ", "π": "\\pi ", "√": "\\sqrt ", "±": "\\pm ", "≤": "\\le ", "≥": "\\ge "}
_TIMES_TEN: Final = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?\^)")
_BRACE: Final = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_EMPTY_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")
_ANCHOR: Final = re.compile(
    r"(?:\b(?:answer|result)\b[^\n.:=]{0,60}?(?:\bis\b|\bare\b|[:=])|答案\s*[是为為:])[\s:*_]*", re.IGNORECASE
)
_REASON: Final = re.compile(
    r"[\s,(](?:because|since|which|given that|as (?:there|the|we|it|she|he|they))\b", re.IGNORECASE
)
_SENTENCE: Final = re.compile(r"(?:[^\n.。]|\.(?!\s|$))*")
# One dollar sign opens a formula before no white space, or anywhere if a command follows: prices are no formulas.
_FORMULA: Final = re.compile(
    r"(?<!\\)\$\$(?P<a>.{1,1000}?)\$\$"
    r"|(?<!\\)\$(?!\s)(?P<b>(?:\\.|[^$\\\n]){1,1000}?)(?<!\s)\$(?!\d)"
    r"|(?<!\\)\$(?P<c>[^$\\\n]{0,200}\\[a-zA-Z](?:\\.|[^$\\\n]){0,1000}?)\$(?!\d)"
    r"|\\\[(?P<d>.{1,1000}?)\\\]|\\\((?P<e>.{1,1000}?)\\\)",
    re.DOTALL,
)
_DIGITS: Final = r"(?:\d{1,3}(?:,\d{3})+(?![\d])|\d+)"
_DECIMAL: Final = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
NUMBER: Final = re.compile(
    rf"(?<![\w.^\\])(?:(?<![)\]}}])-\s?)?[$€£¥]?\s?(?<![\w.^\\])"
    rf"(?:\d+\s+\d+/\d+|{_DECIMAL}/\d+(?:\.\d+)?|{_DECIMAL}(?:[eE][+-]?\d{{1,3}}(?!\w))?)"
    r"(?:\s?\\?%|\s(?:percent|thousand|million|billion|trillion)\b)?"
)
_COMMAND: Final = re.compile(
    r"\\(?:text|mathrm|operatorname|overline|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+|(?<=[\d\s$])(?:and|or)(?=[\s$-])"
)
_WORDS: Final = re.compile(r"[^\W\d_]{2,}|\$[^$]*\$|\\[(\[]")
_LETTER: Final = (
    r"(?:\\\(|[\"'`$*_\[])*+(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?[*_]{0,2}(?:\(?([A-J])\)?|\(?([a-j])\))"
    r"(?:[\"'`$*_}\]]|\\\))*+"
)
_LETTER_ONLY: Final = re.compile(
    rf"\s*(?:option|choice|answer)?\s*(?:{_LETTER}\s*(?:[.:)](?:\s.*)?|(?<!I),\s.*|-\s.*|\n.*)?|([a-j])[.)]?)",
    re.DOTALL,
)
_NAMES: Final = rf"[\s:：*_]*+(?i:(?:option|choice)\s*)?{_LETTER}(?![\w'’])"
_LETTER_ANSWER: Final = re.compile(
    rf"(?:\b(?i:answer)\b(?i:[^\n.]{{0,40}}?\b(?:is|be)\b|[\s*_]*+[:：])|答案\s*[是为為:：]){_NAMES}"
    r"|\b([A-J])\s+is\s+(?:the\s+)?(?:correct|right|best)\b"
)
_LETTER_ANCHORED: Final = re.compile(
    rf"(?:\b(?i:answer|option|choice|choose|select|pick)\b(?i:[^\n.]{{0,40}}?\b(?:is|be)\b)?|答案){_NAMES}"
)
_LETTER_MARKED: Final = re.compile(r"\(([A-J])\)|\*\*\(?([A-J])\)?[.:]?\*\*")
_ALSO: Final = re.compile(rf"[\s)*_}}]{{0,9}}(?:,(?!\s*.\s[a-z])|/|&|,?\s(?:or|and)\s){_NAMES}")
"""Another letter behind a letter; not in "B, A is wrong"."""


def final_part(answer: str) -> str:
    """The end of a reply that may hold its answer: after a last close-think tag, inside a last `<answer>` tag."""
    if answer.lstrip().startswith("<think>") and "</think>" not in answer:
        return ""  # it never came to an answer
    text = answer[-BOX_TAIL:].translate(ASCII_FORMS)
    text = text.rpartition("</think>")[2]
    before, opened, inside = text.rpartition("<answer>")
    if opened:
        content = inside.partition("</answer>")[0].strip()
        return content or before.strip()
    return text.strip()


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced `\boxed{}` or `\fbox{}`, the outer of nested boxes; None without one. Linear."""
    found: str | None = None
    open_boxes: list[int | None] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token == "{":
            open_boxes.append(None)
        elif token == "}":
            start = open_boxes.pop() if open_boxes else None
            if start is not None:
                found = text[start : match.start()]
        elif token[-1] == "{" and len(token) > 2:
            open_boxes.append(match.end())
    return None if found is None else found.strip()


def math_signs(text: str) -> str:
    r"""Fractions, raised and lowered digits and signs of Unicode as the LaTeX they stand for: `1½` is `1 1/2`."""
    if not text.isascii():
        text = _VULGAR.sub(_fraction, text)
        text = _SHIFTED.sub(_shifted, text)
        for sign, command in _SIGNS.items():
            text = text.replace(sign, command)
    return _TIMES_TEN.sub(r"\\times ", text)


def _fraction(match: re.Match[str]) -> str:
    above_and_below = unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")
    return f"{match[1]} {above_and_below}" if match[1] else above_and_below


def _shifted(match: re.Match[str]) -> str:
    sign, forms = ("^", _RAISED) if match.group()[0] in _RAISED else ("_", _LOWERED)
    return f"{sign}{{{''.join(forms[digit] for digit in match.group())}}}"


def extract_math(text: str, *, closed_only: bool = False) -> str | None:
    """The expression that a reply gives as its answer, or None.

    With `closed_only` (a reply that was cut) only a balanced box counts: the last number of a cut text is an accident.
    """
    boxed = last_boxed(text)
    if boxed or closed_only:
        return boxed or None
    tail = _EMPTY_BOX.sub("", text[-FORMULA_TAIL:])
    if line := _marked(tail):
        return line
    if (sentence := _anchored(tail)) and (found := _last_expression(sentence)):
        return found
    return _last_expression(tail)


def extract_words(text: str) -> str | None:
    """A worded answer: box, else after `####`, else the end of the last "answer is …" sentence, else one line."""
    if found := last_boxed(text) or _marked(text[-FORMULA_TAIL:]):
        return found
    if sentence := _anchored(text[-FORMULA_TAIL:]):
        return sentence.strip(" *_.\"'")
    return text if "\n" not in text else None


def extract_line(text: str) -> str | None:
    """All of the line after the last "answer is": an answer may have dots, such as `St. John`. None without one."""
    tail = text[-FORMULA_TAIL:]
    anchors = list(_ANCHOR.finditer(tail))
    return tail[anchors[-1].end() :].partition("\n")[0].strip(" *_") if anchors else None


def extract_choice(text: str) -> str | None:
    """The option letter that a reply names, A to J, or None."""
    for candidate in (last_boxed(text), _marked(text[-FORMULA_TAIL:])):
        if candidate and (match := _LETTER_ONLY.fullmatch(candidate)):
            return _letter([match])
    if matches := list(_LETTER_ANSWER.finditer(text[-FORMULA_TAIL:])):
        return _letter(matches)
    if match := _LETTER_ONLY.fullmatch(text):
        return _letter([match])
    for pattern in (_LETTER_ANCHORED, _LETTER_MARKED):
        if matches := list(pattern.finditer(text[-FORMULA_TAIL:])):
            return _letter(matches)
    return None


def _letter(matches: Sequence[re.Match[str]]) -> str | None:
    """The letter of the last match; None where it is one of several: "A or B"."""
    found = ""
    for match in matches[-2:]:
        place = next(place for place, letter in enumerate(match.groups(), 1) if letter)
        if _ALSO.match(match.string, match.end(place)):
            return None
        found = match[place]
    return found.upper()


def _marked(text: str) -> str:
    """The line after the last `####`, as GSM8K has it; empty without one."""
    return text.rpartition("####")[2].strip().partition("\n")[0].strip(" *").rstrip(" .") if "####" in text else ""


def _anchored(text: str) -> str | None:
    """The rest of the sentence after the last "answer is", without the reason that it gives; or None."""
    anchors = list(_ANCHOR.finditer(text))
    if not anchors:
        return None
    match = _SENTENCE.match(text, anchors[-1].end())
    return _REASON.split(match.group(), 1)[0] if match else None


def _last_expression(text: str) -> str | None:
    """The text itself where it is one bare formula, else the formula or number that ends last."""
    bare = text.strip(" *`#\n").rstrip(" .")
    if re.search(r"\w", bare) and "\n" not in bare and len(bare) <= 300 and not _WORDS.search(_COMMAND.sub(" ", bare)):
        return bare
    formulas = [match for match in _FORMULA.finditer(text) if re.search(r"\w", match.group()) and not _denied(match)]
    number = None
    for match in NUMBER.finditer(text):
        if not _denied(match):
            number = match
    if formulas and (number is None or formulas[-1].end() >= number.end()):
        return next(group for group in formulas[-1].groups() if group is not None).strip()
    return number.group().strip() if number else None


def _denied(match: re.Match[str]) -> bool:
    """Whether it is what the answer is not: "12, not 13"."""
    return match.string[max(0, match.start() - 5) : match.start()].rstrip().lower().endswith("not")
