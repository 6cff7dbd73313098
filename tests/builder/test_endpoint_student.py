"""A served student against the same student in this process; a proxy before a real server spoils its answers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proxy import Ask, Json, Spoil, proxy
from score_toys import CHATML, REPLIES, byte_level, make_run, prompt, recipe, reply, save_student

from builder import scoring_server
from builder.config import Recipe, Student
from builder.endpoint_student import EndpointStudent
from builder.errors import ScoreError
from builder.local_server import running_server
from builder.local_student import LocalStudent
from builder.models import student_id
from builder.prompt_logprobs import read_logprobs
from builder.score import score
from builder.section import Endpoint
from builder.store import Run
from builder.student import NoLogprobs
from builder.windows import Row

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def url(student: Path) -> Iterator[str]:
    with running_server(student, threads=1) as base:
        yield base


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_server, "backoff_s", lambda attempt, wish: 0.0)


def served(student: Path, url: str, **changes: Any) -> Student:
    return Student(
        model=str(student), dtype="float32", backend="endpoint", endpoint=Endpoint(url=url, max_in_flight=4), **changes
    )


def through(student: Path, url: str) -> Recipe:
    return recipe(student).model_copy(update={"student": served(student, url)})


def scores(run: Run) -> dict[str, Json]:
    return {row["response_id"]: row for row in run.read("scores").iter_rows(named=True)}


def test_endpoint_and_local_student_agree_on_every_token(student: Path, url: str) -> None:
    here, there = LocalStudent(Student(model=str(student), dtype="float32")), EndpointStudent(served(student, url))
    messages = prompt()["messages"]
    rows = [here.render(messages, row["reasoning"], row["answer"]) for row in REPLIES]
    assert rows == [there.render(messages, row["reasoning"], row["answer"]) for row in REPLIES]
    found = there.logprobs(rows)
    for row, expected, values in zip(rows, here.logprobs(rows), found, strict=True):
        assert isinstance(values, np.ndarray)
        assert values.dtype == np.float32
        assert len(values) == len(row.completion_ids)
        assert np.abs(values - expected).max() < 1e-4
    assert (here.context, here.vocabulary) == (there.context, there.vocabulary)


def test_scores_through_the_endpoint_are_the_scores_of_the_same_student_here(
    student: Path, url: str, tmp_path: Path
) -> None:
    here, there = make_run(tmp_path / "here", REPLIES), make_run(tmp_path / "there", REPLIES)
    local, remote = score(here, recipe(student)), score(there, through(student, url))
    assert (remote.student_id, remote.statuses) == (local.student_id, local.statuses)
    one, other = scores(here), scores(there)
    for name, row in one.items():
        for column, value in row.items():
            close = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            assert other[name][column] == close, column
    assert score(there, recipe(student)).scored == 0, "scores of one backend count for the other"


def test_backend_and_endpoint_change_neither_student_id_nor_recipe_hash(student: Path) -> None:
    local, remote = recipe(student), through(student, "http://host:1/v1")
    assert student_id(remote.require_student()) == student_id(local.require_student())
    assert remote.hash() == local.hash()
    assert "host" not in json.dumps(remote.decisive())


def test_no_more_rows_are_in_flight_than_the_recipe_allows(student: Path, url: str) -> None:
    messages = prompt()["messages"]
    with proxy(url) as server:
        there = EndpointStudent(served(student, server.url))
        rows = [there.render(messages, "One and two. " * n, "three") for n in range(1, 30)]
        assert all(isinstance(values, np.ndarray) for values in there.logprobs(rows))
    assert 1 < server.most_in_flight <= 4


def without(*names: str) -> Spoil:
    async def spoil(body: Json, ask: Ask) -> Json:
        answer = await ask()
        for name in names:
            answer["choices"][0].pop(name)
        return answer

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("prompt_logprobs", "logprobs"), "no prompt logprobs .* no logprobs of an echoed prompt's own tokens"),
        (lambda body, ask: 400, "answered 400"),
        (lambda body, ask: 404, "answered 404"),
        (lambda body, ask: 503, "answered 503.*Nothing was scored. Check that the server runs"),
        (lambda body, ask: None, "Check that the server runs"),
        (lambda body, ask: b"<html>", "what is no completion: '<html>'"),
        (lambda body, ask: {"choices": [], "error": "busy"}, "what is no completion"),
    ],
)
def test_an_endpoint_that_cannot_score_is_refused_before_anything_is_rendered(
    student: Path, url: str, tmp_path: Path, spoil: Any, said: str
) -> None:
    run = make_run(tmp_path, REPLIES)
    with proxy(url, spoil) as server, pytest.raises(ScoreError, match=said) as caught:
        score(run, through(student, server.url))
    assert "Nothing was scored" in str(caught.value)
    assert len(server.asks) <= 3
    assert run.rows("scores") == 0


def test_a_server_that_names_no_token_ids_is_trusted_by_its_logprobs(student: Path, url: str) -> None:
    with proxy(url, without("prompt_token_ids")) as server:
        assert EndpointStudent(served(student, server.url)).server.model == "student"


def test_a_model_with_another_vocabulary_is_refused(url: str, tmp_path: Path) -> None:
    other = save_student(tmp_path / "other", tokenizer=byte_level(290))
    with pytest.raises(ScoreError, match=r"the endpoint reads other tokens, from place .* this very model"):
        EndpointStudent(served(other, url))


def test_another_vocabulary_shows_in_the_logprobs_where_no_ids_are_given(url: str, tmp_path: Path) -> None:
    other = save_student(tmp_path / "other", tokenizer=byte_level(290))
    with proxy(url, without("prompt_token_ids")) as server, pytest.raises(ScoreError, match="prompt logprobs for"):
        EndpointStudent(served(other, server.url))


def test_a_template_that_cannot_render_does_not_stop_the_test_of_the_endpoint(url: str, tmp_path: Path) -> None:
    folder = save_student(tmp_path / "student", template=CHATML + "{{ raise_exception('no') }}")
    assert EndpointStudent(served(folder, url)).server.model == "student"


def test_a_tokenizer_that_does_not_fit_its_model_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match="cannot read a test text: its tokenizer gives ids past the 300 embeddings"):
        EndpointStudent(served(save_student(tmp_path / "student", embeddings=300), url))


def test_the_name_is_the_model_then_its_last_part_and_only_a_folder_may_have_any(student: Path, url: str) -> None:
    there = EndpointStudent(served(student, url))
    assert there.server.model == "student"
    assert there._name([str(student), "student"]) == str(student)
    assert there._name(["student", "b"]) == "student"
    assert there._name(["anything"]) == "anything"
    assert there._name([]) == "student"
    with pytest.raises(ScoreError, match=r"serves a, b, not .*--served-model-name student"):
        there._name(["a", "b"])
    there.student = there.student.model_copy(update={"model": "org/small-4b", "revision": "0" * 40})
    assert there._name(["org/small-4b"]) == "org/small-4b"
    assert there._name(["small-4b"]) == "small-4b"
    assert there._name([]) == "org/small-4b"
    with pytest.raises(ScoreError, match="serves org/other, not 'org/small-4b'"):
        there._name(["org/other"])


def test_a_student_without_revision_is_refused_before_the_endpoint_is_asked() -> None:
    with pytest.raises(ScoreError, match="'org/student' is not pinned"):
        EndpointStudent(served(Path("org/student"), "http://127.0.0.1:9/v1"))


ROW = Row([5, 6], [7, 8])


def answer(*entries: Any, **changes: Any) -> bytes:
    choice = {"prompt_logprobs": [None, {"6": {"logprob": -1.0}}, *entries], "prompt_token_ids": [5, 6, 7, 8]}
    return json.dumps({"choices": [choice | changes]}).encode()


def test_the_logprob_is_that_of_the_token_asked_for_whatever_stands_beside_it() -> None:
    body = answer(
        {"9": {"logprob": -0.1, "rank": 1}, "7": {"logprob": -2.5, "rank": 3, "decoded_token": ""}},
        {"8": {"logprob": -0.5}, "7": {"logprob": None}},
    )
    values = read_logprobs(body, ROW)
    assert isinstance(values, np.ndarray)
    assert values.tolist() == [-2.5, -0.5]
    beside = body.replace(b"-0.1", b"-Infinity").replace(b"null}", b"NaN}")
    assert np.array_equal(read_logprobs(beside, ROW), values)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (answer(None, {"8": {"logprob": -1.0}}), "no logprob for 1 of 2 tokens, first for token 7 at place 0"),
        (answer({"7": {"logprob": -1.0}}, {"9": {"logprob": -1.0}}), "first for token 8 at place 1"),
        (answer({"7": {"logprob": None}}, {"8": {}}), "no logprob for 2 of 2 tokens"),
        (answer({"7": {"logprob": float("nan")}}, {"8": {"logprob": -1.0}}), "for 1 of 2 tokens"),
        (answer({"7": {"logprob": float("-inf")}}, {"8": {"logprob": -1.0}}), "for 1 of 2 tokens"),
        (answer({"7": {"logprob": -9000.0}}, {"8": {"logprob": -9999.0}}), "for 2 of 2 tokens"),
        (answer({"7": {"logprob": -1.0}}, {"8": {"logprob": 3.25}}), "3.25 nats, which is no logprob"),
        (answer({"7": {"logprob": -1.0}}), "3 prompt logprobs for 4 tokens"),
        (answer({}, {}, prompt_token_ids=[5, 6, 9, 8]), r"from place 2 on: \[9, 8\] where \[7, 8\] were meant"),
        (answer({}, {}, prompt_logprobs=None), "gives no prompt logprobs"),
        (b'{"choices": [{"prompt_logprobs": 3}]}', "what is no completion"),
        (b'{"choices": [', "what is no completion"),
        (b"\xff\xfe", "what is no completion"),
    ],
)
def test_a_logprob_that_is_not_there_is_a_reason_and_never_a_number(body: bytes, reason: str) -> None:
    found = read_logprobs(body, ROW)
    assert isinstance(found, NoLogprobs)
    assert found.lasting
    assert re.search(reason, found.reason), found.reason


def test_a_row_without_logprobs_gets_a_named_status_and_the_others_are_scored(
    student: Path, url: str, tmp_path: Path
) -> None:
    marked = reply("marked", answer="A reply that the server does not like, for once.")
    ids = LocalStudent(Student(model=str(student))).render(prompt()["messages"], marked["reasoning"], marked["answer"])

    async def spoil(body: Json, ask: Ask) -> Json:
        found = await ask()
        if body["prompt"] == ids.prompt_ids + ids.completion_ids:
            found["choices"][0]["prompt_logprobs"][-1] = None
        return found

    run = make_run(tmp_path, [*REPLIES, marked])
    with proxy(url, spoil) as server:
        assert score(run, through(student, server.url)).statuses == {"no_student_logprobs": 1, "ok": len(REPLIES)}
    row = scores(run)["marked"]
    assert row["status_detail"].startswith(f"the endpoint gives no logprob for 1 of {len(ids.completion_ids)} tokens")
    assert row["teacher_counts"] is row["mean_delta"] is row["log_ratio_nats"] is None
    assert row["student_tokens"] == ids.training_tokens


def test_a_row_that_the_server_finds_too_long_gets_its_words_as_status(student: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, [*REPLIES, reply("long", answer="many words " * 100 + ".")])
    with running_server(student, threads=1, max_model_len=400) as base:
        assert score(run, through(student, base)).statuses == {"no_student_logprobs": 1, "ok": len(REPLIES)}
    detail = scores(run)["long"]["status_detail"]
    assert re.match(r"the endpoint refuses [\d,]+ tokens and a new one: it answered 400: ", detail)
    assert "maximum context length is 400 tokens" in detail
    assert "127.0.0.1" not in detail


@pytest.mark.parametrize("broken", [500, None], ids=["error", "connection"])
def test_a_row_that_fails_every_time_is_given_up_while_the_server_lives(
    student: Path, url: str, tmp_path: Path, broken: int | None
) -> None:
    run = make_run(tmp_path, [*REPLIES, reply("long", answer="many words " * 100 + ".")])
    with proxy(url, lambda body, ask: broken if len(body["prompt"]) > 400 else ask()) as server:
        assert score(run, through(student, server.url)).statuses == {"no_student_logprobs": 1, "ok": len(REPLIES)}
    assert "failed 6 times, but not for a short row; last, it " in scores(run)["long"]["status_detail"]


def test_a_row_that_takes_the_server_down_is_tried_alone_and_given_up_and_the_others_are_scored(
    student: Path, url: str, tmp_path: Path
) -> None:
    down = 0
    alone: list[int] = []

    def spoil(body: Json, ask: Ask) -> Any:
        nonlocal down
        if len(body["prompt"]) > 400:
            alone.append(server.in_flight)
            down = 3
        if down:
            down -= 1
            return None
        return ask()

    long = reply("long", answer="many words " * 100 + ".")
    run = make_run(tmp_path, [*REPLIES, long, *[reply(f"more{i}", answer=f"It is {i} too.") for i in range(8)]])
    with proxy(url, spoil) as server:
        result = score(run, through(student, server.url))
    assert result.statuses == {"no_student_logprobs": 1, "ok": len(REPLIES) + 8}
    assert alone[-2:] == [1, 1]
    assert len(alone) == 3
    assert "broke down 2 times over its" in scores(run)["long"]["status_detail"]


def test_a_row_that_ends_the_server_for_good_waits_for_another_call(student: Path, url: str, tmp_path: Path) -> None:
    """Whether the row or the end of the server's time was at fault is not known: nothing is said about the row."""
    deaths = down = 0

    def spoil(body: Json, ask: Ask) -> Any:
        nonlocal deaths, down
        if len(body["prompt"]) > 400:
            deaths += 1
            down = 3 if deaths < 3 else 10**6
        if down:
            down -= 1
            return None
        return ask()

    run = make_run(tmp_path, [*REPLIES, reply("long", answer="many words " * 100 + ".")])
    with proxy(url, spoil) as server, pytest.raises(ScoreError, match=r"of up to 1,\d+ tokens. This call scored 5 rep"):
        score(run, through(student, server.url))
    assert deaths == 3
    assert "long" not in scores(run)
    assert score(run, through(student, url)).statuses == {"ok": len(REPLIES) + 1}


