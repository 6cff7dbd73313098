"""One answer in the many ways in which people and models write it, and answers that only look like it."""

import pytest

from builder.answers import final_part
from builder.verifiers import verify_answer


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("0.5", "The answer is ½."),
        ("2.5", "The answer is 2½ cups"),
        ("-2.5", "−2½"),
        ("0.25", "1⁄4"),
        ("1000", "10³"),
        ("0.001", "10⁻³"),
        ("3e8", "3×10⁸"),
        ("3e8", "3x10^8"),
        ("0.1", ".1"),
        ("0.1", "#### .1"),
        ("10", "10€"),
        ("10", "The answer is 10 m."),
        ("9.8", "9.8 m/s^2"),
        ("25", "25 °C"),
        ("12", "12 = x"),
        ("12", "It is 12, not 13."),
        ("13", "It is not 12 but 13."),
        ("5", r"The answer is 5. \boxed{}"),
        ("18", "The answer is 18 because there are 9 eggs at 2 dollars."),
        ("18", r"\boxed{\text{18 eggs}}"),
        ("18", "`18`"),
        ("18000", "18 000"),
    ],
)
def test_a_number_is_right_however_it_is_written(gold: str, answer: str) -> None:
    assert verify_answer(gold, "number", answer).verdict == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("23", "2³"),
        ("-2.5", "2½"),
        ("12", "The answer is not 12."),
        ("10", "10 x"),
        ("5", r"\boxed{}"),
        ("5", "<think>5"),
        ("3e8", "3x10^7"),
        ("23/4", "2 3/4"),
        ("2.75", "23/4"),
    ],
)
def test_what_only_looks_like_the_number_is_wrong(gold: str, answer: str) -> None:
    assert verify_answer(gold, "number", answer).verdict == "wrong"


def test_a_bound_is_not_its_number() -> None:
    assert verify_answer("18", "number", r"\boxed{\le 18}").verdict == "unscorable"


def test_units_of_gold_and_answer_that_differ_are_never_correct() -> None:
    assert verify_answer("5 cm", "number", "5 m").verdict != "correct"


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\frac{1}{3}", r"0.\overline{3}", "correct"),
        (r"0.\overline{142857}", "1/7", "correct"),
        (r"\text{June 20}", r"\boxed{\text{June 20}}", "correct"),
        (r"\text{1:03 PM}", r"\boxed{\text{1:03 PM}}", "correct"),
        (r"\frac{1}{6}", r"0.1\bar{6}", "correct"),
        ("-1/3", r"-0.\overline{3}", "correct"),
        ("1/3", r"0.\overline{34}", "wrong"),
        ("x^{10}", "x¹⁰", "correct"),
        ("a_1", "a₁", "correct"),
        (r"2\pi r", "The answer is 2πr", "correct"),
        (r"\infty", "∞", "correct"),
        ("1,2", "x=1 or x=2", "correct"),
        ("2", "1 and 2", "wrong"),
        ("(0,1)", "0<x<1", "unscorable"),  # equal, but math-verify says not
        ("(0,1)", "0<x<2", "wrong"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{bmatrix}1&2\end{bmatrix}", "correct"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", "wrong"),
    ],
)
def test_formulas_are_compared_by_what_they_mean(gold: str, answer: str, verdict: str) -> None:
    assert verify_answer(gold, "latex", answer).verdict == verdict


def test_a_determinant_is_not_its_matrix() -> None:
    matrix = r"\begin{%s}1&2\\3&4\end{%s}"
    assert verify_answer(matrix % (("pmatrix",) * 2), "latex", matrix % (("vmatrix",) * 2)).verdict != "correct"


@pytest.mark.parametrize(
    "answer",
    [
        "[B]",
        "b",
        "(b)",
        r"\boxed{b}",
        r"\boxed{\text{(b)}}",
        "the answer is (b) because it is",
        "**Answer:** B",
        "Answer: `B`",
        '"B"',
        "$B$",
        r"The answer is \(\text{B}\)",
        "#### B",
        "B is correct.",
        "I would choose B.",
        "B\n\nBecause a cat is an animal.",
        "B, because A is wrong",
        "I, for one, would choose B.",
        "Answer: B, A is not in France",
        "A. Paris is tempting. The answer is B.",
        "The answer is A. Wait, B is correct.",
        "The answer choices are: A C D. I would choose B.",
    ],
)
def test_an_option_is_read_in_every_style(answer: str) -> None:
    assert verify_answer("B", "choice", answer).verdict == "correct"


@pytest.mark.parametrize(
    "answer",
    [r"\boxed{A, B}", r"\boxed{A or B}", "A and B", "The answer is A or B.", "The answer is (A) or (B).", "A/B"],
)
def test_two_options_are_no_answer_whichever_is_the_gold(answer: str) -> None:
    assert [verify_answer(gold, "choice", answer).verdict for gold in "AB"] == ["unscorable"] * 2


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("你好，世界！", "你好，世界！"),
        ("−5", "-5"),
        ("A–B", "A–B"),
        ("Paris", r"\boxed{\text{Paris}}"),
        ("Carol", "#### Carol"),
        ("Dr. Who", "The answer is Dr. Who."),
        ("Paris", "The answer is Paris. It is in France."),
    ],
)
def test_a_text_equals_itself_in_any_wrapping(gold: str, answer: str) -> None:
    assert verify_answer(gold, "exact_text", answer).verdict == "correct"


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("[12, 1]", r"\boxed{\{\frac{1}{2}, 1\}}", "wrong"),
        ("[0.5, 1]", r"\boxed{\{\frac{1}{2}, 1\}}", "correct"),
        ("[12]", r"\boxed{1^{2}}", "wrong"),
        ("[1,2,3]", "#### 3,2,1", "correct"),
        ("1, 2, 3", "The answer is 1, 2, and 3.", "correct"),
        ('["rock and roll", "jazz"]', "jazz, rock and roll", "correct"),
        ("a, b", r"\boxed{\text{a}, \text{b}}", "correct"),
        ("甲；乙", "乙；甲", "correct"),
    ],
)
def test_elements_keep_their_fractions_and_powers(gold: str, answer: str, verdict: str) -> None:
    assert verify_answer(gold, "set", answer).verdict == verdict


def test_thinking_that_never_ends_holds_no_answer() -> None:
    assert final_part("<think> so it is 5") == ""
    assert verify_answer("B", "choice", "<think> The answer is B").verdict == "wrong"


def test_a_name_of_python_is_no_json_and_an_underscore_no_other_language() -> None:
    assert verify_answer("json", "format", "NaN").verdict == "wrong"
    assert verify_answer("de_DE", "language", "Das ist die Antwort auf die Frage.").verdict == "correct"


@pytest.mark.parametrize(
    "text",
    ["½" * 200_000, "²" * 200_000, r".\overline{3}" * 20_000, "not 1 " * 20_000, "(A) or " * 20_000, "0<x<" * 300],
)
@pytest.mark.parametrize("gold_type", ["latex", "choice", "exact_text", "set"])
def test_a_style_without_end_is_never_correct(text: str, gold_type: str) -> None:
    gold = {"latex": "1/2", "choice": "B", "exact_text": "B", "set": "1, 2"}[gold_type]
    assert verify_answer(gold, gold_type, text).verdict in ("wrong", "unscorable")
