"""Rewards against completions written by hand, and against what the builder says of the same replies."""

import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.features import text_features
from builder.verifiers import verify_answer
from trainer import rewards
from trainer.errors import RecipeError
from trainer.language import language_score

RULE = Path(__file__).parents[2] / "sql" / "rules" / "mixed_language.sql"


def said(*contents: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": content}] for content in contents]


THOUGHT = "<think>\nfirst this, then that\n</think>\n\n"


@pytest.mark.parametrize(
    ("content", "gold", "gold_type", "expected"),
    [
        (THOUGHT + "The answer is 42.", "42", "integer", 1),
        (THOUGHT + r"\boxed{42}", "42", "integer", 1),
        (THOUGHT + r"Not \boxed{41}, but \boxed{42}.", "42", "integer", 1),
        (THOUGHT + "The answer is 41.", "42", "integer", 0),
        (THOUGHT + "It costs $1,319 in all.", "1319", "number", 1),
        (THOUGHT + "It is 50%.", "50", "number", 1),
        (THOUGHT + "It is −5.", "-5", "integer", 1),
        (THOUGHT + r"\boxed{-5}", "−5", "integer", 1),
        (THOUGHT + "It is 5.", "−5", "integer", 0),
        (THOUGHT + "It is +5.", "5", "integer", 1),
        (THOUGHT + "It is 5.", "+5", "integer", 1),
        (THOUGHT + "B", "BCD", "choice", None),  # no letter
        (THOUGHT + "assert f(1) == 2", "assert f(1) == 2", "python_tests", None),
        (THOUGHT + r"So $\frac{1}{2}$.", r"\frac{1}{2}", "latex", 1),
        (THOUGHT + r"\boxed{0.5}", r"\frac{1}{2}", "latex", 1),
        (THOUGHT + r"\boxed{\frac{1}{3}}", r"\frac{1}{2}", "latex", 0),
        (THOUGHT + r"\boxed{4a-2}", "4a-2", "latex", 1),
        (THOUGHT + r"\boxed{3}", "3n", "latex", 0),
        (THOUGHT + r"\boxed{f(x) = 2x}", "f(x)=2x", "latex", 1),
        (THOUGHT + "No idea.", "42", "integer", 0),
        ("<think>\nit is 42\n</think>\n\n", "42", "integer", 0),  # the answer is what follows the thoughts
        (r"<think>" + r"\boxed{42} then", "42", "integer", 0),  # never ends its thoughts
        ("42", "42", "integer", 1),  # no thoughts at all: the format reward says so
        (THOUGHT + "A is tempting, but (B).", "B", "choice", 1),
        (THOUGHT + r"\boxed{\text{C}} it is, not D", "C", "choice", 1),
        (THOUGHT + "It is (D).", "B", "choice", 0),
        (THOUGHT + "none of them", "B", "choice", 0),
        (THOUGHT + "42", None, None, None),
        (THOUGHT + "42", "no number at all", "integer", None),
    ],
)
def test_accuracy_reads_the_answer_after_the_thoughts(
    content: str, gold: str | None, gold_type: str | None, expected: float | None
) -> None:
    assert rewards.accuracy(said(content), solution=[gold], gold_type=[gold_type]) == [expected]


@pytest.mark.parametrize(
    "answer", ["The answer is 42.", r"\boxed{42}", "41", "It is 42,000", "no number", "-42", "42.0"]
)
def test_accuracy_agrees_with_the_builders_verifier_on_numbers(answer: str) -> None:
    verdict = verify_answer("42", "integer", answer).verdict
    assert rewards.accuracy(said(THOUGHT + answer), solution=["42"], gold_type=["integer"]) == [verdict == "correct"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (THOUGHT + "42", 1),
        ("  " + THOUGHT + "42\n", 1),
        ("42", 0),
        ("<think></think>\n\n42", 0),
        ("<think>\n  \n</think>\n\n42", 0),
        ("<think>\nhm\n</think>\n\n", 0),
        ("<think>\nhm", 0),
        ("hm</think>\n\n42", 0),
        ("So: " + THOUGHT + "42", 0),
        ("<think>hm<think>hm</think>42", 0),
        (THOUGHT + "42</think>", 0),
        ("", 0),
    ],
)
def test_format_wants_one_think_block_and_an_answer(content: str, expected: float) -> None:
    assert rewards.format(said(content)) == [expected]