def test_a_server_that_dies_ends_the_step_and_a_rerun_finishes_it(student: Path, url: str, tmp_path: Path) -> None:
    replies = [*REPLIES, *[reply(f"more{i}", answer="It is so. " * i + "Yes.") for i in range(12)]]
    run, whole = make_run(tmp_path / "a", replies), make_run(tmp_path / "b", replies)
    left = 10

    def spoil(body: Json, ask: Ask) -> Any:
        nonlocal left
        left -= 1
        return ask() if left >= 0 else None

    with proxy(url, spoil) as server, pytest.raises(ScoreError, match="This call scored 8 replies, which are kept; 9"):
        score(run, through(student, server.url))
    assert len(server.asks) <= 10 + 2 * 4 + 6, "the four in flight with a short row each, then patience: no other row"
    assert run.rows("scores") == run.rows("sentences") == 8
    assert set(run.read("scores")["status"]) == {"ok"}
    assert score(run, through(student, url)).scored == 9
    score(whole, through(student, url))
    one, other = scores(run), scores(whole)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name]["teacher_counts"] == other[name]["teacher_counts"]
        assert one[name]["mean_delta"] == pytest.approx(other[name]["mean_delta"], abs=1e-5)


def test_a_server_that_refuses_the_key_in_the_middle_ends_the_step(student: Path, url: str, tmp_path: Path) -> None:
    asked = 0

    def spoil(body: Json, ask: Ask) -> Any:
        nonlocal asked
        asked += 1
        return ask() if asked <= 3 else 401

    run = make_run(tmp_path, REPLIES)
    with proxy(url, spoil) as server, pytest.raises(ScoreError, match=r"answered 401.*1 replies, which are kept; 4"):
        score(run, through(student, server.url))
    assert run.rows("scores") == 1
    assert len(server.asks) <= 3 + 2 * 4 + 1, "a refusal is not waited out"
