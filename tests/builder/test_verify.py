import time
from pathlib import Path
from typing import Any

import pytest

from builder import verify as verify_module
from builder.errors import UsageError
from builder.release_rows import deciding_verdicts
from builder.sqlrun import query
from builder.staging import build_staging
from builder.store import Run, columns_table
from builder.verify import Item, math_verify_pool, verify, verify_answers


def prompt(name: str, gold: str | None, gold_type: str | None, verifier: str | None = None) -> dict[str, Any]:
    return {
        "prompt_id": name,
        "messages": [{"role": "user", "content": name}],
        "gold": gold,
        "gold_type": gold_type,
        "verifier": verifier,
        "sources": [],
        "gold_conflicts": 0,
    }


def reply(name: str, prompt_id: str, answer: str | None, role: str = "teacher", finish: str = "stop") -> dict[str, Any]:
    return {
        "response_id": name,
        "prompt_id": prompt_id,
        "role": role,
        "model": "m",
        "sample_index": 0,
        "temperature": 1.0,
        "answer": answer,
        "reasoning_format": "none",
        "finish_reason": finish,
        "tool_calls": 0,
        "replaced_characters": 0,
        "prefix_chars": 0,
    }


def run_with(folder: Path, prompts: list[dict[str, Any]], replies: list[dict[str, Any]]) -> Run:
    run = Run(folder)
    run.append("prompts", columns_table("prompts", prompts))
    run.append("responses", columns_table("responses", replies))
    return run


def verdicts(run: Run) -> dict[str, str]:
    return dict(run.read("verdicts", ["response_id", "verdict"]).sort("response_id").iter_rows())


def test_every_reply_has_a_verdict_or_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.verify.sandbox_problem", lambda: None)  # no program of these is run
    run = run_with(
        tmp_path,
        [
            prompt("math", "72", "number"),
            prompt("pick", "C", "choice"),
            prompt("text", "even", "latex", verifier="exact"),
            prompt("open", None, None),
            prompt("blank", " ", "number"),
            prompt("code", "assert f()", "python_tests"),
            prompt("essay", "one good answer", "reference_text"),
            prompt("bad", "seventy", "number"),
        ],
        [
            reply("a", "math", "It is 72."),
            reply("b", "math", "It is 71."),
            reply("c", "math", None, finish="length"),
            reply("d", "pick", "The answer is C.", role="eval"),
            reply("e", "text", "even", role="mixed"),
            reply("f", "open", "whatever"),
            reply("g", "blank", "5"),
            reply("h", "code", "def f(): ..."),
            reply("i", "bad", "70", role="rewrite"),
            reply("j", "math", "72", role="student"),
            reply("k", "math", "72", role="judge"),
            reply("l", "gone", "72"),
            reply("m", "essay", "another"),
        ],
    )
    result = verify(run)
    assert verdicts(run) == {
        "a": "correct",
        "b": "wrong",
        "c": "wrong",
        "d": "correct",
        "e": "correct",
        "h": "unscorable",
        "i": "unscorable",
        "j": "correct",
    }
    assert (result.computed, result.kept) == (8, 0)
    assert result.verdicts == {"correct": 4, "wrong": 2, "unscorable": 2}
    assert result.by_verifier["choice"] == {"correct": 1}
    assert result.without_gold == 2
    assert result.not_verifiable == {"reference_text": 1}


def test_programs_without_a_sandbox_wait_for_a_machine_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [reply("a", "math", "72"), reply("h", "code", "no program")]
    run = run_with(tmp_path, [prompt("math", "72", "number"), prompt("code", "assert f()", "python_tests")], rows)
    monkeypatch.setattr("builder.verify.sandbox_problem", lambda: "no bubblewrap")
    result = verify(run)
    assert (verdicts(run), result.not_run, result.sandbox_problem) == ({"a": "correct"}, 1, "no bubblewrap")
    monkeypatch.setattr("builder.verify.sandbox_problem", lambda: None)
    assert verify(run).sandbox_problem is None
    assert verdicts(run) == {"a": "correct", "h": "unscorable"}


def test_verifiers_of_the_whole_reply_read_its_reasoning_where_they_need_it(tmp_path: Path) -> None:
    thought = reply("a", "form", "5") | {"reasoning": "two and three"}
    run = run_with(
        tmp_path,
        [
            prompt("form", "think", "format"),
            prompt("tongue", "en", "language"),
            prompt("rules", '[{"id": "punctuation:no_comma", "kwargs": {}}]', "ifeval"),
        ],
        [
            thought,
            reply("b", "form", "5"),
            reply("c", "tongue", "This is it.") | {"reasoning": "Das ist nicht die Antwort, und wir haben sie."},
            reply("d", "rules", "none") | {"reasoning": "a, b"},
        ],
    )
    verify(run)
    assert verdicts(run) == {"a": "correct", "b": "wrong", "c": "wrong", "d": "correct"}


