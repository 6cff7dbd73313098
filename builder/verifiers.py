r"""Is an answer right? Strings in, a verdict out. `builder.verify` applies this to a run, with deadlines.

Verdicts: `correct`; `wrong`; `unscorable` (nobody can tell: never counted as wrong); `timeout` and `error` (a check did
not come to an end). A question without a gold, or with a gold that no verifier here reads, gets no verdict at all.

**math** (gold types `number`, `integer`, `latex`) asks two independent checks: `typed` (`builder.quantity`, ours: exact
fractions, else values at fixed points) and `math-verify` (sympy). Where `typed` has a proof, exact equality or exact
inequality of rational numbers or one and the same spelling, math-verify is not asked: it could only be wrong about it,
and it is slow. Else the checks that have an opinion decide if they agree; where they contradict each other the verdict
is `unscorable`; where neither has one, it is what math-verify came to: `timeout`, `error` or `unscorable`. `votes`
holds every check that was asked.

So math-verify's known false positives 1 − 1/e = 1 + 1/e, 4 = 4√2, 1/2⁹⁹ = 1/2⁹⁸ and 3x − y + 13 = 0 = 3x + 4y + 14
are not `correct`, and its false negative √(1/n) against 1/√n is `unscorable`, not `wrong`. Not caught: a false positive
on what `typed` does not read (inequalities, quantifiers, text: `f(x)=0` = `\forall x>0, f(x)=0`); forms of equal value
where the question asked for a form (factored, lowest terms); `50%` for gold 50 and for gold 0.5; identities that hold
for positive variables only, where math-verify errs the same way; answers spread over several boxes (the last counts);
decimal commas; numbers in words. A unit that only one side writes is ignored.

**choice** compares option letters, **exact** the text (white space collapsed, quotes and final dot dropped), **set**
elements in any order (a JSON list, or separated by line breaks, semicolons or commas; numbers by value).
**ifeval** asks whether every instruction is followed (`builder.ifeval`), **language** whether seven tenths of the
reply are in the gold's language (`builder.languages`), **format** whether it has the forms that the gold names
(`builder.forms`). **code** runs the reply's program (`builder.code_verifier`).

An empty answer is `wrong` wherever the gold can be read, also where the reply was cut before it answered. A cut reply
with text is judged by a complete `\boxed{}` only. A gold that does not parse is `unscorable`. A math answer without any
number, formula or box is `wrong`; a choice answer that names no letter is `unscorable`: it may name the option's text.
"""

import json
import logging
import re
import unicodedata
from importlib.metadata import version
from typing import Final

from builder.answers import (
    ASCII_FORMS,
    LONGEST_ANSWER,
    extract_choice,
    extract_line,
    extract_math,
    extract_words,
    final_part,
    last_boxed,
    math_signs,
)
from builder.code_verifier import code, code_version
from builder.forms import FORMS, has_form
from builder.literals import is_text, read_literal, without_unit_letter
from builder.outcome import Open, Outcome, Verdict
from builder.quantity import Comparison, compare
from builder.text import THINK_CLOSE, canonical_text

VERIFIERS: Final = ("math", "choice", "exact", "set", "ifeval", "language", "format", "code")
READ_REASONING: Final = ("language", "format")
"""Verifiers that read a reply's reasoning as well as its answer."""
_BY_GOLD_TYPE: Final = {
    "number": "math",
    "integer": "math",
    "latex": "math",
    "choice": "choice",
    "exact_text": "exact",
    "set": "set",
    "ifeval": "ifeval",
    "language": "language",
    "format": "format",
    "python_tests": "code",
}
_RULES: Final = "3"
"""Version of these rules and of the modules that they call: a new number recomputes stored verdicts."""

MIN_LANGUAGE_SHARE: Final = 0.7
"""Share of a reply that must be in its language: Korean with English terms has 0.8, as `mixed_language` allows too."""
LONGEST_TEXT: Final = 500_000
"""Characters; longer replies are no answers that ifeval, language or format could judge in bounded time."""


def default_verifier(gold_type: str | None) -> str | None:
    """The verifier for a gold type; None where this version has none (such as `reference_text`)."""
    return _BY_GOLD_TYPE.get(gold_type or "")


def verifier_version(verifier: str) -> str:
    """Version of rules and library, such as `1 math-verify 0.9.0`."""
    if verifier == "code":
        return code_version()
    return f"{_RULES} math-verify {version('math-verify')}" if verifier == "math" else _RULES


