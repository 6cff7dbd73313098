"""`builder explain`: every decision about one reply, by the recipe as given; nothing stored changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from release_toys import Selected, fill, recipe, replies_of, score_of
from score_toys import reply

from builder.config import Selection, Stage
from builder.console import Reporter
from builder.errors import TableError, UsageError
from builder.explain import Explanation, explain
from builder.find_reply import find_reply
from builder.schema import TABLES
from builder.selection import select
from builder.show_explained import show_explanation
from builder.staging import build_staging
from builder.store import Run, columns_table

WRONG = "p-1.0-1"


def stored(run: Run) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in ("rejections", "selection") for path in run.parts(name)}


def printed(found: Explanation, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    show_explanation(Reporter(), found, **options)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    return out


def test_a_kept_reply_says_stage_position_and_rank(made: Selected) -> None:
    run, _ = made
    found = explain(run, recipe(), "p-0.6-1")
    rows = run.read("selection").filter(stage="low-temperature", grain_id="p-0.6-1").to_dicts()
    assert found.outcome == f"kept: in stage low-temperature at position {rows[0]['position']}, rank 1 of 2"
    assert [(place.stage, bool(place.positions)) for place in found.places] == [
        ("low-temperature", True), ("high-temperature", False)
    ]  # fmt: skip
    assert found.stored is True
    assert found.score["status"] == "ok"


def test_an_outranked_reply_shows_its_rival_and_what_they_are_ranked_by(made: Selected) -> None:
    found = explain(made[0], recipe(), "p-0.6-0")
    assert found.outcome == (
        "dropped: outranked, rank 2 of 2 by teacher_sentence_count; selection.keep is 1 for each prompt and temperature"
    )
    best, second = found.candidates
    assert (best.response_id, best.rank, best.teacher_sentences, best.stages) == (
        "p-0.6-1", 1, 7, ("low-temperature",)
    )  # fmt: skip
    assert (second.response_id, second.rank, second.teacher_sentences, second.stages) == ("p-0.6-0", 2, 6, ())


def test_a_broken_rule_is_named_with_what_it_saw_and_the_others_with_what_they_allow(made: Selected) -> None:
    rules = Selection(rules=["answer_wrong", "too_long_for_student"], params={"max_student_tokens": 40})
    found = explain(made[0], recipe(selection=rules), WRONG)
    assert found.outcome == "dropped: breaks answer_wrong, too_long_for_student"
    wrong, long = found.rules
    assert (wrong.is_broken, wrong.observed, wrong.threshold, wrong.saw) == (True, None, None, {"verdict": "wrong"})
    assert (long.is_broken, long.observed, long.threshold) == (True, 41.0, 40.0)
    assert (long.saw, long.allows) == ({"student_tokens": 41}, {"max_student_tokens": 40})
    clean = explain(made[0], recipe(), WRONG).rules[0]
    assert (clean.rule_name, clean.is_broken) == ("response_truncated", False)
    assert clean.saw["finish_reason"] == "stop"


def test_settings_that_were_not_stored_are_said_and_decide_without_being_stored(made: Selected) -> None:
    run, _ = made
    before = stored(run)
    fewest = recipe(selection=Selection(rules=[], selector="fewest_teacher_sentences"))
    found = explain(run, fewest, "p-0.6-0")
    assert found.outcome.startswith("kept: in stage low-temperature")
    assert found.stored is False
    assert stored(run) == before


@pytest.mark.parametrize(("margin", "counts"), [(0.25, [5, 6]), (0.12, [1, 2])])
def test_sentences_are_counted_at_any_margin(made: Selected, margin: float, counts: list[int]) -> None:
    run, _ = made
    replies = [row for name in ("p", "q", "s") for row in replies_of(name)]
    rows = [
        {"response_id": row["response_id"], "student_id": score_of(row)["student_id"], "byte_end": [],
         "teacher_tokens": [3, 3, 2], "student_tokens": [3, 3, 3], "p_teacher": [0.9, 0.9, 0.9],
         "p_student": [0.5, 0.5 if row["sample_index"] else 0.8, 0.1]}
        for row in replies
    ]  # fmt: skip
    run.append("sentences", columns_table("sentences", rows))
    changed = Selection(rules=[], selector="mean_delta", params={"teacher_margin": margin})
    found = explain(run, recipe(selection=changed), "p-0.6-0")
    assert sorted(one.teacher_sentences or 0 for one in found.candidates) == counts


def test_a_reply_that_no_stage_takes_says_so(made: Selected) -> None:
    found = explain(made[0], recipe({"low-temperature": Stage(where="temperature = 0.6")}), "p-1.0-0")
    assert found.outcome == "dropped: rank 1 by teacher_sentence_count, but no stage takes it"


def test_a_prompt_without_survivors_is_said(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    strict = recipe(selection=Selection(rules=["too_long_for_student"], params={"max_student_tokens": 1}))
    found = explain(made[0], strict, "p-0.6-0")
    assert all(one.rank is None for one in found.candidates)
    assert "No candidate survives the rules" in printed(found, capsys)


def test_before_select_it_decides_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fill(Run(tmp_path), ("p",))
    run.append("responses", columns_table("responses", [reply("bare", "p", temperature=0.3)]))
    found = explain(run, recipe(), "bare")
    assert (found.stored, found.score, found.verdict) == (None, {}, {})
    out = printed(found, capsys)
    assert "Nothing is selected yet" in out
    assert "builder score makes it" in out
    assert "builder verify makes it" in out
    assert not run.parts("selection")


def test_replies_of_the_mixed_policy_show_their_rollout(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = made
    text = {"reasoning": "Half by the student, half by the teacher.", "prefix_chars": 10}
    rows = [reply("roll", "p", role="student"), reply("mix", "p", role="mixed", prefix_response_id="roll", **text)]
    run.append("responses", columns_table("responses", rows))
    rollout = {
        "response_id": "roll", "prompt_id": "p", "reference_id": "p-0.6-1", "weights_sha256": "0" * 64,
        "length_cap": 10, "student_tokens": 10, "hit_cap": True, "outcome": "cut", "cut_chars": 10, "cut_share": 0.5,
        "continuation_id": "mix",
    }  # fmt: skip
    run.append("rollouts", columns_table("rollouts", [rollout]))
    mixing = recipe(mixed_policy={"off_policy_ratio": 0.0})
    kept, student = explain(run, mixing, "mix"), explain(run, mixing, "roll")
    assert kept.outcome == "kept: in stage mixed-policy"
    assert (kept.candidates, kept.rollouts[0]["reference_id"]) == ((), "p-0.6-1")
    assert "cut after 50% of its tokens" in " ".join(printed(kept, capsys).split())
    assert student.outcome == "not judged: replies of role student are never selected"
    assert (student.rules, student.rollouts[0]["continuation_id"]) == ((), "mix")


def test_a_stage_of_prompts_holds_the_prompt_of_the_reply(made: Selected) -> None:
    stages = {"rl": Stage(kind="grpo", where="prompt_id = 'q'")}
    select(made[0], recipe(stages))
    for name, taken, positions in (("q-0.6-0", True, (0,)), ("p-0.6-0", False, ())):
        found = explain(made[0], recipe(stages), name)
        assert [(place.is_taken, place.positions) for place in found.places] == [(taken, positions)]
        assert found.outcome.startswith("dropped")


def test_a_reply_that_is_only_in_pairs_is_in_pairs_of_their_stage(
    made: Selected, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = (("p-0.6-0", "p-0.6-1"), ("p-0.6-0", "p-1.0-0"))
    pairs = [
        {"prompt_id": "p", "chosen_id": a, "rejected_id": b, "votes": ["chosen"], "gap": 1.0, "judge_version": "j"}
        for a, b in ids
    ]
    made[0].append("pairs", columns_table("pairs", pairs))
    stages = {"preference": Stage(kind="reward")}
    both, one, none = (explain(made[0], recipe(stages), name) for name in ("p-0.6-0", "p-1.0-0", "q-0.6-0"))
    assert both.outcome == "kept: in 2 pairs of stage preference"
    assert one.outcome == "kept: in 1 pair of stage preference"
    assert none.outcome.startswith("dropped")
    assert "2 pairs of it" in printed(both, capsys)
    assert "in a pair" in printed(one, capsys)
    trained = recipe({"sft": Stage(where="temperature = 0.6"), **stages})
    select(made[0], trained)
    kept, other = (explain(made[0], trained, name) for name in ("p-0.6-1", "p-1.0-0"))
    assert kept.outcome.startswith("kept: in stage sft at position")
    assert kept.outcome.endswith(", rank 1 of 2 and in 1 pair of stage preference")
    assert other.outcome == "kept: in 1 pair of stage preference"
    assert [len(place.positions) for place in other.places] == [0, 1]


OWN_SELECTOR = """-- lottery
-- Purpose     Rank by what all survivors are.
-- Inputs      survivors
-- Output      one row per survivor: response_id, rank
-- Parameters  none
-- Source      a test
-- Try it      duckdb runs/demo/run.duckdb -readonly -f sql/selectors/lottery.sql
select
    response_id,
    row_number() over (
        partition by prompt_id, temperature
        order by if((select count(*) from survivors) > 4, response_id, null) desc, response_id
    ) as rank
