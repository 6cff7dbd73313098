"""Replies without logprobs, read again by their teacher: a model of a few thousand parameters behind a real server."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proxy import Ask, Json, Spoil, proxy
from score_toys import CHATML, REPLIES, byte_level, logprobs, make_run, prompt, reply, save_student

from builder import rescore as rescoring
from builder import scoring_server, windows
from builder.budget import open_budget
from builder.config import Generation, Recipe, Student, Teacher
from builder.console import Reporter
from builder.errors import BudgetError, ScoreError
from builder.local_server import running_server
from builder.local_student import LocalStudent
from builder.pipeline import Limits, Steps
from builder.rescore import Rescored, check_rescoring, rescorable, tokens_to_rescore
from builder.score import score
from builder.section import Endpoint
from builder.store import Run

torch.set_num_threads(1)

PROMPT_TOKENS = 29
"""Of the toys' question by their template: what an endpoint counts."""


@pytest.fixture(scope="module")
def url(student: Path) -> Iterator[str]:
    with running_server(student, threads=1) as base:
        yield base


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_server, "backoff_s", lambda attempt, wish: 0.0)


def asking(student: Path, *urls: str, rescore: bool = True, **changes: Any) -> Recipe:
    """Teacher and student are the same model here, and see the same prompt."""
    teacher = Teacher(
        model="student", tokenizer=str(student), endpoints=[Endpoint(url=url) for url in urls], rescore=rescore,
        prices={"input": 2.0, "output": 8.0},
    )  # fmt: skip
    here = Student(model=str(student), dtype="float32", system_prompt=None)
    return Recipe(name="toy", teacher=teacher, student=here, generation=Generation(**changes))


def silent(row: Json, **changes: Any) -> Json:
    """The reply as an endpoint without logprobs gives it."""
    return row | {"logprobs_mode": None, "prompt_tokens": PROMPT_TOKENS, **changes}


def table(run: Run, name: str) -> dict[str, Json]:
    rows = list(run.read(name).iter_rows(named=True))
    found = {row["response_id"]: row for row in rows}
    assert len(found) == len(rows), "one row a reply"
    return found


def test_a_rescored_reply_has_the_logprobs_that_the_teacher_gives_its_text(
    student: Path, url: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, [silent(row) for row in REPLIES], values=[])
    recipe = asking(student, url)
    result = score(run, recipe)
    assert result.statuses == {"ok": len(REPLIES)}
    assert result.notes == {"teacher: rescored": len(REPLIES)}
    here = LocalStudent(recipe.require_student())
    stored, scores = table(run, "logprobs"), table(run, "scores")
    for row in REPLIES:
        rendered = here.render(prompt()["messages"], row["reasoning"], row["answer"])
        mine = stored[row["response_id"]]
        assert len(rendered.prompt_ids) == PROMPT_TOKENS
        assert mine["token_ids"] == rendered.completion_ids
        assert np.abs(np.array(mine["logprob"]) - here.logprobs([rendered])[0]).max() < 1e-4
        assert (mine["align_detail"], mine["nonfinite_count"]) == ("rescored", 0)
        assert scores[row["response_id"]]["mean_delta"] == pytest.approx(0, abs=1e-4), "teacher and student are one"
    tokens = sum(PROMPT_TOKENS + len(row["token_ids"]) for row in stored.values())
    assert result.rescored == Rescored(len(REPLIES), 0, tokens, tokens * 2.0 / 1e6)


def test_rescoring_is_off_unless_asked_for_and_asks_for_nothing_twice(student: Path, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, [silent(row) for row in REPLIES], values=[])
    with proxy(url) as server:
        before = score(run, asking(student, server.url, rescore=False))
        assert before.statuses == {"no_teacher_logprobs": len(REPLIES)}
        assert server.asks == []
        after = score(run, asking(student, server.url))
        assert (after.statuses, after.scored) == ({"ok": len(REPLIES)}, len(REPLIES)), "what is so no more is replaced"
        asked = len(server.asks)
        assert asked == len(REPLIES) + 2
        assert table(run, "scores")
        again = score(run, asking(student, server.url))
        assert (again.scored, again.rescored) == (0, Rescored())
        assert len(server.asks) == asked


def test_only_the_teachers_own_whole_replies_without_logprobs_are_rescored(student: Path, tmp_path: Path) -> None:
    rows = [
        silent(reply("mine")), reply("has"), silent(reply("mixed", role="mixed", prefix_chars=4)),
        silent(reply("eval", role="eval")), silent(reply("empty", reasoning=None, answer=None)),
        silent(reply("gone", "another prompt")),
    ]  # fmt: skip
    run = make_run(tmp_path, rows, values=[logprobs(reply("has"))])
    recipe = asking(student, "http://127.0.0.1:9/v1")
    assert rescorable(run, recipe)["response_id"].to_list() == ["mine"]
    assert rescorable(run, asking(student, rescore=False)).height == 0