def verify_answer(
    gold: str,
    gold_type: str | None,
    answer: str | None,
    *,
    verifier: str | None = None,
    cut: bool = False,
    reasoning: str | None = None,
) -> Outcome:
    """Verdict on the final part of one reply, in this process and without a deadline.

    For answers of unknown origin use `builder.verify.verify_answers`: sympy can run for ever. `verifier` overrides the
    one of the gold type; `cut` says that the reply ended at its token limit; only `language` and `format` read the
    `reasoning`. Raises KeyError for an unknown verifier.
    """
    name = verifier or _BY_GOLD_TYPE[gold_type or ""]
    outcome = first_checks(gold, name, answer, gold_type=gold_type, cut=cut, reasoning=reasoning)
    if isinstance(outcome, Open):
        return settle(outcome, math_verify_vote(outcome.gold, outcome.extracted))
    return outcome


def first_checks(
    gold: str,
    verifier: str,
    answer: str | None,
    *,
    gold_type: str | None = None,
    cut: bool = False,
    reasoning: str | None = None,
) -> Outcome | Open:
    """Everything but math-verify: bounded in time and memory for any text. Raises KeyError for an unknown verifier."""
    if verifier == "code":
        return code(gold, gold_type, answer or "", cut)
    gold = unicodedata.normalize("NFC", gold).strip()
    if verifier in _WHOLE:
        return _WHOLE[verifier](gold, answer or "", reasoning)
    # Gold and answer are folded alike: a Chinese comma, a typographic minus, full-width digits.
    return _FINAL[verifier](gold.translate(ASCII_FORMS), gold_type, final_part(answer or ""), cut)


def settle(pending: Open, vote: Verdict) -> Outcome:
    """The verdict, from the vote of `typed` and the vote of math-verify."""
    votes = (f"typed:{pending.typed}", f"math-verify:{vote}")
    opinions = {opinion for opinion in (pending.typed, vote) if opinion in ("correct", "wrong")}
    verdict: Verdict = vote
    if len(opinions) == 1:
        verdict = opinions.pop()
    elif opinions:
        verdict = "unscorable"
    return Outcome(verdict, pending.extracted, votes)


def math_verify_vote(gold: str, answer: str) -> Verdict:
    """math-verify's opinion on two expressions, gold first: `unscorable` where it cannot read one of them.

    Its own timeouts are off, since they report a timeout as "not equal" and need SIGALRM: the caller has the deadline.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # warns that timeouts are off: they are ours
    parsed = []
    for text in (gold, answer):
        # A box inside formula signs is what its grammar reads best; a bare letter or word reads as no number.
        expressions = parse(f"$\\boxed{{{text}}}$", parsing_timeout=None, raise_on_error=True)
        if not any(not isinstance(expression, str) for expression in expressions):
            return "unscorable"
        parsed.append(expressions)
    equal = verify(parsed[0], parsed[1], timeout_seconds=None, raise_on_error=True)
    return "correct" if equal else "wrong"


def _math(gold: str, gold_type: str | None, text: str, cut: bool) -> Outcome | Open:
    numeric = gold_type in ("number", "integer")
    gold, text = math_signs(gold), math_signs(text)
    value = read_literal(gold) if len(gold) <= LONGEST_ANSWER else None
    if not gold or len(gold) > LONGEST_ANSWER or (numeric and value is None):
        return Outcome("unscorable", None, ("typed:unscorable",))
    if gold_type == "integer" and value is not None and value.value.denominator != 1:
        return Outcome("unscorable", None, ("typed:unscorable",))
    extracted = extract_math(text, closed_only=cut)
    if is_text(gold) and not cut:
        extracted = extract_words(text) or extracted
    elif value is not None and extracted and (words := _TEXT_COMMAND.fullmatch(extracted)):
        extracted = extract_math(words[1]) or extracted
    if extracted is None or not extracted.strip():
        return Outcome("wrong", None, ("typed:wrong",))
    if len(extracted) > LONGEST_ANSWER:
        return Outcome("unscorable", None, ("typed:unscorable",))
    if numeric and value is not None and not value.unit:
        extracted = without_unit_letter(extracted)
    found = compare(gold, extracted)
    if found is not None and found.exact:
        verdict = _opinion(found)
        return Outcome(verdict, extracted, (f"typed:{verdict}",))
    return Open(gold, extracted, _opinion(found))


def _opinion(found: Comparison | None) -> Verdict:
    if found is None:
        return "unscorable"
    return "correct" if found.equal else "wrong"


def _choice(gold: str, _gold_type: str | None, text: str, cut: bool) -> Outcome:
    wanted = extract_choice(gold.upper() if len(gold) == 1 else gold)
    if wanted is None:
        return Outcome("unscorable", None, ("choice:unscorable",))
    if not text:
        return Outcome("wrong", None, ("choice:wrong",))
    named = extract_choice(last_boxed(text) or "" if cut else text)
    if named is None:
        verdict: Verdict = "wrong" if cut else "unscorable"
    else:
        verdict = "correct" if named == wanted else "wrong"
    return Outcome(verdict, named, (f"choice:{verdict}",))


def _exact(gold: str, _gold_type: str | None, text: str, cut: bool) -> Outcome:
    if not gold:
        return Outcome("unscorable", None, ("exact:unscorable",))
    boxed = last_boxed(text)
    candidates = [boxed] if cut else [text, boxed, extract_words(text), extract_line(text)]
    wanted = _plain(gold)
    matching = next((item for item in candidates if item and _plain(item) == wanted), None)
    verdict: Verdict = "wrong" if matching is None else "correct"
    extracted = matching or next((item for item in reversed(candidates) if item), None)
    return Outcome(verdict, extracted[:LONGEST_ANSWER] if extracted else None, (f"exact:{verdict}",))


def _set(gold: str, _gold_type: str | None, text: str, cut: bool) -> Outcome:
    wanted = _elements(gold)
    given = last_boxed(text) if cut else last_boxed(text) or extract_words(text) or text
    if not wanted or max(len(gold), len(given or "")) > LONGEST_TEXT:
        return _only("unscorable", "set")
    if not given:
        return _only("wrong", "set")
    # "1, 2 and 3" is three elements; "rock and roll" may be one
    readings = {given, re.sub(r",?(?<!\s)\s++and\s++", ", ", given)}
    return _only(_right(any(_elements(one) == wanted for one in readings)), "set", given[:LONGEST_ANSWER])


def _elements(text: str) -> frozenset[str]:
    """Elements of a set as written: numbers by their value, words by their letters."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        plain = _TEXT_COMMAND.sub(r"\1", re.sub(r"\\(?:left|right)|\\[()\[\]]|\$", "", text)).strip().rstrip(" .")
        plain = re.sub(r"^\\?[{\[(]|\\?[}\])]$", "", plain)
        separator = next((sign for sign in "\n;," if sign in plain.strip()), ",")
        listed = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s+", "", part) for part in plain.strip().split(separator)]
    found = set()
    for item in map(str, listed):
        number = read_literal(item) if len(item) <= LONGEST_ANSWER else None
        found.add(str(number.value) if number and not number.unit and not number.percent else _plain(item).casefold())
    return frozenset(found - {""})


