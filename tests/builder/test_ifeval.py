import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.forms import FORMS, has_form
from builder.ifeval import read_instructions, readings
from builder.ifeval_checks import CHECKS, count_sentences
from builder.languages import LANGUAGES, language_share
from builder.outcome import Outcome
from builder.verifiers import LONGEST_TEXT, verify_answer

# One row for each instruction: name, arguments, a text that follows it, a text that does not.
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "NASA flew.",
        "NASA and ESA",
    ),
    ("change_case:english_capital", {}, "THE CAT IS ON THE MAT.", "THE CAT is ON THE MAT."),
    ("change_case:english_lowercase", {}, "the cat is on the mat.", "der hund ist nicht auf dem sofa."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say HI. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] of [b]", "[a of b]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\np. p. s. more", "Bye.\nP.S. more"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', '{"a": 1} as asked'),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nSection two\nb",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n - b\n**c**", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >>\n<A title>"),
    ("keywords:existence", {"keywords": ["sun", "C++"]}, "SUN and c++", "the sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "sunny", "The Sun."),
    ("keywords:frequency", {"keyword": "a.c", "frequency": 1, "relation": "at least"}, "A.C", "abc"),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "less than"}, "Bed", "Eve"),
    ("language:response_language", {"language": "th"}, "ปริศนา", "a riddle for you"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "once"},
        'Here.\n\n"Once, there was',
        "Once.\n\nTwice.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***\n", "a\n***\n***\nb"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        "Dr. Smith paid 3.50 dollars.",
        "He came. He saw.",
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "it is so", "so be"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, 'So it is. any questions?"', "Any questions? No."),
    ("startend:quotation", {}, ' "all of it" ', '"'),
]


def gold(*instructions: tuple[str, dict[str, Any]]) -> str:
    return json.dumps([{"id": name, "kwargs": arguments} for name, arguments in instructions])


def test_every_instruction_of_the_benchmark_has_a_case() -> None:
    assert len(CHECKS) == 25
    assert [name for name, *_ in CASES] == sorted(CHECKS)


@pytest.mark.parametrize(("name", "arguments", "follows", "breaks"), CASES)
def test_each_instruction_tells_following_from_not(
    name: str, arguments: dict[str, Any], follows: str, breaks: str
) -> None:
    listed = gold((name, arguments))
    assert verify_answer(listed, "ifeval", follows).verdict == "correct"
    assert verify_answer(listed, "ifeval", breaks).votes[0] == f"{name}:wrong"
    assert verify_answer(listed, "ifeval", breaks).verdict == "wrong"
    assert verify_answer(listed, "ifeval", " ").verdict == "wrong"


@given(st.text(alphabet="*#<>[]{}\"'`-.!?, \nAaPSs1é中", max_size=80))
def test_no_reply_breaks_a_check(text: str) -> None:
    listed = gold(*((name, arguments) for name, arguments, *_ in CASES))
    assert verify_answer(listed, "ifeval", text).verdict in ("correct", "wrong")


def test_all_instructions_must_be_followed_and_each_has_its_vote() -> None:
    listed = gold(("en:punctuation:no_comma", {}), ("startend:quotation", {}))
    assert verify_answer(listed, "ifeval", "no comma here") == Outcome(
        "wrong", None, ("punctuation:no_comma:correct", "startend:quotation:wrong", "loose:wrong")
    )


