"""Mixed policy from end to end, with real models behind real servers: the toy teacher, and itself as the student."""

import json
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from endpoint import Endpoint, endpoint
from proxy import Ask, Json, proxy
from release_toys import contents, whole
from score_toys import save_student

from builder import ask as asking
from builder import flow
from builder.config import Recipe
from builder.console import Reporter
from builder.errors import EndpointError, MixError, UsageError
from builder.local_server import running_server
from builder.models import model_sha256, weights_sha256
from builder.pipeline import Steps
from builder.release import read_manifest
from builder.store import Run, remove_tree
from builder.text import completion_text
from builder.toy.task import problems
from builder.toy.train import TEACHER

QUESTIONS = 12


@dataclass
class Toy:
    """A run with its release v1, before any mix."""

    root: Path
    url: str

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    def recipe(self, **policy: Any) -> Recipe:
        return Recipe.model_validate(
            {
                "name": "toy",
                "prompts": [{"source": str(self.root / "questions.jsonl"), "gold_type": "integer"}],
                "teacher": {
                    "model": "toy-teacher", "revision": "r1", "tokenizer": str(TEACHER),
                    "endpoints": [{"url": self.url}], "prices": {"input": 1.0, "output": 2.0},
                },
                "generation": {"temperatures": [0.6, 1.0], "samples": 1, "max_tokens": 160},
                "student": {"model": str(self.root / "student")},
                "selection": {"rules": ["response_truncated", "think_tags_broken", "answer_wrong", "score_missing"]},
                "stages": {
                    "low-temperature": {"where": "temperature = 0.6"},
                    "high-temperature": {"where": "temperature = 1.0"},
                },
                "mixed_policy": {"length_cap": 0.7, "off_policy_ratio": 0.5, **policy},
                "release": {"license": "apache-2.0"},
            }
        )  # fmt: skip

    def steps(self, **policy: Any) -> Steps:
        return Steps(Run(self.root / "run"), self.recipe(**policy), self.root, Reporter(quiet=True))

    def requests(self) -> int:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/stats") as answer:
            return int(json.load(answer)["requests"])


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with running_server(TEACHER, model_name="toy-teacher", threads=1) as url:
        yield url