@pytest.mark.parametrize(
    ("content", "language", "expected"),
    [
        ("<think>\nabcd\n</think>\n\nefgh", "en", 1.0),
        ("<think>\nabcd\n</think>\n\n一二三四", "en", 0.5),
        ("<think>\nabcd\n</think>\n\n一二三四", "zh-Hans", 0.5),
        ("<think>\nпривет\n</think>\n\nabcdef", None, 0.5),
        ("$x + y$ and `a`", "ru", 0.0),
        ("<think>\n12 + 3\n</think>\n\n15", "en", None),  # no letters say nothing
        ("ab\n```\nпривет\n```\n", "en", 1.0),
    ],
)
def test_language_is_the_share_of_letters_of_the_asked_language(
    content: str, language: str | None, expected: float | None
) -> None:
    assert rewards.language(said(content), language=[language]) == [expected]


LETTERS = st.text(
    st.one_of(
        st.sampled_from("abzÀÿ ﬁ Ａ ЖяѢ ءب漢字カなー・가ㄱ한 אבथไ αΩ 12_$`~\n\t.\\()[]{}"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


CONNECTION = duckdb.connect(config={"threads": 1})  # one for all examples: opening costs more than the rule
CONNECTION.execute("create table stg_responses as select 'r' as response_id, 'p' as prompt_id")


@settings(max_examples=300, deadline=None)
@given(LETTERS, LETTERS, st.sampled_from([None, "en", "pt-BR", "ru", "ar", "zh", "ja", "ko", "xx"]))
def test_the_language_score_is_one_less_what_the_sql_rule_calls_foreign(
    reasoning: str, answer: str, language: str | None
) -> None:
    features = text_features(reasoning, answer)
    CONNECTION.register("stg_features", pa.Table.from_pylist([{"response_id": "r", **features}]))
    CONNECTION.execute(
        "create or replace table stg_prompts as select 'p' as prompt_id, ?::varchar as language", [language]
    )
    shares = []
    for script, latin in ((-1.0, None), (2.0, -1.0)):
        for name, value in (("max_foreign_share", script), ("max_latin_share", latin)):
            CONNECTION.execute(f"set variable {name} = {'null' if value is None else value}")
        found = CONNECTION.sql(RULE.read_text(encoding="utf-8")).fetchall()
        shares.append(found[0][1] if found else None)
    text = "\n\n".join(part for part in (reasoning, answer) if part)
    score = language_score(text, language)
    if score is None:
        assert shares == [None, None]
    else:
        assert score == pytest.approx(1 - sum(shares), abs=1e-12)


def test_the_language_score_of_real_replies_is_that_of_the_rule() -> None:
    texts = [
        "Let us see. 首先，we take $x$ and добавим 3 to it.",
        "こんにちは世界, hello",
        "안녕 漢字 hi",
        "x = 2 שלום",
    ]
    for text in texts:
        counts = text_features(text, None)
        every = sum(value for name, value in counts.items() if name.endswith("_chars") and name in LETTER_COLUMNS)
        assert language_score(text, "en") == pytest.approx(counts["latin_chars"] / every)


LETTER_COLUMNS = [f"{name}_chars" for name in ("latin", "cyrillic", "arabic", "han", "kana", "hangul", "other")]


def logged(**series: list[float]) -> list[dict[str, Any]]:
    names = {"accuracy": "rewards/accuracy/mean", "format": "rewards/format/mean", "length": "completions/mean_length"}
    names |= {"helpfulness": "rewards/helpfulness/mean"}
    rows = zip(*series.values(), strict=True)
    return [dict(zip((names[name] for name in series), row, strict=True)) for row in rows]


UP = [0.1 + 0.02 * step + 0.01 * (step % 2) for step in range(40)]
DOWN = [0.9 - 0.02 * step + 0.01 * (step % 2) for step in range(40)]
FLAT = [0.5 + 0.1 * (-1) ** step for step in range(40)]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"accuracy": DOWN, "format": UP, "length": FLAT}, ["format"]),
        ({"accuracy": DOWN, "format": FLAT, "length": UP}, ["mean length"]),
        ({"accuracy": DOWN, "helpfulness": UP, "length": UP}, ["helpfulness", "mean length"]),
        ({"accuracy": UP, "format": UP, "length": UP}, []),
        ({"accuracy": FLAT, "format": UP, "length": UP}, []),
        ({"accuracy": DOWN, "format": DOWN, "length": DOWN}, []),
        ({"accuracy": DOWN[:12], "format": UP[:12], "length": UP[:12]}, []),  # too few to tell
    ],
)
def test_signs_of_reward_hacking_are_accuracy_down_and_something_else_up(
    series: dict[str, list[float]], expected: list[str]
) -> None:
    found = rewards.signs(logged(**series))
    assert [sign.partition(" while ")[2].partition(" rose")[0] for sign in found] == expected


