"""The 25 instructions of IFEval (Zhou et al., arXiv:2311.07911) as checks: text and arguments in, followed or not out.

They follow the definitions of google-research/instruction_following_eval, also where these are odd, so that scores
compare: a horizontal rule `---` is a bullet, `**x**` two highlights, words are runs of letters and digits. Four differ.
Keywords are plain text, not patterns; sentences and capital words are split by rules here, not by nltk; the language
is decided by `builder.languages`, not by langdetect. Every check is linear in the text.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from builder.forms import is_json
from builder.languages import LANGUAGES, language_share

Check = Callable[..., bool]

MIN_LANGUAGE_SHARE: Final = 0.5
"""Share of a text that its language must have: instructions ask which language it is, not how pure it is."""

_ANSWERS: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SENTENCE_END: Final = re.compile(r"[.!?]++[\"'”’)\]*_]*+(?=\s)")
_NO_END: Final = re.compile(
    r"(?:^|[\s(])(?:[a-z]|[ap]\.m|e\.g|i\.e|mr|mrs|ms|dr|prof|st|vs|etc|jr|sr|inc|no|p\.\s?p|p\.s)\.$", re.IGNORECASE
)
_TOKEN: Final = re.compile(r"[^\W_]+(?:[-.'’/&][^\W_]+)*")
_POSTSCRIPTS: Final = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}


def _holds(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def _is_in(text: str, language: str) -> bool:
    """A text that says nothing of its language passes, as in the original."""
    share = language_share(text, language)
    return share is None or share >= MIN_LANGUAGE_SHARE


def english_capital(text: str) -> bool:
    return text.isupper() and _is_in(text, "en")


def english_lowercase(text: str) -> bool:
    return text.islower() and _is_in(text, "en")


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in _TOKEN.findall(text)), capital_relation, capital_frequency)


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    given = [part for part in parts if part]
    return len(given) == 2 and given[0] != given[1]


def number_placeholders(text: str, num_placeholders: int) -> bool:
    count = 0
    for line in text.split("\n"):
        at = line.find("[")
        while at >= 0 and (end := line.find("]", at)) >= 0:
            count += 1
            at = line.find("[", end)
    return count >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker)
    return bool(pattern.search(text.lower())) if pattern else marker.lower() in text.lower()


def constrained_response(text: str) -> bool:
    return any(answer in text for answer in _ANSWERS)


def json_format(text: str) -> bool:
    return is_json(text)


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d", text)) >= num_sections


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in text.split("\n")]
    return sum(line[:1] == "-" or (line[:1] == "*" and line[1:2] != "*") for line in lines) == num_bullets


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    single = [found for found in re.findall(r"\*[^\n*]*\*", text) if found.strip("*").strip()]
    double = [found for found in re.findall(r"\*\*[^\n*]*\*\*", text) if found[2:-2].strip()]
    return len(single) + len(double) >= num_highlights


def title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end > start + 2 and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def existence(text: str, keywords: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in keywords)


def forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(text.lower().count(keyword.strip().lower()), relation, frequency)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    return _is_in(text, language)


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = text.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if count != num_paragraphs or not 1 <= nth_paragraph <= count:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    return bool(words) and re.split(r"[.,?!'\"]", words[0].lstrip("'\""))[0].lower() == first_word.lower()


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


def number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def no_comma(text: str) -> bool:
    return "," not in text


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def count_sentences(text: str) -> int:
    """Sentences: a mark and white space end one unless an abbreviation or a small letter says that it goes on."""
    text = text.strip()
    has_capitals = not text.islower()
    count = 0
    for match in _SENTENCE_END.finditer(text):
        follows = text[match.end() : match.end() + 8].lstrip()[:1]
        is_dot = match.group()[0] == "."
        if is_dot and (
            (has_capitals and follows.islower()) or _NO_END.search(text, max(0, match.start() - 8), match.start() + 1)
        ):
            continue
        count += 1
    return count + bool(text)


CHECKS: Final[dict[str, tuple[Check, dict[str, type]]]] = {
    "change_case:capital_word_frequency": (
        capital_word_frequency,
        {"capital_frequency": int, "capital_relation": str},
    ),
    "change_case:english_capital": (english_capital, {}),
    "change_case:english_lowercase": (english_lowercase, {}),
    "combination:repeat_prompt": (repeat_prompt, {"prompt_to_repeat": str}),
    "combination:two_responses": (two_responses, {}),
    "detectable_content:number_placeholders": (number_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": (postscript, {"postscript_marker": str}),
    "detectable_format:constrained_response": (constrained_response, {}),
    "detectable_format:json_format": (json_format, {}),
    "detectable_format:multiple_sections": (multiple_sections, {"section_spliter": str, "num_sections": int}),
    "detectable_format:number_bullet_lists": (number_bullet_lists, {"num_bullets": int}),
    "detectable_format:number_highlighted_sections": (number_highlighted_sections, {"num_highlights": int}),
    "detectable_format:title": (title, {}),
    "keywords:existence": (existence, {"keywords": list}),
    "keywords:forbidden_words": (forbidden_words, {"forbidden_words": list}),
    "keywords:frequency": (keyword_frequency, {"keyword": str, "frequency": int, "relation": str}),
    "keywords:letter_frequency": (letter_frequency, {"letter": str, "let_frequency": int, "let_relation": str}),
    "language:response_language": (response_language, {"language": str}),
    "length_constraints:nth_paragraph_first_word": (
        nth_paragraph_first_word,
        {"num_paragraphs": int, "nth_paragraph": int, "first_word": str},
    ),
    "length_constraints:number_paragraphs": (number_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_sentences": (number_sentences, {"num_sentences": int, "relation": str}),
    "length_constraints:number_words": (number_words, {"num_words": int, "relation": str}),
    "punctuation:no_comma": (no_comma, {}),
    "startend:end_checker": (end_checker, {"end_phrase": str}),
    "startend:quotation": (quotation, {}),
}
"""Each instruction's check and the type of its arguments."""

_RELATIONS: Final = ("less than", "at least")


def arguments_fit(name: str, arguments: dict[str, Any]) -> bool:
    """Whether the arguments of an instruction are those that its check takes, with values it can use."""
    wanted = CHECKS[name][1]
    return set(arguments) == set(wanted) and all(_fits(key, value, wanted[key]) for key, value in arguments.items())


def _fits(key: str, value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    if isinstance(value, int):
        return value >= 0
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) and item.strip() for item in value)
    if key.endswith("relation"):
        return value in _RELATIONS
    return value in LANGUAGES if key == "language" else bool(str(value).strip())
