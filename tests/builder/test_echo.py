"""Servers without prompt logprobs: those of an echoed prompt, believed where the tokens are those that were sent."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proxy import Ask, Json, Spoil, proxy
from score_toys import REPLIES, byte_level, make_run, prompt, recipe, save_student

from builder.config import Student
from builder.endpoint_student import EndpointStudent
from builder.errors import ScoreError
from builder.local_server import running_server
from builder.local_student import LocalStudent
from builder.prompt_logprobs import read_echo
from builder.score import score
from builder.section import Endpoint
from builder.student import NoLogprobs
from builder.windows import Row


@pytest.fixture(scope="module")
def url(student: Path) -> Iterator[str]:
    with running_server(student, threads=1) as base:
        yield base


def served(student: Path, url: str) -> Student:
    return Student(model=str(student), dtype="float32", backend="endpoint", endpoint=Endpoint(url=url, max_in_flight=4))


def echoing(change: Any = None, *, refuse: bool = True) -> Spoil:
    """A server that refuses prompt logprobs, or drops them in silence; `change` spoils what it echoes."""

    async def spoil(body: Json, ask: Ask) -> Any:
        if "prompt_logprobs" in body:
            if refuse:
                return 400
            answer = await ask()
            answer["choices"][0].pop("prompt_logprobs")
            return answer
        answer = await ask()
        if body.get("echo") and change is not None:
            change(answer["choices"][0])
        return answer

    return spoil


def no_first_value(choice: Json) -> None:
    for column in choice["logprobs"].values():
        column.pop(0)


def one_more_in_front(choice: Json) -> None:
    choice["logprobs"]["tokens"].insert(0, "<s>")
    choice["logprobs"]["token_logprobs"].insert(0, None)


@pytest.mark.parametrize("refuse", [True, False], ids=["refused", "dropped"])
def test_echo_gives_the_logprobs_that_the_student_here_gives(student: Path, url: str, refuse: bool) -> None:
    here = LocalStudent(Student(model=str(student), dtype="float32"))
    rows = [here.render(prompt()["messages"], row["reasoning"], row["answer"]) for row in REPLIES]
    with proxy(url, echoing(refuse=refuse)) as server:
        there = EndpointStudent(served(student, server.url))
        assert there.server.way == "echo"
        found = there.logprobs(rows)
    for expected, values in zip(here.logprobs(rows), found, strict=True):
        assert isinstance(values, np.ndarray)
        assert np.abs(values - expected).max() < 1e-4


def test_a_run_is_scored_by_echo(student: Path, url: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, REPLIES)
    with proxy(url, echoing()) as server:
        through = recipe(student).model_copy(update={"student": served(student, server.url)})
        assert score(run, through).statuses == {"ok": len(REPLIES)}


def spaced(choice: Json) -> None:
    choice["logprobs"]["tokens"] = ["▁" + token for token in choice["logprobs"]["tokens"]]


def test_tokens_that_are_written_with_a_mark_for_their_space_are_still_the_tokens(student: Path, url: str) -> None:
    with proxy(url, echoing(spaced)) as server:
        assert EndpointStudent(served(student, server.url)).server.way == "echo"


def test_a_token_that_the_server_puts_before_a_text_but_not_before_ids_is_passed_over(student: Path, url: str) -> None:
    async def spoil(body: Json, ask: Ask) -> Any:
        if "prompt_logprobs" in body:
            return 400
        answer = await ask()
        if isinstance(body["prompt"], str):
            one_more_in_front(answer["choices"][0])
        return answer

    with proxy(url, spoil) as server:
        assert EndpointStudent(served(student, server.url)).server.way == "echo"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda choice: choice.update(logprobs=None), "no logprobs of an echoed prompt's own tokens"),
        (lambda choice: choice["logprobs"].pop("token_logprobs"), "no logprobs of an echoed prompt's own tokens"),
        (lambda choice: choice["logprobs"].update(token_logprobs=[-0.5]), "echoes 1 logprobs for"),
        (no_first_value, r"echoes \d+ logprobs for \d+ tokens and a new one"),
        (one_more_in_front, r"echoes \d+ logprobs for \d+ tokens and a new one"),
        (lambda choice: choice["logprobs"].pop("tokens"), "whether they are those sent is not known"),
        (lambda choice: choice["logprobs"]["tokens"].reverse(), "reads other tokens: '.*' where '.*' was meant"),
        (lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(7, None), "no logprob for 1 of"),
    ],
    ids=["none", "alternatives only", "new only", "first left out", "one more", "unnamed", "other order", "a hole"],
)
def test_an_echo_that_does_not_add_up_is_refused_at_the_start(student: Path, url: str, change: Any, said: str) -> None:
    with proxy(url, echoing(change)) as server, pytest.raises(ScoreError, match=said) as caught:
        EndpointStudent(served(student, server.url))
    assert "Nothing was scored" in str(caught.value)


def test_an_echo_by_a_model_with_another_vocabulary_is_refused(url: str, tmp_path: Path) -> None:
    other = save_student(tmp_path / "other", tokenizer=byte_level(290))
    with proxy(url, echoing()) as server, pytest.raises(ScoreError, match=r"echoes \d+ logprobs|reads other tokens"):
        EndpointStudent(served(other, server.url))


ROW = Row([5, 6], [7, 8])


def echoed(*values: Any, tokens: list[str] | None = None) -> bytes:
    logprobs = {"tokens": tokens or ["x"] * len(values), "token_logprobs": values, "top_logprobs": [{}] * len(values)}
    return json.dumps({"choices": [{"text": "", "logprobs": logprobs}]}).encode()


@pytest.mark.parametrize("body", [echoed(None, -1.0, -2.5, -0.5, -9.0), echoed(None, -1.0, -2.5, -0.5)])
def test_the_new_token_is_no_part_of_the_prompt_whether_it_comes_or_not(body: bytes) -> None:
    values = read_echo(body, ROW)
    assert isinstance(values, np.ndarray)
    assert values.tolist() == [-2.5, -0.5]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (echoed(-1.0, -2.5, -0.5, -9.0), "echoes 4 logprobs for 4 tokens and a new one"),
        (echoed(-1.0, -2.5, -0.5), "echoes 3 logprobs for 4 tokens and a new one"),
        (echoed(None, -1.0, -2.5, -0.5, -9.0, -9.0), "echoes 6 logprobs"),
        (echoed(None, -1.0, None, -0.5, -9.0), "no logprob for 1 of 2 tokens, first for token 7 at place 0"),
        (echoed(None, -1.0, -2.5, float("-inf"), -9.0), "first for token 8 at place 1"),
        (echoed(None, -1.0, -2.5, float("nan"), -9.0), "no logprob for 1 of 2 tokens"),
        (echoed(None, -1.0, -9999.0, -0.5, -9.0), "no logprob for 1 of 2 tokens"),
        (echoed(None, -1.0, 3.25, -0.5, -9.0), "3.25 nats, which is no logprob"),
        (b'{"choices": [{"text": "x", "logprobs": {"content": []}}]}', "no logprobs of an echoed prompt's own tokens"),
        (b"<html>", "what is no completion"),
    ],
)
def test_an_echo_that_lacks_a_logprob_is_a_reason_and_never_a_number(body: bytes, reason: str) -> None:
    found = read_echo(body, ROW)
    assert isinstance(found, NoLogprobs)
    assert found.lasting
    assert re.search(reason, found.reason), found.reason
