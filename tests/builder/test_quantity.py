import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.answers import extract_choice, extract_math
from builder.arithmetic import Unreadable, evaluate
from builder.formula import parse_formula
from builder.literals import read_literal
from builder.quantity import compare


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", Fraction(72)),
        ("1,000.50", Fraction(2001, 2)),
        (r"5,\!866,\!608", Fraction(5866608)),
        ("10{,}000", Fraction(10000)),
        (r"-\$0.20", Fraction(-1, 5)),
        ("$-3", Fraction(-3)),
        ("−3", Fraction(-3)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        (r"\frac78", Fraction(7, 8)),
        (r"60^{\circ}", Fraction(60)),
        (r"40\text{ points}", Fraction(40)),
        ("5 cm^2", Fraction(5)),
        ("6.29 million", Fraction(6290000)),
        ("3e8", Fraction(3 * 10**8)),
        ("1/0", None),
        ("5x", None),
        ("1,23", None),
        ("", None),
    ],
)
def test_plain_numbers_are_read_exactly(text: str, value: Fraction | None) -> None:
    literal = read_literal(text)
    assert (literal.value if literal else None) == value


@given(st.fractions(), st.sampled_from(["{n}/{d}", r"\frac{{{n}}}{{{d}}}", r"\dfrac{{{n}}}{{{d}}}"]))
def test_a_fraction_equals_itself_and_not_its_successor(value: Fraction, form: str) -> None:
    text = form.format(n=abs(value.numerator), d=value.denominator)
    sign = "-" if value < 0 else ""
    same = compare(f"{value.numerator}/{value.denominator}", sign + text)
    other = compare(f"{value.numerator + value.denominator}/{value.denominator}", sign + text)
    assert same and same.equal and same.exact
    assert other and not other.equal and other.exact


@given(st.integers(-(10**12), 10**12), st.integers(0, 5))
def test_commas_and_trailing_zeros_change_no_number(value: int, zeros: int) -> None:
    written = f"{value:,}" + ("." + "0" * zeros if zeros else "")
    found = compare(str(value), written)
    assert found and found.equal and found.exact


_PIECES = [
    "5",
    " ",
    "aaa",
    " cm",
    r"\text{a}",
    "(",
    ")",
    "{",
    "}",
    "$",
    "!",
    "^",
    "x",
    r"\sin ",
    r"\frac",
    ",",
    "1,111",
]
_PIECES += ["the answer is ", "-", "=", " and ", r"\(", r"\boxed{", "|", "**A", r"\\", "a_", "\n"]

_formula = st.recursive(
    st.integers(0, 9).map(str) | st.sampled_from(["x", "y", r"\pi"]),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda three: f"({''.join(three)})"),
    max_leaves=8,
)


@given(_formula, _formula)
def test_sums_commute_and_adding_one_is_noticed(one: str, two: str) -> None:
    same, other = compare(f"{one}+{two}", f"{two}+{one}"), compare(f"{one}+{two}", f"{two}+{one}+1")
    assert same and same.equal
    assert other and not other.equal


@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=3), st.integers(1, 2000), st.sampled_from(_PIECES))
def test_repetition_costs_no_more_than_its_length(unit: list[str], times: int, end: str) -> None:
    text = ("".join(unit) * times)[:2000] + end
    began = time.monotonic()
    compare(text, "5x")
    compare("5x", text)
    extract_math(text)
    extract_choice(text)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"\frac{\sqrt5-1}{2}", r"\frac{-1+\sqrt{5}}{2}", True),
        (r"36x \sqrt{35x}", r"36x\sqrt{35}\sqrt{x}", True),
        (r"\frac{2}{3}\pi", r"2\pi/3", True),
        (r"2 \tan x", r"2\tan(x)", True),
        (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2", True),
        (r"\pm 1, \pm 7", "7, -7, 1, -1", True),
        (r"\pm 1, \pm 7", r"\pm 7 \text{ and } \pm 1", True),
        (r"\pm 1, \pm 7", "1, 7", False),
        (r"\pm 1, \pm 7", "1, -1, 7, 7", False),
        ("0, ±3", "-3, 0, 3", True),
        (r"\{\pm 1, 2\}", r"\{2, 1, -1\}", True),
        (r"\{\pm 1\}", r"\{1\}", False),
        ("x=±2", "2, -2", True),
        ("2", r"\pm 2", None),
        (r"\pm 1 \pm 2", "3, 1, -1, -3", None),  # or 3 and -3, where the signs belong together
        (r"(\pm 1, 2)", "(1, 2)", None),
        ("0,1", "1, 0", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2)", "(1,2)", False),
        ("x=5", "2x=10", True),
        ("5", "x = 2+3 = 5", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ \frac{4}{2} \end{pmatrix}", True),
        ("50", r"50\%", True),
        ("0.5", "50%", True),
        ("50", "0.5", False),
        (r"\text{(E)}", "E", True),
        ("0.333", "1/3", None),  # may be a rounding: no opinion
        ("10 mm", "10 cm", None),
        ("1 < x", "x > 1", None),
        ("5", "9^{9^{9^9}}", None),
        ("x", "(" * 200 + "x" + ")" * 200, None),
    ],
)
def test_typed_comparison(gold: str, answer: str, equal: bool | None) -> None:
    found = compare(gold, answer)
    assert (found.equal if found else None) is equal


def test_formulas_of_rationals_stay_exact_and_sizes_are_bounded() -> None:
    assert evaluate(parse_formula(r"\binom{5}{2} + 3! - 2^{-1}"), {}) == Fraction(31, 2)
    with pytest.raises(Unreadable):
        evaluate(parse_formula("9^{9^9}"), {})
    with pytest.raises(Unreadable):
        parse_formula("1 000")
