"""What `score.py` measures, each in a process of its own: `python score_arms.py ARM FOLDER NUMBERS…` prints JSON.

`make` writes a run, which the arms after it read; the pass and its memory are measured on random weights and tokens:
what they cost does not depend on what they say.
"""

import json
import re
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from score_data import write_run

from builder.candidate import candidate_of
from builder.config import Recipe, Student, Teacher
from builder.divergence import sentence_probabilities
from builder.score import score
from builder.store import Run
from builder.student import Rendered, StudentTokenizer
from builder.text import canonical_text, completion_text, sentence_byte_ends
from builder.tokens import sentence_of_spans, spans_of_ends

_PLAIN_SPLIT: Final = re.compile(r"(?<=[.!?])\s+|\n+")


class Stored(StudentTokenizer):
    """A student whose pass costs nothing: it returns arrays that are there already."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Student(model=str(folder)))
        self._values = -np.random.default_rng(0).exponential(0.6, 65_536).astype(np.float32)

    def logprobs(self, rows: list[Rendered]) -> list[np.ndarray]:
        return [self._values[: len(row.completion_ids)] for row in rows]


def make(folder: Path, replies: int) -> dict[str, float]:
    """The run; tokens of its replies."""
    return {"tokens": write_run(folder, replies)}


def _rows(run: Run) -> list[dict[str, Any]]:
    """Replies with their logprobs, as `builder score` reads them."""
    both = run.scan("responses").join(run.scan("logprobs"), on="response_id")
    return list(both.sort("response_id").collect().iter_rows(named=True))


def _medians(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """CPU seconds of each side, turn by turn, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions + 1):
        for name, work in sides.items():
            started = time.process_time()
            work()
            found[name].append(time.process_time() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}


def reduce(folder: Path, repetitions: int) -> dict[str, float]:
    """Sentence means of all replies, given the sentence of every token; numpy's with boundaries to find, and found."""
    data = []
    for row in _rows(Run(folder / "run")):
        text = canonical_text(row["reasoning"], row["answer"])
        ends = sentence_byte_ends(text)
        sentence = sentence_of_spans(spans_of_ends(np.asarray(row["token_end"], np.int32)), text.encode(), ends)
        data.append((np.asarray(row["logprob"], np.float32), sentence, len(ends)))
    found = [np.flatnonzero(np.diff(sentence, prepend=-2)) for _, sentence, _ in data]

    def bare(logprobs: np.ndarray, starts: np.ndarray) -> np.ndarray:
        sums = np.add.reduceat(logprobs, starts, dtype=np.float64)
        means: np.ndarray = np.exp(sums / np.diff(starts, append=len(logprobs)))
        return means

    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: [sentence_probabilities(*row) for row in data],
        "bare": lambda: [bare(values, np.flatnonzero(np.diff(place, prepend=-2))) for values, place, _ in data],
        "known": lambda: [bare(values, starts) for (values, _, _), starts in zip(data, found, strict=True)],
    }
    return _medians(sides, repetitions) | {"tokens": sum(len(values) for values, _, _ in data)}


def alignment(folder: Path, repetitions: int) -> dict[str, float]:
    """All that a reply needs before the pass, beside a plain split into sentences and a call of the tokenizer."""
    run, student = Run(folder / "run"), Stored(folder / "student")
    prompts = {row["prompt_id"]: row["messages"] for row in run.read("prompts").iter_rows(named=True)}
    rows = _rows(run)

    def plain() -> None:
        for row in rows:
            text = completion_text(row["reasoning"], row["answer"])
            _PLAIN_SPLIT.split(text)
            student.tokenizer(text, add_special_tokens=False)

    def ours() -> None:
        for row in rows:
            assert candidate_of(row, lambda: None, student, prompts).status == "ok"

    size = sum(len(canonical_text(row["reasoning"], row["answer"]).encode()) for row in rows)
    return _medians({"ours": ours, "bare": plain}, repetitions) | {"bytes": size}


def step(folder: Path, repetitions: int) -> dict[str, float]:
    """`builder score` without its pass, beside a scan of the same columns and the tokenizer on the same texts."""
    run, student = Run(folder / "run"), Stored(folder / "student")
    recipe = Recipe(
        name="toy",
        teacher=Teacher(model="toy", tokenizer=str(folder / "none")),
        student=Student(model=str(folder / "student"), revision="0" * 40),
    )
    texts = [completion_text(row["reasoning"], row["answer"]) for row in _rows(run)]

    def ours() -> None:
        for table in ("scores", "sentences"):
            shutil.rmtree(run.table_dir(table), ignore_errors=True)
        assert score(run, recipe, student=student).statuses == {"ok": len(texts)}

    def scan() -> None:
        run.scan("responses").join(run.scan("logprobs"), on="response_id").collect()

    def tokenizer() -> None:
        for text in texts:
            student.tokenizer(text, add_special_tokens=False)

    return _medians({"ours": ours, "scan": scan, "tokenizer": tokenizer}, repetitions)


def _local(folder: Path, vocabulary: int, **size: int) -> Any:
    """A random Qwen3 student on the CPU, through `LocalStudent`."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, set_seed

    from builder.local_student import LocalStudent

    torch.set_num_threads(1)
    target = folder / f"qwen3-{vocabulary}"
    if not target.exists():
        set_seed(0)
        Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, max_position_embeddings=131_072, **size)).save_pretrained(
            target
        )
        AutoTokenizer.from_pretrained(folder / "student").save_pretrained(target)
    return LocalStudent(Student(model=str(target), dtype="float32"), ["cpu"])


def _random_rows(sizes: list[int], vocabulary: int) -> list[Rendered]:
    draw = np.random.default_rng(0)
    return [
        Rendered(draw.integers(0, vocabulary, 60).tolist(), draw.integers(0, vocabulary, size).tolist(), [])
        for size in sizes
    ]


def student_pass(folder: Path, repetitions: int) -> dict[str, float]:
    """`LocalStudent.logprobs`, a pass a row, beside the model's own forward on one batch with padding and mask."""
    import torch

    local = _local(
        folder, 8_000, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=1, head_dim=64,
    )  # fmt: skip
    model = local.replicas[0].model
    rows = _random_rows([300, 420, 450, 800, 1100], 8_000)
    ids = [row.prompt_ids + row.completion_ids for row in rows]
    width = max(map(len, ids))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in ids])).long()

    def bare() -> None:
        with torch.inference_mode():
            model(input_ids=tokens, attention_mask=mask, use_cache=False)

    found = _medians({"ours": lambda: local.logprobs(rows), "bare": bare}, repetitions)
    return found | {"tokens": sum(len(row.prompt_ids + row.completion_ids) for row in rows)}


def memory(folder: Path, tokens: int, with_logprobs: int) -> dict[str, float]:
    """Peak of a process that scores one long row, or only computes its hidden states."""
    import torch

    local = _local(
        folder, 150_000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    row = _random_rows([tokens - 60], 150_000)[0]
    before = _peak_mib()
    if with_logprobs:
        assert len(local.logprobs([row])[0]) == tokens - 60
    else:
        with torch.inference_mode():
            local.replicas[0].model.get_decoder()(torch.tensor([row.prompt_ids + row.completion_ids]), use_cache=False)
    return {"peak_mib": _peak_mib(), "loaded_mib": before}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


ARMS: Final[dict[str, Callable[..., dict[str, float]]]] = {
    arm.__name__: arm for arm in (make, reduce, alignment, step, student_pass, memory)
}

if __name__ == "__main__":
    print(json.dumps(ARMS[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))))
