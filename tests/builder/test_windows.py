"""Rows that a server does not bear whole: what is cut, and what is said of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from proxy import Json, proxy
from score_toys import make_run, prompt, recipe, reply
from transformers import AutoModelForCausalLM

from builder import scoring_server, windows
from builder.config import Recipe, Student
from builder.endpoint_student import EndpointStudent
from builder.local_server import running_server
from builder.local_student import LocalStudent
from builder.score import score
from builder.section import Endpoint
from builder.store import Run
from builder.student import NoLogprobs
from builder.windows import Row, Windowed, sizes

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def url(student: Path) -> Iterator[str]:
    with running_server(student, threads=1) as base:
        yield base


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_server, "backoff_s", lambda attempt, wish: 0.0)
    monkeypatch.setattr(windows, "SMALLEST", 128)


def through(student: Path, url: str) -> Recipe:
    served = Student(
        model=str(student), dtype="float32", backend="endpoint", endpoint=Endpoint(url=url, max_in_flight=4)
    )
    return recipe(student).model_copy(update={"student": served})


LONG = reply("long", answer="many words " * 100 + ".")


def holding(tokens: int) -> Any:
    """A server with room for so many tokens, the new one among them."""
    return lambda body, ask: 400 if len(body["prompt"]) >= tokens and isinstance(body["prompt"], list) else ask()


def details(run: Run) -> dict[str, tuple[str, str | None]]:
    return {name: (status, detail) for name, status, detail in run.read("scores").select(
        "response_id", "status", "status_detail"
    ).iter_rows()}  # fmt: skip


@pytest.mark.parametrize("head", [1, 5, 63, 64, 100, 127, 128, 200])
@pytest.mark.parametrize("tail", [1, 60, 64, 65, 127, 128, 129, 500, 1000])
def test_windows_cover_each_completion_token_once_with_half_a_window_before_it(head: int, tail: int) -> None:
    row = Row(list(range(head)), list(range(head, head + tail)))
    for size in sizes(row):
        parts = list(windows.windows(row, size))
        assert [index for part in parts for index in part.completion_ids] == row.completion_ids
        for part in parts:
            assert part.tokens <= size
            assert part.ids == list(range(part.ids[0], part.ids[-1] + 1))
            assert part.ids[0] == 0 or len(part.prompt_ids) >= size // 2
        assert parts[-1].tokens == size, "the last has as much context as fits"


def test_windows_are_powers_of_two_below_the_row_down_to_the_smallest() -> None:
    assert sizes(Row([0] * 500, [0] * 500)) == [512, 256, 128]
    assert sizes(Row([0] * 11, [0] * 500)) == [256, 128], "512 would be the row itself"
    assert sizes(Row([0] * 12, [0] * 500)) == [512, 256, 128]
    assert sizes(Row([0] * 10, [0] * 100)) == []


def test_a_window_gives_the_logprobs_of_its_own_text_and_the_first_those_of_the_whole(student: Path, url: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    with proxy(url, holding(400)) as server:
        there = EndpointStudent(through(student, server.url).require_student())
        row = there.render(prompt()["messages"], LONG["reasoning"], LONG["answer"])
        (found,) = there.logprobs([row])
    assert isinstance(found, Windowed)
    assert (found.tokens, found.values.dtype, len(found.values)) == (256, np.float32, len(row.completion_ids))
    expected: list[float] = []
    for part in windows.windows(Row(row.prompt_ids, row.completion_ids), 256):
        with torch.no_grad():
            every = torch.log_softmax(model(torch.tensor([part.ids])).logits[0], -1)
        first = len(part.prompt_ids)
        expected += [every[first + i - 1, token].item() for i, token in enumerate(part.completion_ids)]
    assert np.abs(found.values - np.array(expected, np.float32)).max() < 1e-4
    whole = LocalStudent(Student(model=str(student), dtype="float32")).logprobs([row])[0]
    apart = np.abs(found.values - whole)
    assert apart[: 255 - len(row.prompt_ids)].max() < 1e-4
    assert apart.max() > 1e-3, "an approximation, and so it is said"


def test_a_row_above_the_servers_limit_is_scored_in_windows_and_says_so(
    student: Path, url: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, [reply("short"), LONG])
    with proxy(url, holding(400)) as server:
        result = score(run, through(student, server.url))
    note = "student: in windows of 256 tokens: later tokens see the 128 or more before them"
    assert details(run) == {"short": ("ok", None), "long": ("ok", note)}
    assert (result.statuses, result.reasons, result.notes) == ({"ok": 2}, {}, {note: 1})


def dies_above(tokens: int, asked: list[int]) -> Any:
    """A server that a request of more tokens takes down for the next three requests."""
    down = 0

    def spoil(body: Json, ask: Any) -> Any:
        nonlocal down
        asked.append(len(body["prompt"]))
        if len(body["prompt"]) > tokens:
            down = 3
        if down:
            down -= 1
            return None
        return ask()

    return spoil


def test_a_row_that_takes_the_server_down_is_scored_in_smaller_windows(student: Path, url: str, tmp_path: Path) -> None:
    asked: list[int] = []
    run = make_run(tmp_path, [reply("short"), LONG, reply("more", answer="It is so too.")])
    with proxy(url, dies_above(300, asked)) as server:
        assert score(run, through(student, server.url)).statuses == {"ok": 3}
    assert details(run)["long"] == (
        "ok",
        "student: in windows of 256 tokens: later tokens see the 128 or more before them",
    )
    deaths = [size for size in asked if size > 300]
    whole = max(deaths)
    assert deaths == [whole, whole, whole, *([1023] if whole >= 1024 else []), 511], (
        "together, twice alone, then halves"
    )


def test_a_longer_row_does_not_take_down_again_what_a_shorter_one_did(student: Path, url: str, tmp_path: Path) -> None:
    asked: list[int] = []
    longer = reply("longer", answer="many words " * 130 + ".")
    run = make_run(tmp_path, [reply("short"), LONG, longer])
    one = through(student, url).require_student()
    size = len(EndpointStudent(one).render(prompt()["messages"], longer["reasoning"], longer["answer"]).completion_ids)
    with proxy(url, dies_above(300, asked)) as server:
        lonely = through(student, server.url)
        endpoint = Endpoint(url=server.url, max_in_flight=1)
        lonely = lonely.model_copy(
            update={"student": lonely.require_student().model_copy(update={"endpoint": endpoint})}
        )
        assert score(run, lonely).statuses == {"ok": 3}
    assert max(asked) < size, "the longer one was never sent whole"


def test_a_row_whose_smallest_window_takes_the_server_down_has_no_logprobs(
    student: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "SMALLEST", 256)
    run = make_run(tmp_path, [LONG])
    with proxy(url, dies_above(200, [])) as server:
        there = EndpointStudent(through(student, url).require_student())
        found = there.render(prompt()["messages"], LONG["reasoning"], LONG["answer"])
        assert score(run, through(student, server.url)).statuses == {"no_student_logprobs": 1}
    tokens = found.training_tokens
    deaths = 2 + len(sizes(Row(found.prompt_ids, found.completion_ids)))
    assert f"broke down {deaths} times over its {tokens:,} tokens alone" in str(details(run)["long"][1])


def test_a_window_that_lacks_a_logprob_makes_no_score_of_the_others(student: Path, url: str, tmp_path: Path) -> None:
    async def spoil(body: Json, ask: Any) -> Any:
        if len(body["prompt"]) > 255:
            return 400
        found = await ask()
        if len(body["prompt"]) == 255:
            found["choices"][0]["prompt_logprobs"][-1] = None
        return found

    run = make_run(tmp_path, [LONG])
    with proxy(url, spoil) as server:
        assert score(run, through(student, server.url)).statuses == {"no_student_logprobs": 1}
    assert "no logprob for 1 of" in str(details(run)["long"][1])


def test_none_is_lost_when_the_server_goes_away_between_two_windows(student: Path, url: str, tmp_path: Path) -> None:
    left = 6

    def spoil(body: Json, ask: Any) -> Any:
        nonlocal left
        if len(body["prompt"]) > 255:
            return 400
        left -= 1
        return ask() if left >= 0 else None

    with proxy(url, spoil) as server:
        there = EndpointStudent(through(student, server.url).require_student())
        (found,) = there.logprobs([there.render(prompt()["messages"], LONG["reasoning"], LONG["answer"])])
    assert isinstance(found, NoLogprobs)
    assert not found.lasting
