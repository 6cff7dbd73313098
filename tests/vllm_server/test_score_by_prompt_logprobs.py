"""The student behind a real vLLM against the same weights in this process."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from builder import scoring_server, windows
from builder.config import Student
from builder.endpoint_student import EndpointStudent
from builder.local_student import LocalStudent
from builder.prompt_logprobs import REQUESTS
from builder.section import Endpoint
from builder.student import NoLogprobs, Rendered, StudentTokenizer
from builder.text import split_reasoning
from builder.toy.task import problems, reply
from builder.toy.train import make_student
from builder.vllm_server import running_vllm
from builder.windows import Row, Windowed

pytestmark = pytest.mark.vllm

TOKENS = 512
"""--max-model-len of the server; the model itself has more positions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tmp_path_factory.mktemp("model") / "student", steps=30, threads=1)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with running_vllm(folder, max_model_len=TOKENS) as base:
        yield base


def here(folder: Path) -> Student:
    return Student(model=str(folder), dtype="float32")


def there(folder: Path, url: str) -> Student:
    endpoint = Endpoint(url=url, max_in_flight=8)
    return Student(model=str(folder), dtype="float32", backend="endpoint", endpoint=endpoint)


def rendered(student: StudentTokenizer, number: int) -> list[Rendered]:
    """Replies as a teacher would write them, to questions of the toy task."""
    found = []
    for problem in problems(number, seed=5):
        reasoning, answer, _ = split_reasoning(reply(problem, random.Random(number)))
        found.append(student.render([{"role": "user", "content": problem.question}], reasoning, answer))
    return found


def test_vllm_and_the_student_here_agree_on_every_token(folder: Path, url: str) -> None:
    local, served = LocalStudent(here(folder)), EndpointStudent(there(folder, url))
    rows = rendered(local, 30)
    assert rows == rendered(served, 30)
    assert sum(len(row.completion_ids) for row in rows) > 1000
    largest = 0.0
    for expected, values in zip(local.logprobs(rows), served.logprobs(rows), strict=True):
        assert isinstance(values, np.ndarray)
        largest = max(largest, float(np.abs(values - expected).max()))
    assert largest < 1e-4


def test_a_prefix_that_vllm_has_cached_is_scored_all_the_same(folder: Path, url: str) -> None:
    """A cached prefix has no logits any more; vLLM has to leave its cache alone where prompt logprobs are asked."""
    served = EndpointStudent(there(folder, url))
    (row,) = rendered(served, 1)
    first, second = served.logprobs([row])[0], served.logprobs([row])[0]
    assert isinstance(first, np.ndarray) and isinstance(second, np.ndarray)
    assert np.allclose(first, second, atol=1e-5)


def test_an_echoed_prompt_gives_the_same(folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_server, "REQUESTS", {"echo": REQUESTS["echo"]})
    local, served = LocalStudent(here(folder)), EndpointStudent(there(folder, url))
    assert served.server.way == "echo"
    rows = rendered(local, 10)
    for expected, values in zip(local.logprobs(rows), served.logprobs(rows), strict=True):
        assert isinstance(values, np.ndarray)
        assert np.abs(values - expected).max() < 1e-4


def filled(folder: Path, size: int) -> Rendered:
    """A row of so many tokens, less the one that a server adds."""
    row = rendered(LocalStudent(here(folder)), 1)[0]
    room = size - 1 - len(row.prompt_ids)
    return Rendered(row.prompt_ids, (row.completion_ids * size)[:room], [])


def test_a_row_that_fills_the_server_is_scored_and_longer_ones_get_a_reason(folder: Path, url: str) -> None:
    """vLLM adds a token whatever is asked; it has words of its own for a row that leaves no room for just that."""
    local, served = LocalStudent(here(folder)), EndpointStudent(there(folder, url))
    full, more, much = (filled(folder, TOKENS + extra) for extra in (0, 1, 100))
    assert full.training_tokens == TOKENS
    values, no_room, refused = served.logprobs([full, more, much])
    assert isinstance(values, np.ndarray)
    assert np.abs(values - local.logprobs([full])[0]).max() < 1e-4
    assert isinstance(no_room, NoLogprobs)
    assert no_room.reason.startswith(f"the endpoint refuses {TOKENS} tokens and a new one: it answered 400")
    assert isinstance(refused, NoLogprobs)
    assert f"maximum context length is {TOKENS} tokens" in refused.reason


def test_longer_rows_are_scored_in_windows_that_fill_the_server(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window's logprobs are those that the student here gives for the same tokens by themselves."""
    monkeypatch.setattr(windows, "SMALLEST", 128)
    local, served = LocalStudent(here(folder)), EndpointStudent(there(folder, url))
    row = filled(folder, 3 * TOKENS)
    (found,) = served.logprobs([row])
    assert isinstance(found, Windowed)
    assert found.tokens == TOKENS
    parts = list(windows.windows(Row(row.prompt_ids, row.completion_ids), TOKENS))
    alone = local.logprobs([Rendered(part.prompt_ids, part.completion_ids, []) for part in parts])
    expected = [values for values in alone if isinstance(values, np.ndarray)]
    assert len(expected) == len(parts) > 3
    assert np.abs(found.values - np.concatenate(expected)).max() < 1e-4
