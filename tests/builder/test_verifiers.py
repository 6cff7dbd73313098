import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.answers import extract_choice, extract_math, final_part, last_boxed
from builder.outcome import Open, Outcome
from builder.verifiers import (
    default_verifier,
    first_checks,
    math_verify_vote,
    settle,
    verifier_version,
    verify_answer,
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \boxed{b}}", r"a \boxed{b}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"{ stray \boxed{3}", "3"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{4", None),
        ("none", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So it is 7.\n#### 1,234", "1,234"),
        ("The answer is **42 apples**.\n\nI checked it in 3 ways.", "42"),
        ("She pays $5, gets 3 back, and has $2.", "$2"),
        (r"The probability is $\frac{3}{4}$.", r"\frac{3}{4}"),
        (r"Hence $ \frac{3}{4} $", r"\frac{3}{4}"),
        (r"\frac{3}{4}", r"\frac{3}{4}"),
        (r"We get \(x = 5\).", "x = 5"),
        ("10-3 = 7 apples", "7"),
        ("the product x2 is H2O", None),
        ("I cannot tell.", None),
    ],
)
def test_without_a_box_the_answer_is_marked_anchored_or_last(reply: str, answer: str | None) -> None:
    assert extract_math(reply) == answer


def test_only_the_part_after_thinking_and_inside_answer_tags_counts() -> None:
    assert final_part("1 </think> so 2 <answer> 3 </answer>") == "3"
    assert final_part("<answer>4") == "4"
    assert final_part("so 5 <answer></answer>") == "so 5"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("C", "C"),
        ("(c)".upper(), "C"),
        ("C) the third", "C"),
        ("The answer is (C).", "C"),
        ("Both A and B fail; the correct option is C because A is wrong", "C"),
        (r"\boxed{\text{C}}", "C"),
        ("**Answer: C**", "C"),
        ("A man walks", None),
        ("Mitochondria", None),
    ],
)
def test_choices_are_read_as_people_write_them(reply: str, letter: str | None) -> None:
    assert extract_choice(reply) == letter


@given(st.text(alphabet="\\{}[]()$^_+-*/=.,%!| 0129abxfrcsqtboei\n", max_size=60), st.text(max_size=60))
def test_no_text_breaks_the_checks_that_run_in_this_process(one: str, two: str) -> None:
    for verifier in ("math", "choice", "exact", "set", "ifeval", "language", "format"):
        for gold, answer in ((one, two), (two, one), ("5", one), (one, one)):
            assert isinstance(first_checks(gold, verifier, answer), Open | Outcome)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"1-1/\mathrm{e}", r"1+1/\mathrm{e}"),
        ("4", r"4\sqrt(2)"),
        ("4", r"4\sqrt{2}"),
        ("1/2^{99}", "1/2^{98}"),
        ("3*x-1*y+13=0", "3x+4y+14=0"),
    ],
)
def test_known_false_positives_of_math_verify_are_not_correct(gold: str, answer: str) -> None:
    assert verify_answer(gold, "latex", rf"\boxed{{{answer}}}").verdict != "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [(r"1-1/\mathrm{e}", r"1+1/\mathrm{e}"), ("4", r"4\sqrt{2}"), ("3*x-1*y+13=0", "3x+4y+14=0")],
)
def test_they_are_not_correct_whatever_math_verify_says(gold: str, answer: str) -> None:
    first = first_checks(gold, "math", rf"\boxed{{{answer}}}")
    assert isinstance(first, Open)
    assert settle(first, "correct").verdict == "unscorable"


def test_known_false_negative_of_math_verify_is_not_wrong() -> None:
    outcome = verify_answer(r"\sqrt{1/n}", "latex", r"\boxed{\frac{1}{\sqrt{n}}}")
    assert outcome.votes == ("typed:correct", "math-verify:wrong")
    assert outcome.verdict == "unscorable"