def test_a_reply_that_cannot_be_shown_as_it_was_written_says_why_and_is_not_sent(
    student: Path, url: str, tmp_path: Path
) -> None:
    odd = silent(reply("odd"), prompt_tokens=PROMPT_TOKENS + 5)
    run = make_run(tmp_path, [silent(reply("fine")), odd, silent(reply("uncounted"), prompt_tokens=None)], values=[])
    with proxy(url) as server:
        result = score(run, asking(student, server.url))
        assert result.statuses == {"no_teacher_logprobs": 1, "ok": 2}
        assert len(server.asks) == 2 + 2
        assert (result.rescored.replies, result.rescored.failed) == (2, 1)
        assert score(run, asking(student, server.url)).scored == 0
    said = "not rescored: the chat template gives a prompt of 29 tokens where the endpoint counted 34"
    stored = table(run, "logprobs")["odd"]
    assert (stored["align_detail"], stored["logprob"], stored["token_end"]) == (said, [], None)
    assert table(run, "scores")["odd"]["status_detail"] == f"the endpoint gave no logprobs for this reply; {said}"


@pytest.mark.parametrize(
    ("tail", "row", "said"),
    [
        ("<think>\n", {"reasoning": None}, "opens a think block, but the reply has no reasoning"),
        ("<think>\n\n</think>\n\n", {}, "closes the think block, but the reply has reasoning"),
    ],
)
def test_a_template_that_contradicts_the_reply_is_a_reason(
    url: str, tmp_path: Path, tail: str, row: Json, said: str
) -> None:
    folder = save_student(tmp_path / "teacher", template=CHATML + tail)
    run = make_run(tmp_path / "run", [silent(reply("r", **row), prompt_tokens=None)], values=[])
    wanted = asking(folder, url)
    result = rescoring.rescore(run, wanted, rescorable(run, wanted))
    assert (result.replies, result.failed, result.tokens) == (0, 1, 0)
    assert said in table(run, "logprobs")["r"]["align_detail"]


def test_what_the_template_opened_is_not_written_twice(url: str, tmp_path: Path) -> None:
    folder = save_student(tmp_path / "teacher", template=CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}")
    run = make_run(tmp_path / "run", [silent(reply("r"), prompt_tokens=None)], values=[])
    wanted = asking(folder, url)
    rescoring.rescore(run, wanted, rescorable(run, wanted))
    ids = table(run, "logprobs")["r"]["token_ids"]
    assert byte_level().decode(ids, skip_special_tokens=False).startswith("One and two make three.")


