"""Columns and rows of a release: joins that neither lose nor double a row."""

import shutil

import polars as pl
import pyarrow as pa
import pytest
from release_toys import STAGES, STUDENT, Selected, recipe, replies_of, rows, score_of, verdict_of, whole
from score_toys import prompt

from builder import release_rows
from builder.config import Stage
from builder.errors import ReleaseError
from builder.models import student_id
from builder.release import release
from builder.release_rows import fit, unplaced
from builder.schema import RELEASE_CANDIDATES, RELEASE_GRPO, RELEASE_REWARD, RELEASE_SFT, TABLES
from builder.selection import select
from builder.store import columns_table


def test_rows_of_a_stage_are_whole_and_ordered_by_id(made: Selected) -> None:
    found = release(made[0], recipe(), made[1])
    table = rows(found.path, "low-temperature")
    assert table.schema.equals(RELEASE_SFT, check_metadata=False)
    assert table.schema.field("mean_delta").metadata[b"description"]
    first = table.to_pylist()[0]
    reasoning = "Thinking of p | at 0.6, sample 1. Step. Step. Step. Step. Step. "
    assert first == {
        "prompt": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is 1 + 2, p?"},
        ],
        "completion": [{"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\nSo it is 3."}],
        "position": first["position"],
        "response_id": "p-0.6-1", "prompt_id": "p", "domain": "math", "temperature": 0.6, "policy": "teacher",
        "teacher": "org/teacher", "teacher_revision": "7" * 40, "n_candidates": 2, "teacher_sentences": 7,
        "sentence_count": 20, "mean_delta": 0.25, "student_tokens": 41, "prefix_chars": 0, "student_revision": None,
        "source": "toy.jsonl",
        "source_license": "mit",
    }  # fmt: skip
    assert table["response_id"].to_pylist() == ["p-0.6-1", "q-0.6-1", "s-0.6-1"]
    assert sorted(table["position"].to_pylist()) == [0, 1, 2]


def test_candidates_hold_every_teacher_reply_once(made: Selected) -> None:
    """Scores of other students and verdicts of other verifiers neither add rows nor answer for the recipe's own."""
    run, _ = made
    every = [row for name in "pqs" for row in replies_of(name)]
    other = [score_of(row) | {"student_id": "another", "mean_delta": 9.0} for row in every]
    run.append("scores", columns_table("scores", other))
    run.append("verdicts", columns_table("verdicts", [verdict_of(row, "a-judge", "wrong") for row in every]))
    run.append("responses", columns_table("responses", [every[0] | {"response_id": "e", "role": "eval"}]))
    table = rows(release(run, recipe(), select(run, recipe())).path, "candidates")
    assert table.schema.equals(RELEASE_CANDIDATES, check_metadata=False)
    found = pl.DataFrame(pl.from_arrow(table))
    assert found["response_id"].to_list() == sorted(row["response_id"] for row in every)
    broken = dict(found.select("response_id", "rejected_by").iter_rows())
    assert broken == {
        row["response_id"]: ["answer_wrong"] if row["response_id"].endswith("1.0-1") else [] for row in every
    }
    verdicts = dict(found.select("response_id", "verdict").iter_rows())
    assert verdicts == {row["response_id"]: verdict_of(row)["verdict"] for row in every}
    assert set(found["mean_delta"]) == {0.25}


def test_without_the_named_verifier_the_strictest_verdict_decides_as_in_sql(made: Selected) -> None:
    run, _ = made
    row = replies_of("p")[0]
    verdicts = [verdict_of(row, name, v) for name, v in (("a", "error"), ("b", "wrong"), ("c", "correct"))]
    shutil.rmtree(run.table_dir("verdicts"))
    run.append("verdicts", columns_table("verdicts", verdicts))
    table = rows(release(run, recipe(), select(run, recipe())).path, "candidates").to_pylist()
    assert [(r["verdict"], r["rejected_by"]) for r in table if r["response_id"] == row["response_id"]] == [
        ("wrong", ["answer_wrong"])
    ]
    assert [r["verdict"] for r in table if r["prompt_id"] == "q"] == [None] * 4


def test_a_selected_row_without_its_prompt_is_refused(made: Selected) -> None:
    run, result = made
    run.replace("prompts", columns_table("prompts", [prompt("p"), prompt("q")]))
    with pytest.raises(ReleaseError, match="Column 'prompt' is null in 1 rows"):
        release(run, recipe(), result)


def test_labels_lose_folders_and_keep_organisations() -> None:
    labels = ["org/model", "/a/b/model", "/a/model/", "~/model", "model", "/no_slash"]
    expected = ["org/model", "model", "model", "model", "model", "no_slash"]
    assert [unplaced(label) for label in labels] == expected
    assert pl.DataFrame({"x": labels}).select(release_rows._label("x"))["x"].to_list() == expected