def test_a_judge_decides_only_where_no_verifier_says_right_or_wrong_in_sql_and_in_a_release(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        [prompt("p", "1", "number"), prompt("q", "1", "number", verifier="judge-m")],
        [reply("a", "p", "1"), reply("b", "p", "1"), reply("c", "p", "1"), reply("d", "q", "1")],
    )
    given = [
        ("a", "judge-m", "wrong"),
        ("a", "math", "correct"),
        ("b", "judge-m", "correct"),
        ("b", "judge-n", "wrong"),
        ("c", "judge-m", "wrong"),
        ("c", "math", "error"),
        ("d", "judge-m", "correct"),
        ("d", "math", "wrong"),
    ]
    names = ("response_id", "verifier", "verdict")
    rows = [dict(zip(names, row, strict=True)) | {"verifier_version": "1"} for row in given]
    run.append("verdicts", columns_table("verdicts", rows))
    build_staging(run, {})
    found = query(run.database, "select response_id, verdict from stg_verdicts where decides").to_pylist()
    wanted = {"a": "correct", "b": "wrong", "c": "wrong", "d": "correct"}
    assert {row["response_id"]: row["verdict"] for row in found} == wanted
    assert dict(deciding_verdicts(run).select("response_id", "verdict").collect().iter_rows()) == wanted


def test_a_second_run_computes_only_what_is_missing(tmp_path: Path) -> None:
    run = run_with(tmp_path, [prompt("p", "1", "number")], [reply("a", "p", "1"), reply("b", "p", "2")])
    assert verify(run).computed == 2
    assert verify(run).computed == 0
    run.append("responses", columns_table("responses", [reply("c", "p", "1"), reply("a", "p", "1")]))
    result = verify(run)
    assert (result.computed, result.kept, result.verdicts) == (1, 2, {"correct": 2, "wrong": 1})
    assert [path.name for path in run.parts("verdicts")] == ["part-000-00000.parquet", "part-000-00001.parquet"]


def test_another_version_replaces_the_verdicts_of_that_verifier_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(
        tmp_path,
        [prompt("p", "1", "number"), prompt("q", "C", "choice")],
        [reply("a", "p", "1"), reply("b", "q", "C")],
    )
    verify(run)
    today = verify_module.verifier_version("choice")
    monkeypatch.setattr(verify_module, "verifier_version", lambda name: "new" if name == "math" else today)
    assert verify(run).computed == 1
    rows = run.read("verdicts", ["response_id", "verifier_version"]).sort("response_id").rows()
    assert rows == [("a", "new"), ("b", today)]


def test_a_corrected_gold_is_judged_anew(tmp_path: Path) -> None:
    run = run_with(
        tmp_path, [prompt("a", "4", "number"), prompt("b", "5", "number")], [reply("1", "a", "5"), reply("2", "b", "5")]
    )
    verify(run)
    assert verdicts(run) == {"1": "wrong", "2": "correct"}

    run.replace("prompts", columns_table("prompts", [prompt("a", "5", "number"), prompt("b", "5", "number")]))
    assert verify(run).computed == 1
    assert verdicts(run) == {"1": "correct", "2": "correct"}


def test_an_interrupted_run_keeps_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, [prompt("p", "1", "number")], [reply(f"r{n}", "p", str(n)) for n in range(5)])
    monkeypatch.setattr(verify_module, "CHUNK", 2)
    seen: list[tuple[int, int]] = []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(run, progress=interrupt)
    assert seen == [(2, 5), (4, 5)]
    assert len(verdicts(run)) == 4
    assert verify(run).computed == 1
    assert list(verdicts(run)) == ["r0", "r1", "r2", "r3", "r4"]


def test_long_replies_are_held_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = [reply(f"r{n}", "p", "x" * 90 + f" {n}") for n in range(5)]
    run = run_with(tmp_path, [prompt("p", "1", "number")], long)
    monkeypatch.setattr(verify_module, "CHUNK_CHARACTERS", 150)
    seen: list[int] = []
    assert verify(run, progress=lambda done, total: seen.append(done)).verdicts == {"correct": 1, "wrong": 4}
    assert seen == [2, 4, 5]


def test_an_unknown_verifier_is_named_before_any_work(tmp_path: Path) -> None:
    run = run_with(tmp_path, [prompt("p", "1", "number", verifier="maths")], [reply("a", "p", "1")])
    with pytest.raises(UsageError, match=r"'maths'.*math, choice, exact, set"):
        verify(run)


def test_a_run_without_replies_has_no_verdicts(tmp_path: Path) -> None:
    assert verify(Run(tmp_path)).verdicts == {}


HOSTILE = [
    r"\boxed{9^{9^{9^9}}}",
    r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n^{n}}}",
    "\\boxed{" + "{" * 1900 + "5x" + "}" * 1900 + "}",
    "\\frac{1}{" * 1_200_000,
    "\\boxed{" * 1_500_000,
    "$" * 10_000_000,
    "\\(" * 5_000_000,
    "1," * 5_000_000,
    "the answer is " * 700_000,
]


def test_hostile_answers_end_in_bounded_time_and_harm_no_others() -> None:
    items = [Item("5", text, "math", "latex") for text in HOSTILE]
    items += [Item(r"\sqrt{8}", rf"\boxed{{2\sqrt{{{n}}}}}", "math", "latex") for n in (2, 3)]
    began = time.monotonic()
    with math_verify_pool(workers=1, deadline_s=1.0) as pool:
        outcomes = verify_answers(items, pool)
    assert time.monotonic() - began < 20
    assert [outcome.verdict for outcome in outcomes[:2]] == ["timeout", "timeout"]
    assert all(outcome.verdict != "correct" for outcome in outcomes[: len(HOSTILE)])
    assert [outcome.verdict for outcome in outcomes[len(HOSTILE) :]] == ["correct", "wrong"]
