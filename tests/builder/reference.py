"""Scores by plain loops, character by character: what `builder` must find, written without any of its code.

Slow on purpose. Constants of the contract are written out; no regular expressions, no arrays.
"""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

MARGINS = [0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50]
ABBREVIATIONS = [
    "e.g", "i.e", "cf", "vs", "etc", "approx", "resp", "al", "Mr", "Mrs", "Ms", "Dr", "Prof", "St", "Fig", "Eq", "Eqs",
    "Sec", "Thm", "Nos", "Vol", "pp", "p",
]  # fmt: skip


def canonical(reasoning: str | None, answer: str | None) -> str:
    """Reasoning, blank line, answer; what there is when one is missing."""
    return f"{reasoning}\n\n{answer}" if reasoning and answer else reasoning or answer or ""


def code_blocks(text: str) -> list[tuple[int, int]]:
    """Fenced blocks as CommonMark has them, fence lines included: a fence is closed by one as long, of its kind, bare.

    Any indentation counts, and a line of three backticks with further ones behind them opens nothing.
    """
    blocks: list[tuple[int, int]] = []
    opened: tuple[int, str, int] | None = None
    at = 0
    for line in text.split("\n"):
        bare = line.lstrip(" \t")
        size = len(bare) - len(bare.lstrip(bare[0])) if bare[:1] in ("`", "~") and bare else 0
        rest = bare[size:]
        end = min(at + len(line) + 1, len(text))
        if size >= 3 and opened is None and not (bare[0] == "`" and "`" in rest):
            opened = (at, bare[0], size)
        elif size >= 3 and opened and bare[0] == opened[1] and size >= opened[2] and not rest.strip():
            blocks.append((opened[0], end))
            opened = None
        at = end
    return blocks + ([(opened[0], len(text))] if opened else [])


def _formula_end(text: str, at: int, stop: int) -> int | None:
    """Where the formula that begins at `at` ends, before `stop`; None where none begins."""
    for opening, closing, most in (("$$", "$$", 4000), ("\\[", "\\]", 4000), ("\\(", "\\)", 1000)):
        if not text.startswith(opening, at) or (opening == "$$" and text[max(0, at - 1) : at] == "\\"):
            continue
        for end in range(at + 3, min(at + 2 + most, stop - 2) + 1):
            if text.startswith(closing, end):
                return end + 2
            if opening != "$$" and text.startswith(opening, end - 1):
                break
    if text[at] != "$" or text[max(0, at - 1) : at] == "\\":
        return None
    for end in range(at + 1, min(at + 1001, stop - 1) + 1):
        if text[end] == "\n":
            return None
        if text[end] == "$":
            first, last, after = text[at + 1], text[end - 1], text[end + 1 : stop][:1]
            good = end > at + 1 and not first.isspace() and not last.isspace() and last != "\\"
            return end + 1 if good and not after.isdecimal() else None
    return None


