"""What a score was missing and got later, whose score it is, and what is said of one that is not as usual."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from proxy import proxy
from score_toys import CHATML, REPLIES, make_run, recipe, reply, save_student

from builder import scoring_server
from builder.config import Recipe, Selection, Student
from builder.errors import ScoreError
from builder.local_server import running_server
from builder.models import quantisation
from builder.score import score
from builder.section import Endpoint
from builder.selection import select
from builder.store import Run

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def url(student: Path) -> Iterator[str]:
    with running_server(student, threads=1) as base:
        yield base


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_server, "backoff_s", lambda attempt, wish: 0.0)


def through(student: Path, url: str) -> Recipe:
    served = Student(model=str(student), dtype="float32", backend="endpoint", endpoint=Endpoint(url=url))
    return recipe(student).model_copy(update={"student": served})


def statuses(run: Run) -> dict[tuple[str, str], str]:
    found = run.read("scores").select("response_id", "student_id", "status").rows()
    result = {(response, student): status for response, student, status in found}
    assert len(result) == len(found), "one row a reply and student"
    return result


LONG = reply("long", answer="many words " * 100 + ".")


def small(body: dict[str, Any], ask: Any) -> Any:
    return 400 if len(body["prompt"]) > 400 else ask()


def test_what_a_server_refused_is_asked_again_on_demand_and_replaces_what_stood_there(
    student: Path, url: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", [*REPLIES, LONG])
    other = score(run, recipe(save_student(tmp_path / "other", seed=1))).student_id
    with proxy(url, small) as server:
        first = score(run, through(student, server.url))
        assert first.statuses == {"no_student_logprobs": 1, "ok": 5}
        asked = len(server.asks)
        assert score(run, through(student, server.url)).scored == 0
        assert len(server.asks) == asked, "a rerun sends nothing"
        still = score(run, through(student, server.url), retry=True)
        assert (still.scored, still.statuses) == (1, first.statuses)
    with proxy(url) as server:
        again = score(run, through(student, server.url), retry=True)
        assert (again.scored, again.statuses) == (1, {"ok": 6})
        assert len(server.asks) == 3, "two for the proof, one for the row"
        assert score(run, through(student, server.url), retry=True).scored == 0
    found = statuses(run)
    assert found[("long", other)] == found[("long", again.student_id)] == "ok"
    assert len(found) == 12
    ids = run.read("sentences").select("response_id", "student_id")
    assert ids.height == ids.unique().height == 12


def test_a_server_that_is_not_there_takes_no_status_away(student: Path, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, [LONG])
    with proxy(url, small) as server:
        score(run, through(student, server.url))
    before = run.read("scores")
    with pytest.raises(ScoreError, match="cannot be reached"):
        score(run, through(student, "http://127.0.0.1:9/v1"), retry=True)
    assert run.read("scores").equals(before)


def test_students_stand_side_by_side_and_the_recipe_says_whose_scores_select(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [reply(f"r{i}", sample_index=i, **text) for i, text in enumerate(TEXTS)])
    recipes = [
        recipe(save_student(tmp_path / name, seed=seed)).model_copy(
            update={"selection": Selection(rules=["score_missing"], selector="mean_delta")}
        )
        for seed, name in enumerate(("one", "two"))
    ]
    students = [score(run, each).student_id for each in recipes]
    assert len(statuses(run)) == 2 * len(TEXTS)
    assert set(statuses(run).values()) == {"ok"}
    for each, identity in zip(recipes, students, strict=True):
        mine = run.read("scores").filter(run.read("scores")["student_id"] == identity)
        best = mine.sort("mean_delta", descending=True)["response_id"][0]
        select(run, each, recipe_dir=tmp_path)
        assert run.read("selection")["grain_id"].to_list() == [best]
    other = save_student(tmp_path / "three", seed=3)
    unscored = recipes[0].model_copy(update={"student": recipe(other).student})
    assert select(run, unscored, recipe_dir=tmp_path).kept == 0, "nobody else's scores stand in"


TEXTS = [
    {"reasoning": "One and two make three. That was easy to see.", "answer": "So it is 3."},
    {"reasoning": "每个苹果三元。所以一共六元。", "answer": "六元，我想是这样。"},
    {"reasoning": "Only one sentence is here but it is a long one", "answer": "Yes it is so"},
]


def quantised(folder: Path, settings: dict[str, Any] | None, *, nested: bool = False) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"text_config": {"quantization_config": settings}} if nested else {"quantization_config": settings}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("settings", "method"),
    [({"quant_method": "fp8"}, "fp8"), ({"bits": 4}, "method not named"), (None, None), ({}, None)],
)
def test_a_quantised_checkpoint_is_known_by_its_config(
    tmp_path: Path, settings: dict[str, Any] | None, method: str | None, nested: bool
) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert quantisation(Student(model=str(quantised(tmp_path, settings, nested=nested)))) == method


def test_scores_of_a_quantised_student_say_so_row_by_row(student: Path, url: str, tmp_path: Path) -> None:
    folder = quantised(save_student(tmp_path / "student"), {"quant_method": "gptq", "bits": 4})
    run = make_run(tmp_path / "run", [*REPLIES, reply("none", logprobs_mode="unknown")])
    result = score(run, through(folder, url))
    note = "student: its weights are quantised (gptq)"
    assert result.statuses == {"ok": 5, "processed_logprobs": 1}
    assert result.notes == {note: 5}
    assert "ok" not in result.reasons
    found = run.read("scores")
    assert set(found.filter(found["status"] == "ok")["status_detail"]) == {note}
    assert score(run, through(student, url)).student_id != result.student_id


def test_a_reply_without_reasoning_is_scored_unless_the_template_opens_a_think_block(tmp_path: Path) -> None:
    replies = [reply("thinks"), reply("empty", reasoning=""), reply("none", reasoning=None)]
    run = make_run(tmp_path / "plain", replies)
    assert score(run, recipe(save_student(tmp_path / "one"))).statuses == {"ok": 3}
    opened = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"
    run = make_run(tmp_path / "opened", replies)
    result = score(run, recipe(save_student(tmp_path / "two", template=opened)))
    assert result.statuses == {"ok": 1, "student_cannot_render": 2}
    assert result.reasons == {
        "student_cannot_render": "the chat template opens a think block, but the reply has no reasoning"
    }
