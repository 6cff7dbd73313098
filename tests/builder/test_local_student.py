"""The local student's pass: any head, several devices, rows that do not fit."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from score_toys import REPLIES, logprobs, make_run, prompt, recipe, reply, save_student
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3ForCausalLM, set_seed

from builder import local_student as students
from builder.config import Student
from builder.errors import ScoreError
from builder.local_student import LocalStudent, Replica
from builder.score import score
from builder.student import NoLogprobs, Rendered

torch.set_num_threads(1)

ROWS = [Rendered([5, 6, 7], list(range(8, 8 + size)), []) for size in (40, 3, 100, 0, 17, 1, 64)]

# Behind the last hidden state: nothing, a soft cap, a divisor, a factor, a factor behind a hybrid, more in the output.
HEADS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 5.0, "sliding_window": 8},
    "granite": {"logits_scaling": 7.0, "embedding_multiplier": 3.0},
    "cohere": {"logit_scale": 0.3},
    "falcon_h1": {
        "lm_head_multiplier": 0.2, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip


def load(folder: Path, *devices: str, dtype: Any = "float32") -> LocalStudent:
    return LocalStudent(Student(model=str(folder), dtype=dtype), devices)


def with_head(folder: Path, kind: str) -> Path:
    """A student of another architecture in a folder that holds the toy tokenizer."""
    save_student(folder)
    tokens = AutoConfig.from_pretrained(folder).vocab_size
    config = AutoConfig.for_model(
        kind, vocab_size=tokens, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **HEADS[kind],
    )  # fmt: skip
    set_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def values(found: Sequence[np.ndarray | NoLogprobs]) -> list[np.ndarray]:
    assert all(isinstance(value, np.ndarray) for value in found), found
    return [value for value in found if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("kind", HEADS)
def test_logits_by_parts_equal_whole_logits_of_each_row_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scale or a soft cap the output embedding alone is not the model's distribution."""
    local = load(with_head(tmp_path / "student", kind))
    monkeypatch.setattr(students, "_HEAD_POSITIONS", 7)
    for row, found in zip(ROWS, values(local.logprobs(ROWS)), strict=True):
        with torch.no_grad():
            logits = local.replicas[0].model(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0].double()
        every = torch.log_softmax(logits, -1)[len(row.prompt_ids) - 1 : -1]
        assert found == pytest.approx([every[i, token].item() for i, token in enumerate(row.completion_ids)], abs=2e-5)
        assert found.dtype == np.float32