def _ifeval(gold: str, answer: str, _reasoning: str | None) -> Outcome:
    # Imported here and in _language: workers must not load numpy, whose threads on a machine of many cores reserve
    # more address space than a worker may have.
    from builder.ifeval import read_instructions, readings

    instructions = read_instructions(gold)
    text = answer.rpartition(THINK_CLOSE)[2]
    if instructions is None or len(text) > LONGEST_TEXT:
        return _only("unscorable", "strict")
    texts = readings(text)
    strict = [one.is_followed(text) for one in instructions]
    loose = [any(map(one.is_followed, texts)) for one in instructions]
    votes = [f"{one.name}:{_right(found)}" for one, found in zip(instructions, strict, strict=True)]
    return Outcome(_right(all(strict)), None, (*votes, f"loose:{_right(all(loose))}"))


def _language(gold: str, answer: str, reasoning: str | None) -> Outcome:
    from builder.languages import LANGUAGES, language_share

    text = canonical_text(reasoning, answer)
    if gold.replace("_", "-").partition("-")[0].lower() not in LANGUAGES or len(text) > LONGEST_TEXT:
        return _only("unscorable", "language")
    if not text.strip():
        return _only("wrong", "language")
    share = language_share(text, gold)
    if share is None:
        return _only("unscorable", "language")
    return _only(_right(share >= MIN_LANGUAGE_SHARE), "language", f"{share:.3f}")


def _format(gold: str, answer: str, reasoning: str | None) -> Outcome:
    wanted = gold.replace(",", " ").split()
    if not wanted or not set(wanted) <= set(FORMS) or len(answer) + len(reasoning or "") > LONGEST_TEXT:
        return _only("unscorable", "format")
    found = {name: has_form(name, reasoning, answer) for name in wanted}
    return Outcome(_right(all(found.values())), None, tuple(f"{name}:{_right(has)}" for name, has in found.items()))


def _right(holds: bool) -> Verdict:
    return "correct" if holds else "wrong"


def _only(verdict: Verdict, check: str, extracted: str | None = None) -> Outcome:
    """The outcome of a verifier with one check."""
    return Outcome(verdict, extracted, (f"{check}:{verdict}",))


def _plain(text: str) -> str:
    """White space collapsed; enclosing quotes, code marks and bold, and one final dot, dropped."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if match := _TEXT_COMMAND.fullmatch(text):
        text = match[1].strip()
    text = re.sub(r"^[\"'`*“”‘’]+|[\"'`*“”‘’]+$", "", text)
    return text.removesuffix(".").strip()


_TEXT_COMMAND: Final = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_FINAL: Final = {"math": _math, "choice": _choice, "exact": _exact, "set": _set}
"""Verifiers of the final answer that a reply comes to."""
_WHOLE: Final = {"ifeval": _ifeval, "language": _language, "format": _format}
"""Verifiers of the reply as it stands."""
