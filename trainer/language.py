"""How much of a reply is in the language that was asked for: the share of its letters that the language is written in.

The definition of the builder's features and of its rule `mixed_language`: score = 1 - foreign share - share of Latin
letters where these are foreign. Tests hold the two equal. Formulas and code do not count, nor does Greek, which
formulas are full of. Languages of one script are not told apart."""

import re

SPANS = {  # the last: Armenian to Vedic and the block of Javanese, Cham, Meetei, less what has a name
    "latin": "A-Za-zÀ-ɏḀ-ỿＡ-Ｚａ-ｚ",
    "cyrillic": "Ѐ-ԯ\u1c80-\u1c8fꙀ-\ua69f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "kana": "\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff",
    "other": "\u0530-\u05ff\u0700-\u074f\u0780-\u089f\u0900-\u10ff\u1200-\u1c7f\u1c90-\u1cff\ua800-\ua95f\ua980-\uabff",
}
LETTERS = {script: re.compile(rf"(?=[{span}])[^\W\d_]") for script, span in SPANS.items()}
CODES = {"latin": "en de fr es it pt nl pl tr vi id", "cyrillic": "ru uk bg be", "arabic": "ar fa ur"}
CODES |= {"han": "zh", "kana": "ja", "hangul": "ko"}
SCRIPTS = {code: script for script, codes in CODES.items() for code in codes.split()}
FENCE = re.compile(r"\n[ \t]*(`{3,}(?=[^`\n]*$)|~{3,})(.*)$", re.MULTILINE)
# Dollars as Pandoc reads them: no white space inside, no digit after, no backslash before: prices are no formulas.
FORMULA = re.compile(
    r"(?s)\$\$(?<!\\\$\$).{1,4000}?\$\$|\$(?<!\\\$)(?!\s)[^$\n]{1,1000}?(?<![\s\\])\$(?!\d)"
    r"|\\\[(?:(?!\\\[).){1,4000}?\\\]|\\\((?:(?!\\\().){1,1000}?\\\)"
)


def language_score(text: str, language: str | None) -> float | None:
    """Share of the letters of `text`, 0 to 1, that `language` (BCP 47: `en`, `pt-BR`) is written in; None without any.

    Where the language is unknown, that of the script that most letters are in. arXiv:2501.12948v2 equation 7 counts
    words of the chain of thought; letters serve languages that write no spaces, and need no model that guesses."""
    prose = "\n".join(_prose(text))
    count = {script: len(letters.findall(prose)) for script, letters in LETTERS.items()}
    if not (every := sum(count.values())):
        return None
    script = SCRIPTS.get((language or "").lower().partition("-")[0])
    for other in ("kana", "hangul"):  # Japanese and Korean write Han as well, but never nine tenths of it
        count[other] += count["han"] * (count[other] * 10 >= count["han"])
    most = max(number for name, number in count.items() if name != "latin")
    return (count[script] if script else max(count["latin"], most)) / every


def _prose(text: str) -> list[str]:
    """The text without formulas and fenced code, in pieces."""
    pieces, start = [], 0
    for begin, end in [*_code(text), (len(text), len(text))]:
        pieces += FORMULA.split(text[start:begin])
        start = end
    return pieces


def _code(text: str) -> list[tuple[int, int]]:
    """Fenced blocks, the last one closed or not: a fence is closed by one of its kind, as long, with nothing behind."""
    blocks, start, fence = [], 0, ""
    for match in FENCE.finditer("\n" + text):
        if not fence:
            start, fence = match.start(), match[1]
        elif match[1].startswith(fence) and not match[2].strip():
            blocks.append((start, min(match.end(), len(text))))
            fence = ""
    return [*blocks, (start, len(text))] if fence else blocks