def test_harmony_replies_are_written_in_their_channels(tmp_path: Path) -> None:
    markers = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
    tokenizer = byte_level()
    tokenizer.add_special_tokens(markers)
    template = (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    folder = save_student(tmp_path / "oss", tokenizer=tokenizer, template=template)
    row = silent(reply("r", answer="So it <|end|> is 3."), prompt_tokens=None)
    run = make_run(tmp_path / "run", [row], values=[])
    with running_server(folder, model_name="student", threads=1) as base:
        wanted = asking(folder, base)
        assert rescoring.rescore(run, wanted, rescorable(run, wanted)).replies == 1
    found = table(run, "logprobs")["r"]
    assert tokenizer.decode(found["token_ids"], skip_special_tokens=False) == (
        f"<|channel|>analysis<|message|>{row['reasoning']}<|end|><|start|>assistant<|channel|>final<|message|>"
        "So it <|end|> is 3."
    )
    assert found["token_ids"].count(tokenizer.token_to_id("<|end|>")) == 1, "the text's own is spelled out"
    assert found["token_end"][-1] == len(f"{row['reasoning']}\n\n{row['answer']}".encode())


def mute(body: Json, ask: Ask) -> Any:
    async def spoil() -> Json:
        answer = await ask()
        for name in ("prompt_logprobs", "logprobs"):
            answer["choices"][0].pop(name)
        return answer

    return spoil()


@pytest.mark.parametrize("spoil", [mute, lambda body, ask: 400], ids=["silent", "refused"])
def test_an_endpoint_that_cannot_rescore_is_refused_with_the_alternatives(
    student: Path, url: str, tmp_path: Path, spoil: Spoil
) -> None:
    run = make_run(tmp_path, [silent(row) for row in REPLIES], values=[])
    with proxy(url, spoil) as server:
        for ask in (lambda wanted: score(run, wanted), lambda wanted: asyncio.run(check_rescoring(wanted))):
            with pytest.raises(ScoreError, match=r"random \(or longest\).*teacher.rescore=false"):
                ask(asking(student, url, server.url))
        assert all(len(body["prompt"]) < 200 for body in server.asks), "no reply was sent"
    assert run.rows("logprobs") == run.rows("scores") == 0


def test_every_endpoint_takes_its_share(student: Path, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, [silent(row) for row in REPLIES], values=[])
    with proxy(url) as one, proxy(url) as other:
        assert score(run, asking(student, one.url, other.url)).statuses == {"ok": len(REPLIES)}
        assert sorted(len(server.asks) - 2 for server in (one, other)) == [2, 3]


def test_a_teacher_without_a_tokenizer_to_be_had_is_refused(student: Path, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, [silent(reply("r"))], values=[])
    teacher = asking(student, url).require_teacher().model_copy(update={"tokenizer": str(tmp_path)})
    with pytest.raises(ScoreError, match=r"tokenizer and chat template of .* are not to be had"):
        asyncio.run(check_rescoring(asking(student, url).model_copy(update={"teacher": teacher})))
    assert run.rows("logprobs") == 0


def test_what_is_rescored_is_stored_before_more_is_paid_and_never_paid_again(
    student: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescoring, "_CHUNK", 2)
    run = make_run(tmp_path, [silent(row) for row in REPLIES], values=[])
    paid = 0

    def spoil(body: Json, ask: Ask) -> Any:
        nonlocal paid
        paid += isinstance(body["prompt"], list) and len(body["prompt"]) > 50  # the proof has 38
        return ask() if paid <= 2 else None

    with proxy(url, spoil) as server, pytest.raises(ScoreError, match=r"2 of 5 replies without logprobs were rescored"):
        score(run, asking(student, server.url))
    kept = table(run, "logprobs")
    assert len(kept) == 2
    with proxy(url) as server:
        assert score(run, asking(student, server.url)).statuses == {"ok": len(REPLIES)}
        assert len(server.asks) == 2 + 3
    assert kept.items() <= table(run, "logprobs").items()


def test_a_long_reply_is_rescored_in_windows_and_its_score_says_so(
    student: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "SMALLEST", 128)
    run = make_run(tmp_path, [silent(reply("long", answer="many words " * 100 + "."))], values=[])
    with proxy(url, lambda body, ask: 400 if len(body["prompt"]) > 300 else ask()) as server:
        result = score(run, asking(student, server.url))
    (note,) = result.notes
    assert note == "teacher: rescored in windows of 256 tokens: later tokens see the 128 or more before them"
    assert result.rescored.tokens > len(table(run, "logprobs")["long"]["token_ids"]) * 1.5, "windows overlap"


def test_retry_asks_again_for_what_could_not_be_rescored(student: Path, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, [silent(reply("r")), silent(reply("s", answer="many words " * 100 + "."))], values=[])
    with proxy(url, lambda body, ask: 400 if len(body["prompt"]) > 300 else ask()) as server:
        assert score(run, asking(student, server.url)).statuses == {"no_teacher_logprobs": 1, "ok": 1}
    with proxy(url) as server:
        assert score(run, asking(student, server.url)).rescored == Rescored()
        assert score(run, asking(student, server.url), retry=True).statuses == {"ok": 2}
        assert len(server.asks) == 2 + 1
    assert len(table(run, "logprobs")) == len(table(run, "scores")) == 2


def test_rescoring_counts_against_the_limits_before_and_after(student: Path, url: str, tmp_path: Path) -> None:
    run, wanted = make_run(tmp_path, [silent(row) for row in REPLIES], values=[]), asking(student, url)
    tokens = tokens_to_rescore(run, wanted)
    assert tokens > 0
    before = open_budget(run, wanted.require_teacher(), None, 10**9).tokens
    tight = Steps(run, wanted, tmp_path, Reporter(quiet=True), limits=Limits(tokens=before + tokens - 1))
    with proxy(url) as server:
        wanted = asking(student, url, server.url)
        with pytest.raises(BudgetError, match="stopped before its first request"):
            replace(tight, recipe=wanted).score()
        assert not server.asks
        replace(tight, recipe=wanted, limits=Limits(tokens=before + tokens)).score()
    assert tokens_to_rescore(run, wanted) == 0
    assert open_budget(run, wanted.require_teacher(), None, 10**9).tokens == before + tokens