def test_logprobs_of_kept_replies_are_released_where_asked(made: Selected) -> None:
    asked = recipe(release={"logprobs": True})
    path = release(made[0], asked, select(made[0], asked)).path
    table = rows(path, "logprobs")
    kept = {name for stage in STAGES for name in rows(path, stage)["response_id"].to_pylist()}
    assert set(table["response_id"].to_pylist()) == kept
    assert table.num_rows == 6


def test_prompts_and_pairs_are_released_in_their_own_columns(made: Selected) -> None:
    run, _ = made
    pairs = [{"prompt_id": "p", "chosen_id": "p-0.6-1", "rejected_id": "p-0.6-0", "gap": 0.5, "votes": []}]
    run.append("pairs", columns_table("pairs", pairs))
    staged = recipe({"rl": Stage(kind="grpo"), "judge": Stage(kind="reward"), "low": Stage()})
    path = release(run, staged, select(run, staged)).path
    assert rows(path, "rl").schema.equals(RELEASE_GRPO)
    assert rows(path, "rl")["solution"].to_pylist() == ["3", "3", "3"]
    judged = rows(path, "judge")
    assert judged.schema.equals(RELEASE_REWARD)
    row = judged.to_pylist()[0]
    assert "sample 1" in row["chosen"][0]["content"]
    assert "sample 0" in row["rejected"][0]["content"]
    assert (row["gap"], row["prompt"][1]["content"]) == (0.5, "What is 1 + 2, p?")
    assert [entry["tokens"] for entry in whole(path)["schedule"]][:2] == [None, None]


def test_rows_beyond_32_bit_offsets_are_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.DataFrame({"response_id": ["a", "b", "c"], "rule_name": ["x"] * 3, "observed": [1.0, None, 2.0]})
    schema = pa.schema([TABLES["rejections"].schema.field(name) for name in table.columns])
    monkeypatch.setattr(release_rows, "_CHUNK_BYTES", 1)
    found = fit(table.to_arrow(), schema)
    assert found.schema.equals(schema, check_metadata=True)
    assert found["response_id"].num_chunks == 3
    assert found.to_pylist() == table.to_dicts()
    assert fit(table.clear().to_arrow(), schema).equals(schema.empty_table())


def test_without_a_student_rows_are_released_unscored(made: Selected) -> None:
    run, _ = made
    unscored = recipe(student=None, selection={"rules": [], "selector": "random"})
    path = release(run, unscored, select(run, unscored)).path
    found = rows(path, "low-temperature").to_pylist()
    assert {row["teacher_sentences"] for row in found} == {row["student_tokens"] for row in found} == {None}
    assert [message["role"] for message in found[0]["prompt"]] == ["user"]
    assert whole(path)["schedule"][0]["tokens"] is None


def test_teacher_sentences_are_counted_anew_at_a_margin_that_scores_do_not_hold(made: Selected) -> None:
    """At 0.125 exactly a sentence is common, a short one is nobody's; another student's lists do not count."""
    run, _ = made
    lists = {"p_teacher": [0.625, 0.75, 1.0], "p_student": [0.5, 0.5, 0.0], "teacher_tokens": [3, 3, 2]}
    every = [row["response_id"] for name in "pqs" for row in replies_of(name)]
    mine = [
        {
            "response_id": name,
            "student_id": student_id(STUDENT),
            "byte_end": [1, 2, 3],
            "student_tokens": [3] * 3,
            **lists,
        }
        for name in every
    ]
    run.append("sentences", columns_table("sentences", mine))
    run.append("sentences", columns_table("sentences", [row | {"student_id": "another"} for row in mine]))
    fine = recipe(selection={"params": {"teacher_margin": 0.125}})
    table = rows(release(run, fine, select(run, fine)).path, "low-temperature")
    assert table["teacher_sentences"].to_pylist() == [1, 1, 1]


def test_the_manifest_counts_unusual_scores_of_its_own_student_only(made: Selected) -> None:
    run, _ = made
    scores = run.read("scores").to_dicts()
    for row in scores[:2]:
        row["status_detail"] = "student: in windows"
    scores[2] |= {"status": "align_error", "status_detail": "no number, no remark"}
    other = [row | {"student_id": "another", "status_detail": "someone else's"} for row in scores]
    run.replace("scores", columns_table("scores", scores + other))
    found = release(run, recipe(), select(run, recipe()))
    assert found.manifest["score_remarks"] == {"student: in windows": 2}