def test_a_head_that_needs_more_than_hidden_states_is_refused(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that looks at the tokens again, say. By parts it would be wrong, and whole logits would fill the memory."""
    forward = Qwen3ForCausalLM.forward

    def copying(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        output = forward(self, input_ids=input_ids, **options)
        output.logits = output.logits.scatter_add(-1, input_ids[..., None], torch.ones(*input_ids.shape, 1))
        return output

    monkeypatch.setattr(Qwen3ForCausalLM, "forward", copying)
    with pytest.raises(ScoreError, match=r"its logits do not follow .* student\.backend=endpoint"):
        load(student)


def test_logits_of_a_long_reply_never_exist_at_once(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = load(student)
    rows = []
    logits = Replica._logits

    def counting(self: Replica, output: Any, hidden: torch.Tensor) -> torch.Tensor:
        found = logits(self, output, hidden)
        rows.append(found.shape[0])
        return found

    monkeypatch.setattr(Replica, "_logits", counting)
    rendered = local.render(prompt()["messages"], "One and two make three. " * 250, "3")
    assert len(values(local.logprobs([rendered]))[0]) == len(rendered.completion_ids)
    assert sum(rows) == len(rendered.completion_ids) > max(rows) == students._HEAD_POSITIONS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_rows_beside_a_row_change_not_one_bit_of_it(student: Path, dtype: str) -> None:
    """So shards, crashes and samples that come later leave every score as it is."""
    local = load(student, dtype=dtype)
    together = values(local.logprobs(ROWS))
    for row, expected in zip(ROWS, together, strict=True):
        assert np.array_equal(values(local.logprobs([row]))[0], expected)


def test_two_devices_give_what_one_gives(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = load(student, "cpu"), load(student, "cpu", "cpu")
    expected = values(one.logprobs(ROWS))
    meeting = threading.Barrier(2, timeout=20)
    taken: list[Replica] = []
    each = Replica.logprobs

    def meet(self: Replica, row: Rendered) -> np.ndarray | NoLogprobs:
        taken.append(self)
        if taken.count(self) == 1:
            meeting.wait()  # neither goes on before the other has a row too
        return each(self, row)

    monkeypatch.setattr(Replica, "logprobs", meet)
    found = values(two.logprobs(ROWS))
    assert set(taken) == set(two.replicas)
    assert len(taken) == len(ROWS)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def short_of_memory(limit: int, error: Exception) -> Callable[..., np.ndarray]:
    """A pass over `limit` tokens at most. Fails too where tensors of the last failure live on."""
    forward = Replica._forward
    held: list[weakref.ref[torch.Tensor]] = []

    def scarce(self: Replica, row: Rendered) -> np.ndarray:
        assert all(tensor() is None for tensor in held), "what did not fit is still held"
        if row.training_tokens > limit:
            activations = torch.zeros(1)
            held.append(weakref.ref(activations))
            raise type(error)(*error.args)
        return forward(self, row)

    return scarce


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "cublas"])
def test_a_row_that_does_not_fit_is_named_and_the_others_have_their_logprobs(
    student: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    local = load(student)
    expected = values(local.logprobs(ROWS))
    monkeypatch.setattr(Replica, "_forward", short_of_memory(80, error))
    found = local.logprobs(ROWS)
    assert found[2] == NoLogprobs("its 104 tokens do not fit in the memory of this machine (cpu)")
    for index in (0, 1, 3, 4, 5, 6):
        assert np.array_equal(found[index], expected[index])


def test_a_reply_that_does_not_fit_has_a_status_and_costs_no_other_its_score(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = reply("long", answer="So it is 3. " * 200)
    run = make_run(tmp_path, [*REPLIES, long], [logprobs(row) for row in [*REPLIES, long]])
    monkeypatch.setattr(Replica, "_forward", short_of_memory(500, ERRORS[0]))
    assert score(run, recipe(student)).statuses == {"no_student_logprobs": 1, "ok": 5}
    scores = {row["response_id"]: row for row in run.read("scores").iter_rows(named=True)}
    assert scores["long"]["status_detail"].endswith("tokens do not fit in the memory of this machine (cpu)")
    assert scores["long"]["mean_delta"] is None


def test_a_device_without_any_memory_ends_the_pass_and_names_no_row(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program took it, say: every row would be called too long, for ever."""
    local = load(student)

    def nothing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Replica, "_forward", nothing)
    monkeypatch.setattr(Replica, "_probe", nothing)
    with pytest.raises(ScoreError, match=r"cannot go on on this machine \(cpu\): out of memory.*CUDA_VISIBLE_DEVICES"):
        local.logprobs(ROWS)


def test_a_student_that_does_not_fit_on_its_device_says_what_to_do(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Qwen3ForCausalLM, "to", full)
    with pytest.raises(ScoreError, match=r"out of memory\. Every device holds the whole model.*tensor-parallel-size"):
        load(student)


def test_another_failure_names_rows_and_device_and_stops_the_other_devices(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = load(student, "cpu", "cpu")
    tried, failed = [], threading.Event()

    def broken(self: Replica, row: Rendered) -> Any:
        tried.append(row)
        if self is local.replicas[0]:
            failed.set()
            raise RuntimeError("device-side assert triggered")
        failed.wait(20)
        time.sleep(0.1)  # until the failure is seen
        return np.zeros(0, np.float32)

    monkeypatch.setattr(Replica, "_forward", broken)
    with pytest.raises(
        ScoreError, match=r"failed over a row of \d+ tokens on this machine \(cpu\): RuntimeError: device-side"
    ):
        local.logprobs(ROWS * 3)
    assert len(tried) < 10, "a few rows a device, and none after the failure is seen"


def test_bfloat16_is_near_float32_and_gives_float32(student: Path) -> None:
    exact, rough = (values(load(student, dtype=dtype).logprobs(ROWS)) for dtype in ("float32", "bfloat16"))
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == np.float32
        assert other == pytest.approx(one, abs=0.5)
    every = np.concatenate(rough)
    assert not np.array_equal(np.concatenate(exact), every)
    rounded = torch.from_numpy(every).bfloat16().float().numpy()
    assert (rounded != every).mean() > 0.9, "the softmax over bfloat16 logits is taken in float32"


def test_no_rows_ask_the_model_nothing(student: Path) -> None:
    assert load(student).logprobs([]) == []
