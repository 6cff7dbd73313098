"""The rules of the filter benchmark in plain Python, as one would write them for `datasets.filter`: no code of ours.

Standard library alone, so that datatrove's environment can run it as well. Definitions are those of `docs/rules.md`;
the benchmark checks that every arm decides the same about every reply.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache

PARAMS = {
    "min_response_chars": 100,
    "max_paragraph_chars": 2000,
    "max_sentence_repeats": 9,
    "max_paragraph_repeats": 2,
    "max_ngram_repeats": 15,
    "min_distinct_4gram_share": 0.15,
    "max_tail_loop_chars": 320,
    "max_foreign_share": 0.002,
    "max_latin_share": 0.3,
}
PROSE, FORMULA, CODE = range(3)
LONGEST_FORMULA, LONGEST_BLOCK = 200, 8192
CJK = (
    "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)

_THINK_TAG = re.compile(r"</?think>", re.IGNORECASE)
_CHANNEL_MARKER = re.compile(r"<\|(?:start|end|message|channel|constrain|return|call)\|>")
_FENCE = re.compile(r"^[ \t]*(`{3,}(?=[^`\n]*$)|~{3,})(.*)$", re.MULTILINE)
_CLOSED = re.compile(r"\n[ \t]*(?:`{3,}|~{3,})\s*\Z")
_TABLE = re.compile(r"\\begin\{(array|tabular|[a-zA-Z]?matrix)\}.{0,4000}?\\end\{\1\}", re.DOTALL)
_MATH = re.compile(
    r"(?<!\\)\$\$.{1,4000}?\$\$|(?<!\\)\$(?!\s)[^$\n]{1,1000}?(?<![\s\\])\$(?!\d)"
    r"|\\\[(?:(?!\\\[).){1,4000}?\\\]|\\\((?:(?!\\\().){1,1000}?\\\)",
    re.DOTALL,
)
_END = re.compile(r"\n+|(?<![.!?])[.!?]+[\"'”’)\]*_]*(?=[ \t\r\f\v\u00a0\u3000])|(?<![。！？])[。！？]+[”’」』）]*")
_ABBREVIATED = re.compile(
    r"(?:(?:^|[\s(\[\"'“‘])"
    r"(?:e\.g|i\.e|cf|vs|etc|approx|resp|al|Mr|Mrs|Ms|Dr|Prof|St|Fig|Eq|Eqs|Sec|Thm|Nos|Vol|pp|p)"
    r"|(?:^|\n)[ \t]{0,8}\d{1,3})\.$"
)
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n\s*")
_RUNS = re.compile(rb"\x00+|\x01+|\x02+")
_WORD = re.compile(rf"[{CJK}]|(?:(?![{CJK}])\w)+|[^\w\s]")
_LATIN = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏḀ-ỿＡ-Ｚａ-ｚ]+")
_LETTER = re.compile(r"[^\W\d_]")
_SCRIPTS = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0xA640, 0xA69F)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF)),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "other": ((0x530, 0x1CFF), (0xA800, 0xABFF)),
}


def numbers(reasoning: str | None, answer: str | None) -> dict[str, int | float]:
    """What the rules compare with their thresholds."""
    thinking, final = reasoning or "", answer or ""
    text = "\n\n".join(part for part in (thinking, final) if part)
    blocks = list(code_blocks(text))
    marks = marked(text, blocks)
    found = list(words(text, marks))
    fours, twenties = Counter(ngrams(found, 4)), Counter(ngrams(found, 20))
    paragraphs = list(cut(text, ((match.start(), match.end()) for match in _BLANK_LINES.finditer(text))))
    sentences = cut(text, ((end, end) for end in sentence_ends(text, blocks)))
    return {
        "reasoning_chars": len(thinking.strip()),
        "answer_chars": len(final.strip()),
        "think_tags": len(_THINK_TAG.findall(thinking)) + len(_THINK_TAG.findall(final)),
        "channel_markers": len(_CHANNEL_MARKER.findall(thinking)) + len(_CHANNEL_MARKER.findall(final)),
        "longest_paragraph_chars": max((marks.count(PROSE, start, end) for start, end in paragraphs), default=0),
        "sentence_repeats": most_repeated(text, marks, sentences, 20),
        "paragraph_repeats": most_repeated(text, marks, paragraphs, 80),
        "ngram_repeats": max(twenties.values(), default=0),
        "distinct_4gram_share": len(fours) / fours.total() if fours else 1.0,
        "tail_loop_chars": max(tail_loop(thinking), tail_loop(final)),
        **foreign_shares("".join(text[start:end] for kind, start, end in runs(marks) if kind == PROSE)),
    }


def broken(found: dict[str, int | float], finish_reason: str | None, params: dict[str, float]) -> list[str]:
    """Names of the rules that a reply with these numbers breaks."""
    breaks = {
        "reasoning_missing": found["reasoning_chars"] == 0,
        "answer_missing": found["answer_chars"] == 0,
        "response_truncated": finish_reason != "stop",
        "think_tags_broken": found["think_tags"] > 0,
        "channel_markers_left": found["channel_markers"] > 0,
        "too_short": found["reasoning_chars"] + found["answer_chars"] < params["min_response_chars"],
        "paragraph_too_long": found["longest_paragraph_chars"] > params["max_paragraph_chars"],
        "sentence_repeated": found["sentence_repeats"] > params["max_sentence_repeats"],
        "paragraph_repeated": found["paragraph_repeats"] > params["max_paragraph_repeats"],
        "ngram_repeated": found["ngram_repeats"] > params["max_ngram_repeats"],
        "low_ngram_diversity": found["distinct_4gram_share"] < params["min_distinct_4gram_share"],
        "tail_loop": found["tail_loop_chars"] > params["max_tail_loop_chars"],
        "mixed_language": found["foreign_share"] > params["max_foreign_share"]
        or found["latin_share"] > params["max_latin_share"],
    }
    return [rule for rule, is_broken in breaks.items() if is_broken]


def code_blocks(text: str) -> Iterator[tuple[int, int]]:
    """Fenced blocks, the last one closed or not."""
    start, fence = 0, ""
    for match in _FENCE.finditer(text):
        if not fence:
            start, fence = match.start(), match.group(1)
        elif match.group(1).startswith(fence) and not match.group(2).strip():
            yield start, min(match.end() + 1, len(text))
            fence = ""
    if fence:
        yield start, len(text)


def formulas(text: str, blocks: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """LaTeX outside code."""
    place = 0
    for start, end in [*blocks, (len(text), len(text))]:
        for match in _MATH.finditer(text, place, start):
            yield match.span()
        place = end


def marked(text: str, blocks: list[tuple[int, int]]) -> bytearray:
    """For every character whether it stands in prose, a formula or code; long formulas and open code are prose."""
    marks = bytearray(len(text))
    spans = [(*match.span(), FORMULA) for match in _TABLE.finditer(text)]
    for start, end in formulas(text, blocks):
        spans.append((start, end, FORMULA if end - start <= LONGEST_FORMULA else PROSE))
    for start, end in blocks:
        if end < len(text) or _CLOSED.search(text, start, end):
            spans.append((start, end, CODE))
    for start, end, kind in spans:
        marks[start:end] = bytes([kind]) * (end - start)
    return marks


def runs(marks: bytearray) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of every run of one kind."""
    for match in _RUNS.finditer(marks):
        yield match[0][0], match.start(), match.end()