from survivors;
"""


AROUND = "temperature < 1.0 or response_id > (select min(response_id) from survivors where temperature = 1.0)"


@pytest.mark.parametrize(("selection", "where"), [
    ({"selector": "length_matched"}, "temperature = 0.6"),
    ({"rules": ["answer_wrong", "response_duplicate"], "order": "selector-first", "keep": 2}, "temperature < 2.0"),
    ({}, AROUND),
    ({"selector": "lottery.sql", "params": {}}, "temperature < 2.0"),
])  # fmt: skip
def test_a_reply_is_explained_as_select_decides_it(
    made: Selected, tmp_path: Path, selection: dict[str, Any], where: str
) -> None:
    """Explaining ranks a reply's rivals alone where they suffice; select ranks all."""
    run, _ = made
    (tmp_path / "lottery.sql").write_text(OWN_SELECTOR, encoding="utf-8")
    chosen = {"rules": ["response_truncated", "answer_wrong"], "params": {"teacher_margin": 0.2}, **selection}
    changed = recipe({"one": Stage(where=where)}, selection=Selection.model_validate(chosen))
    before = {name: explain(run, changed, name, recipe_dir=tmp_path) for name in ("p-0.6-0", "s-1.0-1")}
    select(run, changed, recipe_dir=tmp_path)
    kept = {row["grain_id"]: row for row in run.read("selection").to_dicts()}
    broken = run.read("rejections").select("response_id", "rule_name").rows()
    for name, found in before.items():
        (me,) = (one for one in found.candidates if one.response_id == name)
        assert [rule.rule_name for rule in found.rules if rule.is_broken] == [
            rule for rule in chosen["rules"] if (name, rule) in broken
        ]
        assert (found.places[0].is_taken, me.stages) == (name in kept, ("one",) if name in kept else ())
        assert name not in kept or me.rank == kept[name]["rank"]
    now = explain(run, changed, "s-1.0-1", recipe_dir=tmp_path)
    assert now.places[0].positions == ((kept["s-1.0-1"]["position"],) if "s-1.0-1" in kept else ())
    assert (now.rules, now.candidates) == (found.rules, found.candidates)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("p-0.6-", ["begins several ids: p-0.6-0, p-0.6-1", "Give more"]),
        ("p-0.6-2", ["no reply 'p-0.6-2'", "did you mean 'p-0.6-0'", "builder sql"]),
        ("p", ["begins several"]),
        ("zzzzzzzzzzz", ["no reply 'zzzzzzzzzzz'", "To list ids"]),
        ("", ["begins several"]),
        ("' or true --", ["no reply"]),
    ],
)
def test_an_unknown_or_ambiguous_id_says_what_there_is(_selected: Selected, given: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        find_reply(_selected[0], given)
    for word in words:
        assert word in str(error.value)


def test_a_prompt_lists_its_replies_a_beginning_is_enough_and_a_whole_id_wins(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [reply("abc", "the-prompt"), reply("abcdef", "the-prompt", role="student")]
    run.append("responses", columns_table("responses", rows))
    build_staging(run, {})
    assert find_reply(run, "abcd") == "abcdef"
    assert find_reply(run, "abc") == "abc"
    with pytest.raises(UsageError, match=r"is a prompt. Replies to it: abc \(teacher\), abcdef \(student\)"):
        find_reply(run, "the-prompt")


def test_a_run_without_replies_names_the_step_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="builder generate"):
        explain(Run(tmp_path / "run"), recipe(), "p")
    assert not (tmp_path / "run").exists()


def test_rules_and_selectors_in_python_are_explained_once_they_are_allowed(made: Selected, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import polars as pl\n\ndef rule(candidates: pl.LazyFrame, max_sample: int = 0) -> pl.LazyFrame:\n"
        '    """Drop late samples.\n\n    max_sample: sample index\n    """\n'
        '    late = candidates.filter((pl.col("sample_index") > max_sample) & (pl.col("temperature") > 0.9))\n'
        '    return late.select("response_id", observed="sample_index", threshold=pl.lit(max_sample))\n',
        encoding="utf-8",
    )
    (tmp_path / "last.py").write_text(
        "import polars as pl\n\ndef selector(survivors: pl.LazyFrame) -> pl.LazyFrame:\n"
        '    """The last sample first."""\n'
        '    order = pl.col("sample_index").rank("ordinal", descending=True).over("prompt_id", "temperature")\n'
        '    return survivors.select("response_id", rank=order.cast(pl.Int32))\n',
        encoding="utf-8",
    )
    own = recipe(selection=Selection(rules=["late.py"], selector="last.py"))
    with pytest.raises(UsageError, match="--allow-code"):
        explain(made[0], own, "p-0.6-0", recipe_dir=tmp_path)
    ranked = explain(made[0], own, "p-0.6-0", recipe_dir=tmp_path, allow_code=True)
    assert ranked.outcome.startswith("dropped: outranked, rank 2 of 2 by last")
    late = explain(made[0], own, "p-1.0-1", recipe_dir=tmp_path, allow_code=True).rules[0]
    assert (late.is_broken, late.observed, late.threshold, late.allows) == (True, 1.0, 0.0, {"max_sample": 0})


def test_text_prints_question_and_reply_whole_and_harmless(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = made
    long = " ".join(f"word{place}" for place in range(3000))
    run.append("responses", columns_table("responses", [reply("long", "p", reasoning=f"\x1b[2J {long}")]))
    found = explain(run, recipe(), "long")
    out = printed(found, capsys, with_text=True)
    assert "What is 1 + 2, p?" in out
    assert "\x1b" not in out
    assert out.split()[out.split().index("word0") :][:3000] == long.split()
    assert "word2999" not in printed(found, capsys)


def test_json_holds_the_whole_explanation(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(as_json=True)
    show_explanation(reporter, explain(made[0], recipe(), WRONG))
    reporter.finish()
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["explain"]
    assert told["outcome"] == "dropped: breaks answer_wrong"
    assert told["rules"][1]["saw"] == {"verdict": "wrong"}
    assert "reasoning" not in told["reply"]


def test_rules_of_ones_own_are_explained_by_their_header(made: Selected, tmp_path: Path) -> None:
    (tmp_path / "surprising.sql").write_text(
        "-- surprising\n-- Purpose     Drop.\n-- Inputs      stg_scores (response_id, mean_delta), elsewhere (x)\n"
        "-- Parameters  none\n"
        "select response_id, mean_delta as observed, 0.1::double as threshold from stg_scores where mean_delta > 0.1;",
        encoding="utf-8",
    )
    own = recipe(selection=Selection(rules=["surprising.sql"]))
    (rule,) = explain(made[0], own, "p-0.6-0", recipe_dir=tmp_path).rules
    assert (rule.is_broken, rule.observed, rule.threshold, rule.saw) == (True, 0.25, 0.1, {"mean_delta": 0.25})


def test_explaining_leaves_every_table_and_stored_row_as_it_was(made: Selected) -> None:
    run, _ = made
    before = {path: path.read_bytes() for name in TABLES for path in run.parts(name)}
    explain(run, recipe(), "p-0.6-0")
    assert {path: path.read_bytes() for name in TABLES for path in run.parts(name)} == before
    assert select(run, recipe()).kept == made[1].kept