def test_a_false_positive_that_only_math_verify_reads_is_not_caught() -> None:
    assert verify_answer("f(x)=0", "latex", r"\boxed{\forall x>0, f(x)=0}").verdict == "correct"


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("1/2^{99}", r"\boxed{1/2^{98}}", "wrong"),
        (r"\frac{1}{\sqrt{2}}c", r"\boxed{\frac{c}{\sqrt{2}}}", "unscorable"),
        ("(1,2)", r"\boxed{\{1,2\}}", "unscorable"),
        ("(1,2)", r"\boxed{(2,1)}", "wrong"),
        ("[1,2]", r"\boxed{(1,2)}", "wrong"),
        ("3", r"\boxed{2} then \boxed{3}", "correct"),
        ("2", r"\boxed{2} then \boxed{3}", "wrong"),
        ("7", r"<think>\boxed{8}</think> It is 7.", "correct"),
        ("7", r"<think>\boxed{7}</think> It is 8.", "wrong"),
        ("B", r"\boxed{B}", "correct"),
        ("B", r"\boxed{C}", "wrong"),
        ("x=y=3", r"\boxed{3}", "correct"),
        ("1,-1,7,-7", r"\boxed{\pm 1, \pm 7}", "correct"),
        (r"\pm 1, \pm 7", r"\boxed{1, 7}", "wrong"),
    ],
)
def test_pitfalls_of_math_verify_have_the_right_verdict(gold: str, answer: str, verdict: str) -> None:
    assert verify_answer(gold, "latex", answer).verdict == verdict


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("(1,2)", r"\boxed{1<x<2}", "unscorable"),
        ("1<x<2", r"\boxed{(1,2)}", "correct"),
        (r"\frac{1}{3}", r"\boxed{0.33}", "wrong"),
        (r"\pi", r"\boxed{3.14159}", "wrong"),
        ("3,14", r"\boxed{3.14}", "wrong"),
        ("0.5", "50%", "correct"),
        ("50", "50%", "correct"),
    ],
)
def test_what_the_documents_list_as_not_caught_is_as_they_say(gold: str, answer: str, verdict: str) -> None:
    assert verify_answer(gold, "latex", answer).verdict == verdict


@pytest.mark.parametrize(
    ("typed", "vote", "verdict"),
    [
        ("correct", "correct", "correct"),
        ("wrong", "wrong", "wrong"),
        ("correct", "wrong", "unscorable"),
        ("wrong", "correct", "unscorable"),
        ("unscorable", "correct", "correct"),
        ("unscorable", "wrong", "wrong"),
        ("correct", "unscorable", "correct"),
        ("wrong", "timeout", "wrong"),
        ("unscorable", "timeout", "timeout"),
        ("unscorable", "error", "error"),
        ("unscorable", "unscorable", "unscorable"),
    ],
)
def test_checks_with_an_opinion_decide_if_they_agree(typed: str, vote: str, verdict: str) -> None:
    outcome = settle(Open("g", "a", typed), vote)  # type: ignore[arg-type]
    assert outcome.verdict == verdict
    assert outcome.votes == (f"typed:{typed}", f"math-verify:{vote}")


