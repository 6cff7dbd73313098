r"""Which part of a reply is its answer. Pure, bounded in time: nothing here looks at more than the reply's end.

The text given is the final part of a reply, never its reasoning. Order of trust: the last balanced `\boxed{}`, then
what follows `####`, then the last "answer is …" sentence, then the last formula or number of the whole text.
"""

import re
from typing import Final

BOX_TAIL: Final = 100_000
"""Characters at the end of a reply that are searched for a box, tag or letter."""

FORMULA_TAIL: Final = 20_000
"""Characters at the end that are searched for formulas: their patterns cost more per character."""

LONGEST_ANSWER: Final = 2_000
"""Characters; what is longer than this is no final answer, and no parser is asked about it."""

ASCII_FORMS: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x2212: "-", 0x2013: "-", 0x3000: " "}
"""Full-width letters, digits and signs, and typographic minus signs, as the ASCII they stand for."""
_BRACE: Final = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_ANCHOR: Final = re.compile(
    r"(?:\b(?:answer|result)\b[^\n.:=]{0,60}?(?:\bis\b|\bare\b|[:=])|答案\s*[是为為:])[\s:*_]*", re.IGNORECASE
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
_COMMAND: Final = re.compile(r"\\(?:text|mathrm|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORDS: Final = re.compile(r"[^\W\d_]{2,}|\$[^$]*\$|\\[(\[]")
_LETTER: Final = r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?[*_]{0,2}\(?([A-J])\)?[*_]{0,2}\}?"
_LETTER_ONLY: Final = re.compile(rf"\s*(?:option|choice|answer)?\s*{_LETTER}\s*(?:[.:,)](?:\s.*)?|\s*-.*)?", re.DOTALL)
_LETTER_ANCHORED: Final = re.compile(
    r"(?:\b(?i:answer|option|choice)\b(?i:[^\n.]{0,40}?\b(?:is|be)\b)?|答案\s*[是为為]?)[\s:：]*[\"'$]?"
    rf"(?i:\s*(?:option|choice)\s*)?{_LETTER}(?![\w'’])"
)
_LETTER_MARKED: Final = re.compile(r"\(([A-J])\)|\*\*\(?([A-J])\)?[.:]?\*\*")


def final_part(answer: str) -> str:
    """The end of a reply that may hold its answer: after a last close-think tag, inside a last `<answer>` tag."""
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


def extract_math(text: str, *, closed_only: bool = False) -> str | None:
    """The expression that a reply gives as its answer, or None.

    With `closed_only` (a reply that was cut) only a balanced box counts: the last number of a cut text is an accident.
    """
    boxed = last_boxed(text)
    if boxed or closed_only:
        return boxed or None
    tail = text[-FORMULA_TAIL:]
    marked = tail.rpartition("####")
    if marked[1] and (line := marked[2].strip().partition("\n")[0].strip(" .*")):
        return line
    if (sentence := _anchored(tail)) and (found := _last_expression(sentence)):
        return found
    return _last_expression(tail)


def extract_words(text: str) -> str | None:
    """A worded answer: box, else the end of the last "answer is …" sentence, else a text of one line."""
    if boxed := last_boxed(text):
        return boxed
    if sentence := _anchored(text[-FORMULA_TAIL:]):
        return sentence.strip(" *_.\"'")
    return text if "\n" not in text else None


def extract_choice(text: str) -> str | None:
    """The option letter that a reply names, A to J, or None."""
    boxed = last_boxed(text)
    for candidate in (boxed, text):
        if candidate and (match := _LETTER_ONLY.fullmatch(candidate)):
            return match[1]
    for pattern in (_LETTER_ANCHORED, _LETTER_MARKED):
        if matches := list(pattern.finditer(text[-FORMULA_TAIL:])):
            return next(group for group in matches[-1].groups() if group)
    return None


def _anchored(text: str) -> str | None:
    """The rest of the sentence after the last "answer is", or None."""
    anchors = list(_ANCHOR.finditer(text))
    if not anchors:
        return None
    match = _SENTENCE.match(text, anchors[-1].end())
    return match.group() if match else None


def _last_expression(text: str) -> str | None:
    """The text itself where it is one bare formula, else the formula or number that ends last."""
    bare = text.strip(" *.\n")
    if re.search(r"\w", bare) and "\n" not in bare and len(bare) <= 300 and not _WORDS.search(_COMMAND.sub(" ", bare)):
        return bare
    formulas = [match for match in _FORMULA.finditer(text) if re.search(r"\w", match.group())]
    number = None
    for match in NUMBER.finditer(text):
        number = match
    if formulas and (number is None or formulas[-1].end() >= number.end()):
        return next(group for group in formulas[-1].groups() if group is not None).strip()
    return number.group().strip() if number else None