def noisy(chance: random.Random, steps: int, fall: float) -> list[dict[str, Any]]:
    """What 64 rollouts a step show of an accuracy that falls evenly by `fall` while replies grow as evenly."""
    part = [fall * step / (steps - 1) for step in range(steps)]
    accuracy = [sum(chance.random() < 0.4 - lost for _ in range(64)) / 64 for lost in part]
    shaped = [sum(chance.random() < 0.7 for _ in range(64)) / 64 for _ in range(steps)]
    return logged(accuracy=accuracy, format=shaped, length=[chance.gauss(300 + 600 * lost, 12.5) for lost in part])


def test_chance_alone_shows_no_sign_however_often_one_looks_and_a_real_fall_does() -> None:
    chance = random.Random(0)
    series = [noisy(chance, 60, 0.0) for _ in range(40)]
    assert sum(any(rewards.signs(each[:steps]) for steps in range(16, 61)) for each in series) <= 1
    assert all(rewards.signs(noisy(chance, 60, 0.25)) for _ in range(40))


def test_the_summary_that_ends_a_log_hides_no_sign() -> None:
    history = logged(accuracy=DOWN, format=UP)
    assert len(rewards.signs(history)) == len(rewards.signs([*history, {"train_runtime": 1.0, "step": 40}])) == 1


def test_an_entry_without_a_reward_is_skipped() -> None:
    history = logged(accuracy=DOWN, format=UP)
    for entry in history[::7]:
        entry["rewards/format/mean"] = None  # type: ignore[assignment]
    assert len(rewards.signs(json.loads(json.dumps(history)))) == 1


def test_a_reward_model_without_a_weight_is_refused() -> None:
    with pytest.raises(RecipeError, match="a reward model for helpfulness, but no weight, so nothing would be earned"):
        rewards.functions({"rewards": {"format": 1.0}, "reward_models": {"helpfulness": "there"}}, "rl")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ({}, "names no rewards"),
        ({"accuracy": 0}, "names no rewards"),
        ({"acuracy": 1}, "did you mean 'accuracy'"),
        ({"helpfulness": 1}, "helpfulness is scored by a model"),
        ({"nowhere.reward": 1}, "cannot be imported here: No module named 'nowhere'"),
        ({"json.nothing": 1}, "cannot be imported here"),
    ],
)
def test_rewards_that_nobody_knows_are_refused(names: dict[str, float], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        rewards.functions({"rewards": names}, "rl")


def test_rewards_of_trl_and_of_ones_own_are_taken_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_rewards.py").write_text("def brief(completions, **_):\n    return [0.0]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {"think_format_reward": 1, "my_own_rewards.brief": 0.5, "language": 0}
    found = rewards.functions({"rewards": names}, "rl")
    assert [*found] == ["think_format_reward", "my_own_rewards.brief"]
    assert found["my_own_rewards.brief"] is not None and found["my_own_rewards.brief"](said("x")) == [0.0]