def words(text: str, marks: bytearray) -> Iterator[str]:
    """Words; a formula is one."""
    for kind, start, end in runs(marks):
        if kind == PROSE:
            yield from _WORD.findall(text, start, end)
        elif kind == FORMULA:
            yield text[start:end]


def ngrams(found: list[str], size: int) -> Iterable[tuple[str, ...]]:
    """Every run of `size` words."""
    return zip(*(found[start:] for start in range(size)), strict=False)


def sentence_ends(text: str, blocks: list[tuple[int, int]]) -> Iterator[int]:
    """Where sentences end: not in formulas, in code at line breaks only, not behind abbreviations and numbering."""
    quiet = sorted([*((*span, False) for span in formulas(text, blocks)), *((*span, True) for span in blocks)])
    following = 0
    for match in _END.finditer(text):
        start, end = match.span()
        while following < len(quiet) and quiet[following][1] < end:
            following += 1
        inside = following < len(quiet) and quiet[following][0] < start
        in_formula = inside and start < quiet[following][1]
        is_line_break = text[start] == "\n"
        if in_formula and not (is_line_break and quiet[following][2]):
            continue
        if text[start] == "." and _ABBREVIATED.search(text, max(0, start - 12), start + 1):
            continue
        yield end


def cut(text: str, breaks: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What lies between the breaks, but for white space."""
    place = 0
    for start, end in [*breaks, (len(text), len(text))]:
        if text[place:start].strip():
            yield place, start
            place = end
        elif start != end:
            place = end


def most_repeated(text: str, marks: bytearray, spans: Iterable[tuple[int, int]], least: int) -> int:
    """Occurrences of the most repeated span with so many characters of prose."""
    seen = Counter(
        found
        for start, end in spans
        if len(found := " ".join(text[start:end].split())) - (end - start - marks.count(PROSE, start, end)) >= least
    )
    return max(seen.values(), default=0)


def tail_loop(text: str) -> int:
    """Characters at the end that one block covers, four times or more in a row."""
    text = text.rstrip()
    size, best = len(text), 0
    for period in range(1, min(LONGEST_BLOCK, size // 4) + 1):
        if (
            text.endswith(text[-3:], 0, size - period)
            and text[size - 4 * period : -period] == text[size - 3 * period :]
        ):
            covered = 4 * period
            while covered < size and text[-covered - 1] == text[-covered - 1 + period]:
                covered += 1
            best = max(best, covered)
    return best


def foreign_shares(prose: str) -> dict[str, float]:
    """Share of letters that are not of the script that most of the text is in; and of Latin ones if it is not Latin."""
    counts = Counter({"latin": sum(map(len, _LATIN.findall(prose)))})
    if not prose.isascii():
        counts.update(filter(None, map(script, _LETTER.findall(_LATIN.sub("", prose)))))
    latin, han, kana, hangul = (counts[name] for name in ("latin", "han", "kana", "hangul"))
    japanese, korean = kana + (han if kana * 10 >= han else 0), hangul + (han if hangul * 10 >= han else 0)
    most = max(counts["cyrillic"], counts["arabic"], counts["other"], han, japanese, korean)
    every = counts.total() or 1
    if latin >= most:
        return {"foreign_share": (every - latin) / every if counts.total() else 0.0, "latin_share": 0.0}
    return {"foreign_share": (every - latin - most) / every, "latin_share": latin / every}


@cache
def script(letter: str) -> str | None:
    """Script of a letter; None for those that formulas are full of, such as Greek."""
    code = ord(letter)
    for name, ranges in _SCRIPTS.items():
        if any(first <= code <= last for first, last in ranges):
            return name
    return None
