"""Which released rows carry their think block: always, never, or where a condition of SQL is true."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from release_toys import recipe, rows, score_of, whole
from score_toys import prompt, reply

from builder.config import Recipe
from builder.console import Reporter
from builder.decision import plan_selection
from builder.errors import SqlError
from builder.pipeline import Steps
from builder.release import release
from builder.selection import select
from builder.store import Run, columns_table

GREETED = "domain in ('writing', 'qa') and length(prompt[-1].content) >= 20"
QUESTIONS = {
    "essay": ("writing", "Write an essay about rivers."),
    "hello": ("qa", "Hello."),
    "chat": ("small-talk", "How are you doing on this fine day?"),
    "unknown": (None, "A question of which no domain is known."),
}


def make_run(root: Path, **changes: Any) -> Run:
    run = Run(root)
    prompts = [{**prompt(name, text), "domain": domain} for name, (domain, text) in QUESTIONS.items()]
    replies = [reply(name, name, reasoning=f"Thinking of {name}.", answer=f"Answer {name}.") for name in QUESTIONS]
    replies.append(reply("plain", "hello", reasoning=None, answer="Hi.", temperature=1.0))
    replies = [{**row, **changes} if row["response_id"] == "hello" else row for row in replies]
    run.append("prompts", columns_table("prompts", prompts))
    run.append("responses", columns_table("responses", replies))
    run.append("scores", columns_table("scores", [score_of(row) for row in replies]))
    return run


def asking(think: str, **changes: Any) -> Recipe:
    return recipe({"general": {"think": think, **changes}}, selection={"rules": ["tail_loop"], "selector": "random"})  # type: ignore[dict-item]


def released(run: Run, think: str) -> dict[str, str]:
    mine = asking(think)
    path = release(run, mine, select(run, mine)).path
    found = rows(path, "general").to_pylist()
    return {row["response_id"]: row["completion"][0]["content"] for row in found}


def test_rows_carry_their_think_block_where_the_policy_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    bare = {name: f"Answer {name}." for name in QUESTIONS} | {"plain": "Hi."}
    thought = {name: f"<think>\nThinking of {name}.\n</think>\n\nAnswer {name}." for name in QUESTIONS}
    assert released(run, "always") == bare | thought
    assert released(run, "never") == bare
    # a NULL is not true: `unknown` has no domain
    assert released(run, GREETED) == bare | {"essay": thought["essay"]}


def test_select_card_and_manifest_count_them_and_tokens_are_not_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mine = make_run(tmp_path), asking(GREETED)
    result = Steps(run, mine, tmp_path, Reporter()).select()
    said = "stage general: 1 rows with their thoughts, 3 as the answer alone (the condition is NULL for 1)"
    assert said in capsys.readouterr().out
    path = release(run, mine, result).path
    manifest = whole(path)
    assert manifest["thinking"] == [
        {"stage": "general", "policy": GREETED, "with_thoughts": 1, "answer_only": 3, "undecided": 1}
    ]
    assert manifest["schedule"][0]["tokens"] is None
    tokens = {row["response_id"]: row["student_tokens"] for row in rows(path, "general").to_pylist()}
    assert {name for name, count in tokens.items() if count is None} == {"hello", "chat", "unknown"}
    card = (path / "README.md").read_text(encoding="utf-8")
    assert "1 carry it; 3 are the answer alone, 1 of them because the condition is NULL" in card
    assert {row["response_id"]: row["reasoning"] for row in rows(path, "candidates").to_pylist()}["hello"]


def test_another_policy_is_another_version_with_the_same_ids_in_the_same_order(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    paths = [release(run, mine, select(run, mine)).path for mine in (asking("always"), asking("never"))]
    first, second = (rows(path, "general").to_pylist() for path in paths)
    assert [path.name for path in paths] == ["v1", "v2"]
    assert [(row["response_id"], row["position"]) for row in first] == [
        (row["response_id"], row["position"]) for row in second
    ]
    hashes = {whole(path)["schedule"][0]["rowset_hash"] for path in paths}
    assert len(hashes) == 2


def test_a_reply_without_an_answer_is_no_empty_row(tmp_path: Path) -> None:
    run = make_run(tmp_path, answer=None)
    with pytest.raises(
        SqlError, match=r"stages\.general\.think leaves nothing of 1 replies, such as hello.*answer_missing"
    ):
        select(run, asking("never"))
    assert select(run, asking("domain = 'qa'")).thinking[0].with_thoughts == 1


@pytest.mark.parametrize(
    ("think", "message"),
    [
        ("nevr", 'column "nevr"'),
        ("domain = ", "stages.general.think cannot be parsed"),
        ("true); drop table stg_prompts; select (true", "stages.general.think"),
        ("random() < 0.5", "stages.general.think uses random"),
        ("exists (from read_text('/etc/hostname'))", "stages.general.think uses read_text"),
        ("domain", "stages.general.think fails"),
    ],
)
def test_a_condition_that_is_none_is_an_error_before_anything_is_written(
    tmp_path: Path, think: str, message: str
) -> None:
    run = make_run(tmp_path)
    with pytest.raises(SqlError) as caught:
        select(run, asking(think))
    assert message in str(caught.value)
    assert run.rows("selection") == 0


def test_only_stages_of_replies_have_a_policy_and_recipes_without_keep_their_hash() -> None:
    with pytest.raises(ValidationError, match="stage 'general' of kind grpo has `think`"):
        asking("never", kind="grpo")
    with pytest.raises(ValidationError, match="the mixed-policy stage has `think`"):
        recipe({"late": {"think": "never"}}, mixed_policy={"stage": "late"})  # type: ignore[dict-item]
    assert "think" not in asking("always").decisive()["stages"]["general"]
    assert len({plan_selection(asking(think)).selection_id for think in ("always", "never", GREETED)}) == 3
