"""What a release is told by others, and what it says of it: versions on the Hub, scores, licences, names, prompts."""

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from release_toys import STAGES, Selected, fill, recipe, rows, whole
from score_toys import prompt

from builder.config import Recipe, Stage, Student
from builder.console import Reporter
from builder.errors import HubError, ReleaseError
from builder.identity import prompt_id
from builder.release import release
from builder.release_rows import _completion, _with_prompts
from builder.selection import select
from builder.show import show_released
from builder.store import columns_table
from builder.student import student_messages
from builder.text import completion_text

REPO = {"repo": "org/toy-distill-teacher", "license": "mit"}


def hub(monkeypatch: pytest.MonkeyPatch, answer: Sequence[int] | HubError) -> list[str]:
    """A Hub with these versions of any dataset, or one that is away; what it was asked for."""
    asked: list[str] = []

    def remote_versions(repo: str) -> list[int]:
        asked.append(repo)
        if isinstance(answer, HubError):
            raise answer
        return list(answer)

    module = ModuleType("builder.hub")
    module.remote_versions = remote_versions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "builder.hub", module)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return asked


@pytest.mark.parametrize(
    ("remote", "version", "known"), [([], "v1", "none"), ([1, 4], "v5", "none"), ([12], "v13", "none")]
)
def test_the_number_follows_the_highest_version_here_and_on_the_hub(
    made: Selected, monkeypatch: pytest.MonkeyPatch, remote: list[int], version: str, known: str
) -> None:
    asked = hub(monkeypatch, remote)
    found = release(made[0], recipe(release=REPO), made[1])
    assert (found.version, found.manifest["parent"], asked) == (version, None, [REPO["repo"]])
    assert bool(found.warnings) == bool(remote)
    assert not remote or f"has v{remote[-1]} on the Hub, this run knows {known}" in found.warnings[0]
    assert whole(found.path)["version"] == version


def test_a_version_here_is_never_numbered_again(made: Selected, monkeypatch: pytest.MonkeyPatch) -> None:
    run, result = made
    hub(monkeypatch, [1])
    first = release(run, recipe(), result)
    (run.releases / "v3").mkdir()  # something of that name is there
    fill(run, ("t",), (0.6,))
    second = release(run, recipe(release=REPO), select(run, recipe(release=REPO)))
    assert (first.version, second.version, second.manifest["parent"], second.warnings) == ("v1", "v4", "v1", ())


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_hub_local_versions_count_and_that_is_said(
    made: Selected, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    asked = hub(monkeypatch, [7] if offline else HubError("The Hub is away."))
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = release(made[0], recipe(release=REPO), made[1])
    assert (found.version, bool(asked)) == ("v1", not offline)
    (warning,) = found.warnings
    assert "is not known, so v1 counts those of this run only" in warning
    assert warning.endswith("HF_HUB_OFFLINE is set." if offline else "The Hub is away.")


def test_rows_chosen_by_scores_that_the_student_never_gave_are_refused(made: Selected) -> None:
    run, _ = made
    other = recipe(student=Student(model="org/other", revision="6" * 40))
    with pytest.raises(
        ReleaseError, match=r"6 of 6 selected replies were never scored by student 'org/other'.*builder score"
    ):
        release(run, other, select(run, other))
    chance = recipe(student=other.student, selection={"rules": [], "selector": "random"})
    found = release(run, chance, select(run, chance))
    assert found.warnings == (
        "6 of 6 selected replies were never scored by student 'org/other': their score columns are null. Run builder "
        "score first to fill them",
    )
    assert rows(found.path, "low-temperature")["student_tokens"].null_count == 3


def test_a_score_that_says_why_there_is_no_number_is_a_score(made: Selected) -> None:
    run, _ = made
    status = pl.when(pl.col("response_id") == "p-0.6-1").then(pl.lit("align_error")).otherwise("status")
    run.replace("scores", run.read("scores").with_columns(status=status, mean_delta=None).to_arrow())
    assert release(run, recipe(), select(run, recipe())).warnings == ()


def test_licences_that_clash_are_named_in_the_manifest_and_said(made: Selected) -> None:
    run, result = made
    sources = [{"source": "nc.jsonl", "revision": None, "license": "cc-by-nc-4.0"}]
    run.append("prompts", columns_table("prompts", [prompt("n", "Why?") | {"sources": sources}]))
    found = release(run, recipe(), result)
    (conflict,) = whole(found.path)["license_conflicts"]
    assert (conflict["source"], conflict["license"], conflict["kind"]) == ("nc.jsonl", "cc-by-nc-4.0", "non-commercial")
    assert found.warnings == (f"license: nc.jsonl {conflict['reason']}",)


def test_sixty_stages_are_sixty_configs(made: Selected) -> None:
    run, _ = made
    many = recipe({f"s{number:02d}": Stage(where="temperature = 0.6") for number in range(60)})
    found = release(run, many, select(run, many))
    assert [stage["rows"] for stage in whole(found.path)["schedule"]] == [3] * 60
    assert len(list((found.path / "data").iterdir())) == 61


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Low", "lower case"), ("a/b", "lower case"), ("a b", "lower case"), ("a:b", "lower case"), ("", "lower case"),
        ("a..b", "two dots"), ("a.", "two dots"), ("a" * 101, "101 characters"), ("candidates", "of its own"),
        ("logprobs", "of its own"), ("über", "lower case"),
    ],
)  # fmt: skip
def test_names_that_no_config_can_have_are_refused_with_the_recipe(name: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=f"cannot be a dataset config: .*{reason}"):
        recipe({name: Stage()})
    with pytest.raises(ValidationError, match=f"cannot be a dataset config: .*{reason}"):
        recipe(mixed_policy={"stage": name})