@pytest.fixture(scope="module")
def released(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("mix"), teacher)
    rows = [{"prompt": problem.question, "gold": problem.gold} for problem in problems(QUESTIONS, carries=False)]
    (toy.root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(TEACHER, toy.root / "student")
    shutil.copytree(TEACHER, toy.checkpoint)
    origin = {
        "base_model": "student", "base_revision": None, "base_weights_sha256": weights_sha256(toy.root / "student"),
        "dataset": {"build_id": "b" * 64}, "stage": "high-temperature",
    }  # fmt: skip
    (toy.checkpoint / "training.json").write_text(json.dumps(origin))
    toy.steps().everything()
    return toy


@pytest.fixture
def toy(released: Toy, tmp_path: Path) -> Toy:
    """The same run, to change at will."""
    shutil.copytree(released.root, tmp_path / "toy")
    return Toy(tmp_path / "toy", released.url)


@pytest.fixture(scope="module")
def mixed(released: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A run whose rollouts all hit their cap, mixed and released as v2."""
    toy = Toy(tmp_path_factory.mktemp("mixed") / "toy", released.url)
    shutil.copytree(released.root, toy.root)
    steps = toy.steps()
    steps.mix(toy.checkpoint)
    steps.release()
    return toy


def rows_of(toy: Toy, version: str, config: str) -> pl.DataFrame:
    return pl.read_parquet(toy.root / "run/releases" / version / "data" / config / "*.parquet")


def test_the_second_release_repeats_unchanged_configs_and_adds_a_stage(mixed: Toy) -> None:
    first, second = (contents(mixed.root / f"run/releases/{version}") for version in ("v1", "v2"))
    same = [path for path in first if path.startswith(("data/low", "data/high"))]
    assert len(same) == 2 and all(first[path] == second[path] for path in same)
    manifest = whole(mixed.root / "run/releases/v2")
    assert manifest["parent"] == "v1"
    assert [entry["stage"] for entry in manifest["schedule"]] == ["low-temperature", "high-temperature", "mixed-policy"]
    assert manifest["rollout"] == {
        "base": weights_sha256(mixed.root / "student"),
        "dataset": "b" * 64,
        "stage": "high-temperature",
        "weights_sha256": weights_sha256(mixed.checkpoint),
    }
    assert "sql/mix/mixed_policy.sql" in manifest["sql"]
    assert read_manifest(mixed.root / "run/releases/v1")["rollout"] is None


def test_counts_of_the_manifest_are_those_of_the_tables(mixed: Toy) -> None:
    manifest = whole(mixed.root / "run/releases/v2")
    run = Run(mixed.root / "run")
    by_role = dict(run.read("responses").group_by("role").len().iter_rows())
    assert manifest["calls"]["replies"] == by_role["teacher"] + by_role["mixed"]
    assert manifest["calls"]["rollouts"] == by_role["student"] == run.rows("rollouts") == QUESTIONS
    broken = run.ids("rejections")
    sound = [row for row in run.read("rollouts")["continuation_id"].drop_nulls() if row not in broken]
    stage = rows_of(mixed, "v2", "mixed-policy")
    assert sorted(stage.filter(pl.col("policy") == "mixed")["response_id"]) == sorted(sound)
    assert len(sound) > QUESTIONS // 2
    assert stage.filter(pl.col("policy") == "teacher").height == round(len(sound) * 0.5)
    assert manifest["schedule"][2]["rows"] == stage.height == run.read("selection").filter(stage="mixed-policy").height
    assert sorted(stage["position"]) == list(range(stage.height))


def test_a_mixed_row_begins_with_the_students_text_to_the_letter_and_says_whose_it_is(mixed: Toy) -> None:
    run = Run(mixed.root / "run")
    replies = {row["response_id"]: row for row in run.read("responses").iter_rows(named=True)}
    stage = rows_of(mixed, "v2", "mixed-policy")
    for row in stage.filter(pl.col("policy") == "mixed").iter_rows(named=True):
        whole_text = row["completion"][0]["content"]
        rollout = replies[replies[row["response_id"]]["prefix_response_id"]]
        begun = (
            "<think>\n" + rollout["reasoning"]
            if rollout["answer"] is None
            else completion_text(rollout["reasoning"], rollout["answer"])
        )
        prefix = begun[: row["prefix_chars"]]
        assert 0 < row["prefix_chars"] < len(whole_text)
        assert whole_text.startswith(prefix)
        assert whole_text[row["prefix_chars"]].isspace() and not prefix[-1].isspace()
        assert (row["teacher"], row["teacher_revision"]) == ("toy-teacher", "r1")
        assert row["student_revision"] == model_sha256(mixed.checkpoint)
        assert row["student_tokens"] > 0 and row["teacher_sentences"] is None and row["n_candidates"] == 1
    others = stage.filter(pl.col("policy") == "teacher")
    assert others["prefix_chars"].to_list() == [0] * others.height
    assert others["student_revision"].null_count() == others.height


def test_table_rollouts_says_what_became_of_each(mixed: Toy) -> None:
    rows = Run(mixed.root / "run").read("rollouts")
    assert set(rows["outcome"]) == {"cut"} and rows["hit_cap"].all()
    assert rows.filter(pl.col("cut_share").is_between(0.5, 1.0)).height == rows.height
    assert (rows["student_tokens"] <= rows["length_cap"]).all()
    assert rows["continuation_id"].null_count() == 0


def test_rollouts_cost_nothing_and_continuations_their_price(mixed: Toy) -> None:
    responses = Run(mixed.root / "run").read("responses")
    assert responses.filter(role="student")["cost_usd"].null_count() == QUESTIONS
    assert (responses.filter(role="mixed")["cost_usd"] > 0).all()


def test_a_second_mix_asks_nothing_and_releases_nothing(mixed: Toy, tmp_path: Path) -> None:
    again = Toy(tmp_path / "again", mixed.url)
    shutil.copytree(mixed.root, again.root)
    before = again.requests()
    steps = again.steps()
    steps.mix(again.checkpoint, again.url)
    assert again.requests() - before <= 8  # one token each, to see that teacher and student are what they were
    assert not steps.release().is_new


def test_lost_tables_of_less_than_a_segment_come_back_from_the_journal_with_their_prefixes(
    mixed: Toy, tmp_path: Path
) -> None:
    again = Toy(tmp_path / "again", mixed.url)
    shutil.copytree(mixed.root, again.root)
    run = Run(again.root / "run")
    before = run.read("responses").sort("response_id").drop("received_at")
    remove_tree(run.table_dir("responses"))
    asked = again.requests()
    again.steps().generate()
    assert again.requests() == asked
    assert run.read("responses").sort("response_id").drop("received_at").equals(before)


def test_another_rule_changes_the_stage_without_a_request(mixed: Toy, tmp_path: Path) -> None:
    again = Toy(tmp_path / "again", mixed.url)
    shutil.copytree(mixed.root, again.root)
    before = again.requests()
    steps = again.steps(off_policy_ratio=0)
    selected = steps.select()
    assert (selected.stages[2].rows, again.requests()) == (selected.mixed_rows, before)
    without = Steps(steps.run, steps.recipe.model_copy(update={"mixed_policy": None}), again.root, steps.reporter)
    assert [stage.name for stage in without.select().stages] == ["low-temperature", "high-temperature"]


def test_without_a_mix_there_is_no_mixed_stage(released: Toy) -> None:
    manifest = read_manifest(released.root / "run/releases/v1")
    assert [entry["stage"] for entry in manifest["schedule"]] == ["low-temperature", "high-temperature"]


def test_rollouts_that_all_end_by_themselves_are_a_message_not_an_empty_config(toy: Toy) -> None:
    before = toy.requests()
    with pytest.raises(MixError, match=r"12 rollouts, 0 of them hit their cap \(12 not_kept\)") as caught:
        toy.steps(length_cap=4.0).mix(toy.checkpoint, toy.url)
    assert "cap_or_wrong" in str(caught.value)
    assert toy.requests() - before <= 8 + QUESTIONS  # the rollouts, and one token each to see who can do what
    assert "mixed" not in Run(toy.root / "run").ids("responses", "role")
    assert [stage.name for stage in toy.steps().select().stages] == ["low-temperature", "high-temperature"]


def test_wrong_rollouts_are_kept_by_their_verdict(toy: Toy) -> None:
    with pytest.raises(MixError, match="No rollout can be continued"):
        toy.steps(length_cap=4.0, keep="wrong", temperature=0.0).mix(toy.checkpoint, toy.url)
    verdicts = Run(toy.root / "run").read("verdicts")
    rollouts = Run(toy.root / "run").read("responses").filter(role="student")
    assert set(rollouts["response_id"]) <= set(verdicts["response_id"])


def test_a_checkpoint_with_another_vocabulary_is_refused_before_anything_is_asked(toy: Toy) -> None:
    other = save_student(toy.root / "other")
    before = toy.requests()
    with pytest.raises(MixError, match="has another vocabulary"):
        toy.steps().mix(other)
    assert toy.requests() == before


@pytest.mark.parametrize("given", ["org/name", "nowhere"])
def test_a_checkpoint_that_is_no_folder_is_a_usage_error(toy: Toy, given: str) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        toy.steps().mix(Path(given))


def deaf(server: Endpoint) -> dict[str, Any]:
    return {"endpoints": [{"url": server.url}], "model": "toy", "tokenizer": "none"}


def test_a_teacher_that_cannot_go_on_costs_no_rollout(toy: Toy) -> None:
    with endpoint() as server:
        steps = toy.steps()
        teacher = steps.recipe.require_teacher().model_validate(deaf(server))
        changed = steps.recipe.model_copy(update={"teacher": teacher})
        with pytest.raises(EndpointError, match="cannot go on from a student's text"):
            Steps(steps.run, changed, toy.root, steps.reporter).mix(toy.checkpoint)
    assert all(ask.body["max_tokens"] == 1 for ask in server.asks)
    assert Run(toy.root / "run").ids("responses", "role") == {"teacher"}


def test_an_endpoint_that_serves_another_student_is_refused(toy: Toy) -> None:
    with endpoint() as server, pytest.raises(MixError, match="serves another model or template"):
        toy.steps().mix(toy.checkpoint, server.url)
    two = b'{"data": [{"id": "a"}, {"id": "b"}]}'
    with endpoint(models_body=two) as server, pytest.raises(MixError, match=r"serves a, b; which one is .*checkpoint"):
        toy.steps().mix(toy.checkpoint, server.url)


def test_the_students_server_may_be_given(toy: Toy) -> None:
    result = toy.steps(prompts=3).mix(toy.checkpoint, toy.url)
    assert (result.questions, result.rollouts, result.continued) == (3, 3, 3)


def test_empty_rollouts_are_counted_and_the_others_go_on(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (asking, flow):
        monkeypatch.setattr(module, "backoff_s", lambda attempt, wish: 0.0)
    empty: list[str] = []

    def spoil(body: Json, ask: Ask) -> Any:
        question = body["messages"][-1]["content"]
        if body["max_tokens"] > 1 and (question in empty or len(set(empty)) < 2):
            empty.append(question)
            choice = {"message": {"content": ""}, "finish_reason": "stop"}
            return {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
        return ask()

    with proxy(toy.url, spoil) as server:
        result = toy.steps().mix(toy.checkpoint, server.url)
    assert len(set(empty)) == result.empty == 2
    assert result.rollouts == result.continued == QUESTIONS - 2


def test_an_empty_selection_has_nothing_to_roll_out(toy: Toy) -> None:
    steps = toy.steps()
    none = steps.recipe.selection.model_copy(update={"params": {}})
    changed = steps.recipe.model_copy(
        update={
            "selection": none,
            "stages": {"s": steps.recipe.stages["low-temperature"].model_copy(update={"where": "false"})},
        }
    )
    with pytest.raises(MixError, match="no reply to roll out on"):
        Steps(steps.run, changed, toy.root, steps.reporter).mix(toy.checkpoint)


def test_the_card_says_how_mixed_rows_came_about(mixed: Toy) -> None:
    card = (mixed.root / "run/releases/v2/README.md").read_text()
    manifest = read_manifest(mixed.root / "run/releases/v2")
    found = manifest["mixed_policy"]
    assert (found["rollouts"], found["hit_cap"], found["cut_rollouts"], found["continued"]) == (QUESTIONS,) * 4
    assert found["mixed_rows"] + found["off_policy_rows"] == manifest["schedule"][2]["rows"]
    assert f"{found['mixed_rows']} rows of stage `mixed-policy` have `policy = mixed`" in card
    assert manifest["rollout"]["weights_sha256"][:16] in card
    assert "Mixed-policy" not in (mixed.root / "run/releases/v1/README.md").read_text()