def test_the_verdict_is_strict_and_the_loose_reading_is_a_vote() -> None:
    listed = gold(("startend:quotation", {}))
    outcome = verify_answer(listed, "ifeval", 'Sure:\n**"so it is"**')
    assert (outcome.verdict, outcome.votes[-1]) == ("wrong", "loose:correct")
    assert readings("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_thinking_is_no_part_of_what_is_checked() -> None:
    assert verify_answer(gold(("punctuation:no_comma", {})), "ifeval", "a, b</think>c").verdict == "correct"


@pytest.mark.parametrize(
    "listed",
    [
        "no json",
        "[" * 5000,
        "[]",
        "{}",
        "[1]",
        '[{"id": 5}]',
        gold(("punctuation:no_semicolon", {})),
        gold(("length_constraints:number_words", {"num_words": 5})),
        gold(("length_constraints:number_words", {"num_words": "5", "relation": "at least"})),
        gold(("length_constraints:number_words", {"num_words": True, "relation": "at least"})),
        gold(("length_constraints:number_words", {"num_words": 5, "relation": "about"})),
        gold(("keywords:existence", {"keywords": [""]})),
        gold(("language:response_language", {"language": "tlh"})),
        gold(("punctuation:no_comma", {}), ("no:such", {})),
    ],
)
def test_a_gold_that_does_not_parse_is_unscorable(listed: str) -> None:
    assert verify_answer(listed, "ifeval", "text").verdict == "unscorable"


def test_arguments_that_are_null_do_not_count() -> None:
    read = read_instructions('[{"id": "punctuation:no_comma", "kwargs": {"num_words": null}}]')
    assert read is not None
    assert read[0].arguments == {}


def test_a_pattern_in_a_gold_is_plain_text() -> None:
    listed = gold(("keywords:forbidden_words", {"forbidden_words": ["(a+)+$", "x("]}))
    assert verify_answer(listed, "ifeval", "a" * 50_000 + "!").verdict == "correct"


def test_sentences_end_at_marks_and_not_at_abbreviations() -> None:
    assert count_sentences("") == 0
    assert count_sentences("Dr. No met Mr. Bond at 5 p.m. in Rome. Really? Yes!") == 3
    assert count_sentences("all small. and so on. it ends") == 3
    assert count_sentences("No mark\nat all") == 1


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The answer is that we do not know what the student will do."),
        ("de", "Die Antwort ist nicht bekannt, und wir wissen nicht, was sich ändern wird."),
        ("fr", "La réponse est dans le livre que nous avons avec nous pour les autres."),
        ("es", "La respuesta no es la que los autores dan en el libro, pero se puede ver."),
        ("ru", "Это не так просто, как мы думали, но у нас есть ответ на этот вопрос."),
        ("uk", "Це не так просто, як ми думали, але у нас є відповідь на це питання."),
        ("fa", "این پاسخ را از کتاب به دست می آورد و برای شما است که آن را بخوانید"),
        ("hi", "यह उत्तर है और हम इसको किताब में पढ़ते हैं"),
        ("zh", "所以答案是四十二。"),
        ("ja", "答えは四十二です。"),
        ("ko", "답은 사십이입니다."),
        ("el", "Η απάντηση είναι σωστή."),
    ],
)
def test_a_text_is_in_its_language_and_in_no_other(language: str, text: str) -> None:
    shares = {code: language_share(text, code) or 0.0 for code in LANGUAGES}
    assert shares[language] >= 0.7
    assert max(share for code, share in shares.items() if code != language) < 0.7


def test_the_share_of_a_language_is_worked_by_hand() -> None:
    assert language_share("答案 is", "zh") == 0.5  # two of four letters
    assert language_share("the und", "de") == 0.5  # one of two known words
    assert language_share("ab the 答案 the", "en") == pytest.approx(8 / 10)
    assert language_share("the result $\\le$ \\le x", "en") == 1.0


def test_a_text_that_tells_no_language_has_no_share() -> None:
    assert language_share("", "en") is None
    assert language_share("42 + $x$", "en") is None
    assert language_share("Kxyz", "en") is None


@pytest.mark.parametrize(
    ("wanted", "answer", "reasoning", "verdict"),
    [
        ("de", "Das ist nicht die Antwort.", None, "correct"),
        ("de-AT", "Das ist nicht die Antwort.", None, "correct"),
        ("de", "This is not the answer that we have.", None, "wrong"),
        ("de", "Das ist sie.", "First we see what this is and what it is for the student to do.", "wrong"),
        ("de", "42", None, "unscorable"),
        ("de", "", None, "wrong"),
        ("tlh", "nuqneH", None, "unscorable"),
        ("de", "das ist " * LONGEST_TEXT, None, "unscorable"),
    ],
)
def test_the_language_of_reasoning_and_answer_is_judged(
    wanted: str, answer: str, reasoning: str | None, verdict: str
) -> None:
    assert verify_answer(wanted, "language", answer, reasoning=reasoning).verdict == verdict


@pytest.mark.parametrize(
    ("form", "answer", "reasoning", "verdict"),
    [
        ("think", "5", "so", "correct"),
        ("think", "<think>so</think>5", None, "correct"),
        ("think", "<think>so", None, "wrong"),
        ("think", "5", None, "wrong"),
        ("think", "5</think>", "so", "wrong"),
        ("no_think", "5", None, "correct"),
        ("no_think", "5", "so", "wrong"),
        ("answer_tag", "It is <answer>5</answer>\n", None, "correct"),
        ("answer_tag", "<answer>5</answer> I think", None, "wrong"),
        ("answer_tag", "<answer>4</answer><answer>5</answer>", None, "wrong"),
        ("answer_tag", "<answer>5", None, "wrong"),
        ("boxed", r"\boxed{5}", None, "correct"),
        ("boxed", r"\boxed{5", None, "wrong"),
        ("json", '```json\n{"a": [1]}\n```', None, "correct"),
        ("json", "[" * 100_000, None, "wrong"),
        ("code", "```python\nx\n```", None, "correct"),
        ("code", "```python\nx", None, "wrong"),
        ("think, boxed", r"<think>so</think>\boxed{5}", None, "correct"),
        ("think, boxed", r"\boxed{5}", None, "wrong"),
        ("sonnet", "5", None, "unscorable"),
        ("", "5", None, "unscorable"),
        ("boxed", "", None, "wrong"),
    ],
)
def test_forms_are_kept_or_not(form: str, answer: str, reasoning: str | None, verdict: str) -> None:
    assert verify_answer(form, "format", answer, reasoning=reasoning).verdict == verdict


def test_every_form_can_be_asked() -> None:
    assert not any(has_form(name, None, None) for name in FORMS)