@pytest.mark.parametrize(
    ("gold", "gold_type", "answer", "verdict"),
    [
        ("72", "number", "She sold 72 clips.", "correct"),
        ("72", "number", "She sold 27 clips.", "wrong"),
        ("073", "integer", r"\boxed{73}", "correct"),
        ("7", "integer", "7.0", "correct"),
        ("7.5", "integer", "7.5", "unscorable"),
        ("seven", "number", "7", "unscorable"),
        ("", "number", "7", "unscorable"),
        ("7", "number", "", "wrong"),
        ("7", "number", None, "wrong"),
        ("7", "number", "I cannot tell.", "wrong"),
        (r"\text{even}", "latex", "The answer is even.", "correct"),
        ("C", "choice", "The answer is C.", "correct"),
        ("C", "choice", "The answer is D.", "wrong"),
        ("C", "choice", "mitochondria", "unscorable"),
        ("C", "choice", "", "wrong"),
        ("the third", "choice", "C", "unscorable"),
        ("yes no", "exact_text", " yes  no.", "correct"),
        ("yes no", "exact_text", "The answer is yes no.", "correct"),
        ("yes no", "exact_text", "Yes no", "wrong"),
        ("yes no", "exact_text", "", "wrong"),
        ("", "exact_text", "", "unscorable"),
        (r"\frac{1}{3}", "latex", r"\boxed{0.333333}", "correct"),
        (r"(-\infty, 3]", "latex", r"$x \le 3$", "unscorable"),
        ("3, 1, 2", "set", r"\boxed{\{1, 2, 3\}}", "correct"),
        ("3, 1, 2", "set", "The answer is 1, 2.0, 3.", "correct"),
        ("3, 1, 2", "set", "1, 2", "wrong"),
        ("3, 1, 2", "set", "1, 2, 3, 4", "wrong"),
        ("3, 1, 2", "set", "", "wrong"),
        ('["Paris, France", "Rome"]', "set", "- Rome\n- Paris, France", "correct"),
        ("{}", "set", "1", "unscorable"),
    ],
)
def test_verdicts(gold: str, gold_type: str, answer: str | None, verdict: str) -> None:
    assert verify_answer(gold, gold_type, answer).verdict == verdict


def test_a_cut_reply_counts_only_with_a_complete_box() -> None:
    assert verify_answer("4", "number", r"so \boxed{42", cut=True) == Outcome("wrong", None, ("typed:wrong",))
    assert verify_answer("42", "number", r"\boxed{42} and let me", cut=True).verdict == "correct"
    assert verify_answer("C", "choice", "the answer is C", cut=True).verdict == "wrong"


# Answers that end of two kinds: sympy's work explodes (`Open`: the caller's deadline), or the text does (decided here).
@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        ("9^{9^{9^9}}", r"\boxed{5}", None),
        ("5", r"\boxed{9^{9^{9^9}}}", None),
        ("5", "\\boxed{" + r"\frac{1}{2}+" * 800_000 + "1}", "wrong"),
        ("5", "\\boxed{" + "1+" * 30_000 + "1}", "unscorable"),
        (r"\frac{1}{" * 1_000_000, r"\boxed{5}", "unscorable"),
        ("", r"\boxed{5}", "unscorable"),
        ("5", "x" + " " * 1_000_000 + "5", "correct"),
        ("5", "(" * 500_000 + "5" + ")" * 500_000, "wrong"),
        ("5", "-" * 1_000_000, "wrong"),
    ],
)
def test_answers_and_golds_that_explode_have_a_named_verdict(gold: str, answer: str, verdict: str | None) -> None:
    first = first_checks(gold, "math", answer)
    assert (first.verdict if isinstance(first, Outcome) else None) == verdict
    if isinstance(first, Open):
        assert max(len(first.gold), len(first.extracted)) <= 2000
        assert settle(first, "timeout").verdict in ("timeout", "wrong")


def test_math_verify_abstains_on_what_it_cannot_read() -> None:
    assert math_verify_vote("5", r"\frac{") == "unscorable"
    assert math_verify_vote(r"\sqrt{8}", r"2\sqrt{2}") == "correct"


def test_gold_types_without_a_verifier_have_none() -> None:
    assert [default_verifier(kind) for kind in ("number", "latex", "choice", "exact_text")] == [
        "math",
        "math",
        "choice",
        "exact",
    ]
    assert [default_verifier(kind) for kind in ("reference_text", None)] == [None] * 2
    assert [default_verifier(kind) for kind in ("set", "ifeval", "language", "format", "python_tests")] == [
        "set",
        "ifeval",
        "language",
        "format",
        "code",
    ]


def test_a_worker_of_math_verify_does_not_load_numpy() -> None:
    loads = "import sys, builder.supervised, builder.verifiers, math_verify; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loads], check=False).returncode == 0


def test_the_version_names_the_library() -> None:
    assert "math-verify" in verifier_version("math")
    assert "math-verify" not in verifier_version("choice")