def formulas(text: str, code: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """LaTeX outside code. Dollars as Pandoc reads them: no white space inside, no digit after, no backslash before."""
    found = []
    for start, stop in zip([0, *(b for _, b in code)], [*(a for a, _ in code), len(text)], strict=True):
        at = start
        while at < stop:
            end = _formula_end(text, at, stop)
            if end is not None:
                found.append((at, end))
            at = end or at + 1
    return found


def _abbreviated(text: str, dot: int) -> bool:
    """Whether the dot belongs to an abbreviation, or to a list number indented by at most 8."""
    for word in ABBREVIATIONS:
        start = dot - len(word)
        opens = start == 0 or (start > 0 and (text[start - 1].isspace() or text[start - 1] in "([\"'“‘"))
        if opens and text[start:dot] == word:
            return True
    at = dot
    while at > 0 and text[at - 1].isdecimal():
        at -= 1
    indent = at
    while indent > 0 and text[indent - 1] in " \t":
        indent -= 1
    return 1 <= dot - at <= 3 and at - indent <= 8 and (indent == 0 or text[indent - 1] == "\n")


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def sentence_ends(text: str) -> list[int]:
    """Character offsets of the ends of sentences: line feeds, 。！？, and . ! ? before white space."""
    code = code_blocks(text)
    mathematics = formulas(text, code)
    ends: list[int] = []
    at = 0
    while at < len(text):
        here, end = text[at], at
        if here == "\n":
            end = _skip(text, at, "\n")
        elif here in ".!?" and (at == 0 or text[at - 1] not in ".!?"):
            after = _skip(text, _skip(text, at, ".!?"), "\"'”’)]*_")
            end = after if after < len(text) and text[after] in " \t\r\f\v\u00a0\u3000" else at
        elif here in "。！？":
            end = _skip(text, _skip(text, at, "。！？"), "”’」』）")
        if end == at:
            at += 1
            continue
        in_code = any(a < at < b for a, b in code)
        in_formula = any(a < at < b for a, b in mathematics)
        if not in_formula and (here == "\n" or not (in_code or (here == "." and _abbreviated(text, at)))):
            ends.append(end)
        at = end
    kept: list[int] = []
    for end in [*ends, len(text)] if text else []:
        if text[kept[-1] if kept else 0 : end].strip():
            kept.append(end)
        elif kept:
            kept[-1] = end
    return kept or ([len(text)] if text else [])


@dataclass
class Format:
    """A formatted reply: pieces of text, each with whether it is text of the reply or structure around it."""

    segments: list[tuple[str, bool]]

    @property
    def text(self) -> str:
        """The formatted text."""
        return "".join(text for text, _ in self.segments)

    def places(self, reasoning: str | None, answer: str | None) -> list[int | None]:
        """For every character of the formatted text its place in the canonical one; None for structure."""
        starts = iter([0, len(reasoning) + 2] if reasoning and answer else [0])
        found: list[int | None] = []
        for text, is_reply in self.segments:
            start = next(starts) if is_reply else 0
            found += [start + place if is_reply else None for place in range(len(text))]
        return found


def think_format(reasoning: str | None, answer: str | None, opened: str = "") -> Format:
    """Think block, blank line, answer, less what the prompt has `opened`."""
    if not reasoning:
        return Format([(answer or "", True)])
    head = ("<think>\n").removeprefix(opened)
    return Format([(head, False), (reasoning, True), ("\n</think>\n\n", False), *([(answer, True)] if answer else [])])


def cover_by_bytes(pieces: list[bytes], text: str) -> list[list[int]]:
    """Characters of `text` that each token holds bytes of; the tokens must spell `text`."""
    owner = [place for place, character in enumerate(text) for _ in character.encode()]
    assert b"".join(pieces) == text.encode()
    found, at = [], 0
    for piece in pieces:
        found.append(sorted(set(owner[at : at + len(piece)])))
        at += len(piece)
    return found


def cover_by_offsets(offsets: list[tuple[int, int]]) -> list[list[int]]:
    """Characters that each token covers, as its tokenizer says."""
    return [list(range(start, stop)) for start, stop in offsets]


def without_inserted(cover: list[list[int]], blank: list[bool], text: str) -> list[list[int]]:
    """Tokens of white space alone that a tokenizer has put in cover nothing: they share a character that is none."""
    found = []
    for index, places in enumerate(cover):
        others = {place for other in cover[max(0, index - 1) : index] + cover[index + 1 : index + 2] for place in other}
        put_in = blank[index] and bool(others & set(places)) and not all(text[place].isspace() for place in places)
        found.append([] if put_in else places)
    return found


def uncovered(cover: list[list[int]], formatted: Format) -> str:
    """Characters of the reply that no token covers: no white space, no mark of the character before."""
    held = {place for places in cover for place in places}
    lost, at = "", 0
    for text, is_reply in formatted.segments:
        for character in text:
            is_mark = unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"
            if at not in held and is_mark and at - 1 in held:
                held.add(at)
            if is_reply and at not in held and not character.isspace():
                lost += character
            at += 1
    return lost


def token_sentences(cover: list[list[int]], places: list[int | None], text: str, ends: list[int]) -> list[int]:
    """Sentence of each token by its first character that is not white, else that before it; −1 for structure."""
    found = []
    for characters in cover:
        own: list[int] = [place for c in characters if (place := places[c]) is not None]
        solid = [place for place in own if not text[place].isspace()]
        before = [place for place in range(own[0]) if not text[place].isspace()] if own and not solid else []
        anchor = solid[0] if solid else before[-1] if before else 0
        found.append(next(i for i, end in enumerate(ends) if anchor < end) if own else -1)
    return found


def scores(teacher: list[int], teacher_logprobs: list[float], student: list[int], student_logprobs: list[float],
           sentences: int) -> dict[str, Any]:  # fmt: skip
    """What tables `sentences` and `scores` say, from the sentence and the logprob of each token on both sides."""

    def side(of_token: list[int], logprobs: list[float]) -> tuple[list[int], list[float | None], float]:
        assert len(of_token) == len(logprobs)
        held: list[list[float]] = [[] for _ in range(sentences)]
        for sentence, value in zip(of_token, logprobs, strict=True):
            if sentence != -1:
                held[sentence].append(value)
        p = [math.exp(math.fsum(values) / len(values)) if values else None for values in held]
        return [len(values) for values in held], p, math.fsum(value for values in held for value in values)

    teacher_tokens, p_teacher, teacher_sum = side(teacher, teacher_logprobs)
    student_tokens, p_student, student_sum = side(student, student_logprobs)
    delta = [
        t - s
        for t, s, n, m in zip(p_teacher, p_student, teacher_tokens, student_tokens, strict=True)
        if n >= 3 and m >= 3 and t is not None and s is not None
    ]
    return {
        "teacher_tokens": teacher_tokens,
        "student_tokens": student_tokens,
        "p_teacher": p_teacher,
        "p_student": p_student,
        "short_sentences": sentences - len(delta),
        "teacher_counts": [sum(d > margin for d in delta) for margin in MARGINS],
        "student_counts": [sum(-d > margin for d in delta) for margin in MARGINS],
        "mean_delta": math.fsum(delta) / len(delta) if delta else None,
        "log_ratio_nats": (teacher_sum - student_sum) / sum(teacher_tokens) if sum(teacher_tokens) else 0.0,
    }
