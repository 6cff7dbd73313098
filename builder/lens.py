"""A reply, sentence by sentence: who would have said it, teacher or student. Pure functions on text and lists."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from builder.divergence import MIN_TOKENS
from builder.errors import TableError
from builder.text import SEPARATOR, THINK_CLOSE, THINK_OPEN, canonical_text, completion_text

Whose = Literal["teacher", "student", "common", "short"]
Part = Literal["reasoning", "separator", "answer"]

MAX_CHARS: Final = 40_000
MAX_SENTENCES: Final = 800
"""A reply is shown up to these: with four replies a page stays far below 5 MB, whatever they hold."""


@dataclass(frozen=True)
class Sentence:
    """One scored sentence. Probabilities are exp(mean token logprob); None where the sentence has no tokens."""

    number: int
    whose: Whose
    p_teacher: float | None
    p_student: float | None
    teacher_tokens: int
    student_tokens: int

    @property
    def delta(self) -> float | None:
        """p_teacher − p_student."""
        if self.p_teacher is None or self.p_student is None:
            return None
        return self.p_teacher - self.p_student


@dataclass(frozen=True)
class Piece:
    """Text of one sentence within one part; a sentence that runs from the reasoning into the answer has several."""

    text: str
    part: Part
    sentence: Sentence


@dataclass(frozen=True)
class Lens:
    """A reply as pieces; all of them in a row are the canonical text, less `hidden_chars` at its end."""

    pieces: tuple[Piece, ...]
    sentences: tuple[Sentence, ...]
    hidden_chars: int

    def part(self, name: Part) -> list[Piece]:
        """Pieces of the reasoning, or of the answer."""
        return [piece for piece in self.pieces if piece.part == name]

    def chars(self, name: Part) -> int:
        """Characters shown of a part."""
        return sum(len(piece.text) for piece in self.part(name))

    def count(self, whose: Whose) -> int:
        """Sentences of one kind, those not shown included."""
        return sum(sentence.whose == whose for sentence in self.sentences)

    def shown(self) -> list[tuple[Sentence, str]]:
        """Sentences with their text, as far as they are shown."""
        texts: dict[int, str] = {}
        for piece in self.pieces:
            texts[piece.sentence.number] = texts.get(piece.sentence.number, "") + piece.text
        return [(sentence, texts[sentence.number]) for sentence in self.sentences if sentence.number in texts]


def lens(
    reasoning: str | None,
    answer: str | None,
    row: Mapping[str, Any],
    margin: float,
    *,
    max_chars: int = MAX_CHARS,
    max_sentences: int = MAX_SENTENCES,
) -> Lens:
    """The reply with a row of table `sentences`, at a margin in probability, shown up to these limits.

    Raises TableError when the row is not of this text: its sentences do not end where the text does.
    """
    text = canonical_text(reasoning, answer).encode()
    ends: Sequence[int] = row["byte_end"] or []
    if (ends[-1] if ends else 0) != len(text) or any(left >= right for left, right in pairwise([0, *ends])):
        raise TableError(
            f"Reply {row['response_id']} has {len(text)} bytes, but its sentences end at {list(ends[-3:])}. Colours "
            "would stand on the wrong words. Delete tables/sentences and tables/scores, then rerun builder score."
        )
    found = tuple(_sentences(row, margin))
    inner = len((reasoning or "").encode())
    outer = inner + (len(SEPARATOR) if reasoning and answer else 0)
    pieces: list[Piece] = []
    room = max_chars
    for sentence, (start, end) in zip(found[:max_sentences], pairwise([0, *ends]), strict=False):
        for part, cut in _parts(text, start, end, inner, outer, row["response_id"]):
            if cut[:room]:
                pieces.append(Piece(cut[:room], part, sentence))
            room -= len(cut[:room])
    whole = len(text.decode())
    return Lens(tuple(pieces), found, whole - sum(len(piece.text) for piece in pieces))


def whose(
    p_teacher: float | None, p_student: float | None, teacher_tokens: int, student_tokens: int, margin: float
) -> Whose:
    """As `divergence.divergence` counts: strictly above the margin, and short sentences apart."""
    if p_teacher is None or p_student is None or min(teacher_tokens, student_tokens) < MIN_TOKENS:
        return "short"
    if p_teacher - p_student > margin:
        return "teacher"
    return "student" if p_student - p_teacher > margin else "common"


def prefix_and_rest(reasoning: str | None, answer: str | None, prefix_chars: int) -> list[tuple[str, Part, str]]:
    """A mixed reply as (author, part, text): the first `prefix_chars` of the completion are the student's."""
    head = len(f"{THINK_OPEN}\n") if reasoning else 0
    tail = len(f"\n{THINK_CLOSE}\n\n") if reasoning else 0
    taken = max(0, min(prefix_chars, len(completion_text(reasoning, answer))) - head)
    inside, after = len(reasoning or ""), max(0, taken - len(reasoning or "") - tail)
    pieces: list[tuple[str, Part, str]] = [
        ("student", "reasoning", (reasoning or "")[: min(taken, inside)]),
        ("teacher", "reasoning", (reasoning or "")[min(taken, inside) :]),
        ("student", "answer", (answer or "")[:after]),
        ("teacher", "answer", (answer or "")[after:]),
    ]
    return [piece for piece in pieces if piece[2]]


def _sentences(row: Mapping[str, Any], margin: float) -> Iterator[Sentence]:
    columns = (row[name] for name in ("p_teacher", "p_student", "teacher_tokens", "student_tokens"))
    for index, (teacher, student, teacher_tokens, student_tokens) in enumerate(zip(*columns, strict=True)):
        p_teacher, p_student = _probability(teacher), _probability(student)
        kind = whose(p_teacher, p_student, teacher_tokens, student_tokens, margin)
        yield Sentence(index + 1, kind, p_teacher, p_student, teacher_tokens, student_tokens)


def _probability(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _parts(text: bytes, start: int, end: int, inner: int, outer: int, response_id: str) -> Iterator[tuple[Part, str]]:
    """What of [start, end) lies in the reasoning, in the blank line behind it, in the answer."""
    bounds: tuple[tuple[Part, int, int], ...] = (
        ("reasoning", 0, inner),
        ("separator", inner, outer),
        ("answer", outer, len(text)),
    )
    for part, low, high in bounds:
        if max(start, low) < min(end, high):
            try:
                yield part, text[max(start, low) : min(end, high)].decode()
            except UnicodeDecodeError as error:
                raise TableError(
                    f"A sentence of reply {response_id} ends within a character ({error.reason} at byte "
                    f"{max(start, low)}). Its row is of another text; delete tables/sentences and tables/scores, then "
                    "rerun builder score."
                ) from error