def test_names_that_would_be_one_table_in_sql_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"'a-b' and 'a\.b' would both be table a_b"):
        recipe({"a-b": Stage(), "a.b": Stage()})


@pytest.mark.parametrize("repo", ["name", "org/name/more", "org/na me", "-org/name", "org/" + "n" * 100, "o--g/name"])
def test_a_repo_that_the_hub_would_not_take_is_refused_with_the_recipe(repo: str) -> None:
    with pytest.raises(ValidationError, match="is no dataset on the Hub: it must be org/name"):
        recipe(release={"repo": repo})


def test_candidates_hold_the_prompts_own_messages_and_stages_the_students(made: Selected) -> None:
    run, result = made
    path = release(run, recipe(), result).path
    for row in rows(path, "candidates").to_pylist():
        assert row["prompt"] == [{"role": "user", "content": f"What is 1 + 2, {row['prompt_id']}?"}]
    assert [one["role"] for one in rows(path, "low-temperature").to_pylist()[0]["prompt"]] == ["system", "user"]


MESSAGES = [
    [{"role": "user", "content": "a?"}],
    [{"role": "system", "content": "Mine."}, {"role": "user", "content": "b?"}],
    [{"role": "user", "content": "c?"}, {"role": "assistant", "content": "C."}, {"role": "user", "content": "d?"}],
]


@pytest.mark.parametrize("system", ["You are a helpful assistant.", None, ""])
def test_prompts_are_what_the_student_sees_in_scoring(system: str | None) -> None:
    student = Student(model="m", system_prompt=system)
    ids = [prompt_id(each) for each in MESSAGES]
    prompts = pl.DataFrame({"prompt_id": ids, "prompt": MESSAGES})
    found = _with_prompts(pl.DataFrame({"prompt_id": ids[::-1]}), prompts, student)
    assert found["prompt"].to_list() == [student_messages(student, each) for each in MESSAGES[::-1]]


def test_completions_are_what_is_scored() -> None:
    parts: list[Any] = [("r", "a"), (None, "a"), ("", "a"), ("r", None), ("r", ""), (None, None)]
    frame = pl.DataFrame(parts, schema={"reasoning": pl.String, "answer": pl.String}, orient="row")
    found = frame.select(completion=_completion())["completion"].to_list()
    assert found == [[{"role": "assistant", "content": completion_text(*each)}] for each in parts]


def test_what_is_printed_fits_80_columns(made: Selected, capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = made
    given: Recipe = recipe(
        {**STAGES, "a-stage-with-a-rather-long-name-for-a-config": Stage()}, release={"withdrawn": "p"}
    )
    show_released(Reporter(), release(run, given, select(run, given)))
    told = capsys.readouterr().out
    assert max(len(line) for line in told.splitlines() if str(run.root) not in line) <= 80
    assert "low-temperature" in told and "candidates" in told and "release: v1, written to" in told
    assert "withdrawn and left out: 1 prompt or reply\n" in told


def test_a_selected_row_without_its_reply_is_refused_and_nothing_stays(made: Selected) -> None:
    run, result = made
    replies = run.read("responses")
    run.replace("responses", replies.filter(pl.col("response_id") != "p-0.6-1").to_arrow())
    with pytest.raises(ReleaseError, match="is null in 1 rows"):
        release(run, recipe(), result)
    assert list(run.releases.iterdir()) == []


def test_a_pair_without_one_of_its_replies_is_refused(made: Selected) -> None:
    run, _ = made
    pairs = [{"prompt_id": "p", "chosen_id": "p-0.6-1", "rejected_id": "gone", "gap": 0.5, "votes": []}]
    run.append("pairs", columns_table("pairs", pairs))
    judging = recipe({"judge": Stage(kind="reward")})
    with pytest.raises(ReleaseError, match="Column 'rejected' is null in 1 rows"):
        release(run, judging, select(run, judging))
