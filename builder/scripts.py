"""What kind of character each code point is: white space, mark, part of a word, and of which script."""

import re
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

SPACE, MARK, DIGIT, LATIN, CYRILLIC, ARABIC, HAN, KANA, HANGUL, OTHER = range(10)
"""Kinds. DIGIT: what words hold besides letters of the scripts named here: digits, underscore, Greek, symbols of
mathematics. OTHER: letters of scripts such as Hebrew, Devanagari, Thai. Greek is DIGIT because formulas are full of it.
"""
SCRIPTS: Final = {
    "latin": LATIN,
    "cyrillic": CYRILLIC,
    "arabic": ARABIC,
    "han": HAN,
    "kana": KANA,
    "hangul": HANGUL,
    "other": OTHER,
}
_RANGES: Final = (
    (OTHER, 0x0530, 0x1CFF),  # Armenian … Vedic; the scripts below overwrite their share
    (OTHER, 0xA800, 0xABFF),
    (LATIN, 0x0041, 0x005A),
    (LATIN, 0x0061, 0x007A),
    (LATIN, 0x00C0, 0x024F),
    (LATIN, 0x1E00, 0x1EFF),
    (LATIN, 0xFF21, 0xFF3A),
    (LATIN, 0xFF41, 0xFF5A),
    (CYRILLIC, 0x0400, 0x052F),
    (CYRILLIC, 0x1C80, 0x1C8F),
    (CYRILLIC, 0xA640, 0xA69F),
    (ARABIC, 0x0600, 0x06FF),
    (ARABIC, 0x0750, 0x077F),
    (ARABIC, 0x08A0, 0x08FF),
    (ARABIC, 0xFB50, 0xFDFF),
    (ARABIC, 0xFE70, 0xFEFF),
    (HANGUL, 0x1100, 0x11FF),
    (HANGUL, 0x3130, 0x318F),
    (HANGUL, 0xA960, 0xA97F),
    (HANGUL, 0xAC00, 0xD7FF),
    (KANA, 0x3040, 0x30FF),
    (KANA, 0x31F0, 0x31FF),
    (KANA, 0xFF66, 0xFF9F),
    (HAN, 0x3400, 0x4DBF),
    (HAN, 0x4E00, 0x9FFF),
    (HAN, 0xF900, 0xFAFF),
    (HAN, 0x20000, 0x323AF),
)
_CJK_MARKS: Final = (0x30FB, 0x30A0)  # middle dot and double hyphen stand inside the Katakana block


@cache
def kinds() -> npt.NDArray[np.uint8]:
    """Kind of every code point, shape (0x110000,). Built once, in a tenth of a second."""
    every = "".join(map(chr, range(0x110000)))
    table = np.full(0x110000, MARK, dtype=np.uint8)
    for pattern, kind in ((r"\w+", DIGIT), (r"\s+", SPACE)):
        for match in re.finditer(pattern, every):
            table[match.start() : match.end()] = kind
    letters = np.zeros(0x110000, dtype=bool)
    for match in re.finditer(r"[^\W\d_]+", every):
        letters[match.start() : match.end()] = True
    for kind, first, last in _RANGES:
        span = slice(first, last + 1)
        table[span] = np.where(letters[span], kind, table[span])
    table[list(_CJK_MARKS)] = MARK
    return table


@cache
def decimals() -> npt.NDArray[np.uint32]:
    """Code points of decimal digits of all scripts, ascending."""
    candidates = np.flatnonzero(kinds() == DIGIT).tolist()
    return np.array([code for code in candidates if chr(code).isdecimal()], dtype=np.uint32)


def is_cjk(character: str) -> bool:
    """Whether one character belongs to a script that writes no spaces between words."""
    return bool(HAN <= kinds()[ord(character)] <= HANGUL)
