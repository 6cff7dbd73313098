"""The student before training: renders a reply as training will; one that runs here gives its logprobs too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from builder.config import Student
from builder.errors import ScoreError
from builder.identity import Message
from builder.text import THINK_CLOSE, THINK_OPEN, completion_text
from builder.tokens import token_bytes

if TYPE_CHECKING:
    import torch

_BATCH_TOKENS: Final = 16_384
_BATCH_ROWS: Final = 64
_HEAD_POSITIONS: Final = 1_024
"""Positions whose logits exist at once: 1,024 × 152k float32 is 0.6 GB; a whole 64k reply would be 40 GB."""


class CannotRender(Exception):
    """The student's template or context cannot hold this reply; the message says why."""


@dataclass(frozen=True)
class NoLogprobs:
    """In place of a row's logprobs: why there are none, and whether asking again would bring the same."""

    reason: str
    lasting: bool = True


@dataclass(frozen=True)
class Rendered:
    """One reply in the student's tokens. `pieces` are the bytes of the completion tokens."""

    prompt_ids: list[int]
    completion_ids: list[int]
    pieces: list[bytes]

    @property
    def training_tokens(self) -> int:
        """Tokens of prompt, completion and end of turn."""
        return len(self.prompt_ids) + len(self.completion_ids) + 1


def student_messages(student: Student | None, messages: Sequence[Message]) -> list[dict[str, str]]:
    """The prompt as the student sees it in training and inference: its system prompt first, unless it has its own."""
    own = [dict(message) for message in messages]
    if student is None or not student.system_prompt or own[0]["role"] == "system":
        return own
    return [{"role": "system", "content": student.system_prompt}, *own]


@contextmanager
def _loading(student: Student) -> Iterator[None]:
    """What transformers and the Hub raise while they load a model, as ScoreError."""
    try:
        yield
    except Exception as error:  # which one depends on what is broken and in which of three libraries
        raise ScoreError(
            f"Student {student.model!r} cannot be loaded: {error}. Check student.model and student.revision."
        ) from error


def _hub_revision(student: Student) -> str | None:
    """The commit to load; a folder on this machine has none."""
    return None if Path(student.model).is_dir() else student.revision


class StudentTokenizer:
    """The student's tokenizer and chat template: what rendering needs, without weights and without torch.

    `vocabulary` and `context` are the model's, in token ids and in tokens a row (None where its configuration names
    no limit). Raises ScoreError for a student that is not pinned, or whose tokenizer cannot be loaded or is not fast.
    """

    def __init__(self, student: Student) -> None:
        try:
            from transformers import AutoConfig, AutoTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise ScoreError(
                f"Rendering for a student needs transformers ({error}). Install it with: pip install 'tempered[local]'."
            ) from error
        if not Path(student.model).is_dir() and student.revision is None:
            raise ScoreError(
                f"Student {student.model!r} is not pinned. Scores of an unknown version cannot be compared or rebuilt; "
                "set student.revision to the full commit id."
            )
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.student = student
        with _loading(student):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(student.model, revision=_hub_revision(student))
            config: Any = AutoConfig.from_pretrained(student.model, revision=_hub_revision(student)).get_text_config()
        if not self.tokenizer.is_fast:
            raise ScoreError(
                f"Student {student.model!r} has no fast tokenizer. Sentences are found by the bytes of its tokens, "
                "which only fast tokenizers give; convert it with AutoTokenizer(..., use_fast=True)."
            )
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = getattr(config, "vocab_size", None) or len(self.tokenizer)
        self._bytes = token_bytes(self.tokenizer.backend_tokenizer.to_str())

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, nothing added. Raises CannotRender for ids that the model has no embedding for."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if found and max(found) >= self.vocabulary:
            raise CannotRender(f"its tokenizer gives ids past the {self.vocabulary} embeddings of the model")
        return found

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters; the parts of a split character end at the same place."""
        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [end for _, end in spans]

    def prompt(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """The prompt by the chat template, text and token ids; the reply begins behind it. Raises CannotRender."""
        try:
            text: str = self.tokenizer.apply_chat_template(
                student_messages(self.student, messages), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs of strangers and raise what they like
            raise CannotRender(f"the chat template fails: {type(error).__name__}: {error}") from error
        ids = self.ids(text)
        if not ids:
            raise CannotRender("the chat template gives an empty prompt")
        return text, ids

    def render(self, messages: Sequence[Message], reasoning: str | None, answer: str | None) -> Rendered:
        """Prompt by the chat template, completion as text behind it, as the trainer does. Raises CannotRender."""
        if self._bytes is None:
            raise CannotRender("the bytes of its tokens are not known for this kind of tokenizer")
        prompt, prompt_ids = self.prompt(messages)
        completion_ids = self.ids(_after(prompt, completion_text(reasoning, answer)))
        return Rendered(prompt_ids, completion_ids, [self._bytes.get(index, b"") for index in completion_ids])


class LocalStudent(StudentTokenizer):
    """A causal language model on this machine, through transformers. Raises ScoreError when it cannot be loaded."""

    def __init__(self, student: Student) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ScoreError(
                f"Scoring with a local student needs torch and transformers ({error}). "
                "Install them with: pip install 'tempered[local]', or serve the student and set "
                "student.backend=endpoint."
            ) from error
        super().__init__(student)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with _loading(student):
            model: Any = AutoModelForCausalLM.from_pretrained(
                student.model, revision=_hub_revision(student), dtype=self._dtype()
            )
        self.model = model.to(self.device).eval()
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._chunked = self._head_stands_apart()

    def logprobs(self, rows: Sequence[Rendered]) -> list[np.ndarray]:
        """Logprob of each completion token, nats, float32, one array a row; batched by length."""
        order = sorted(range(len(rows)), key=lambda index: rows[index].training_tokens)
        result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        batch: list[int] = []
        for index in order:
            widest = rows[index].training_tokens
            if batch and (len(batch) >= _BATCH_ROWS or widest * (len(batch) + 1) > _BATCH_TOKENS):
                self._forward(rows, batch, result)
                batch = []
            batch.append(index)
        if batch:
            self._forward(rows, batch, result)
        return result

    def _forward(self, rows: Sequence[Rendered], batch: list[int], result: list[np.ndarray]) -> None:
        import torch

        ids = [rows[index].prompt_ids + rows[index].completion_ids for index in batch]
        width = max(len(row) for row in ids)
        tokens = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for place, row in enumerate(ids):
            tokens[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            if self._chunked:
                hidden = self.model.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False)[0]
                head = self._head
            else:
                hidden = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
                head = None
            for place, index in enumerate(batch):
                start, stop = len(rows[index].prompt_ids), len(ids[place])
                result[index] = self._gather(hidden[place, start - 1 : stop - 1], tokens[place, start:stop], head)

    def _gather(self, hidden: "torch.Tensor", targets: "torch.Tensor", head: Any) -> np.ndarray:
        """Logprobs of `targets`, log-softmax in float32 over a bounded number of positions at a time."""
        import torch

        found = []
        for start in range(0, len(targets), _HEAD_POSITIONS):
            chunk = hidden[start : start + _HEAD_POSITIONS]
            logits = (head(chunk) if head is not None else chunk).float()
            wanted = targets[start : start + _HEAD_POSITIONS]
            chosen = logits.gather(-1, wanted[:, None])[:, 0]
            found.append(chosen - torch.logsumexp(logits, dim=-1))
        array: np.ndarray = torch.cat(found).cpu().numpy() if found else np.zeros(0, np.float32)
        return array.astype(np.float32)

    def _head(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Logits of hidden states: the output embedding and, where the configuration names one, its soft cap."""
        import torch

        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def _head_stands_apart(self) -> bool:
        """Whether `_head` on the last hidden state gives the model's own logits; some models scale them otherwise."""
        import torch

        probe = torch.arange(8, device=self.device)[None, :] % int(self.model.config.get_text_config().vocab_size)
        with torch.inference_mode():
            whole = self.model(input_ids=probe, use_cache=False).logits
            hidden = self.model.get_decoder()(input_ids=probe, use_cache=False)[0]
            apart = self._head(hidden)
        return bool(torch.allclose(whole.float(), apart.float(), rtol=1e-4, atol=1e-6))

    def _dtype(self) -> "torch.dtype":
        import torch

        if self.student.dtype == "auto":
            return torch.bfloat16 if self.device == "cuda" else torch.float32
        dtype: torch.dtype = getattr(torch, self.student.dtype)
        return dtype


def _after(prompt: str, completion: str) -> str:
    """The completion less what the generation prompt has opened already; the trainer renders by the same rule."""
    opened = prompt.rstrip()
    thinks = completion.startswith(THINK_OPEN)
    if opened.endswith(THINK_OPEN) and not thinks:
        raise CannotRender("the chat template opens a think block, but the reply has no reasoning")
    if opened.endswith(THINK_CLOSE) and thinks:
        raise CannotRender("the chat template closes the think block, but the reply has reasoning")
    if not opened.endswith(THINK_OPEN):
        return completion
    space, rest = prompt[len(opened) :], completion.removeprefix(THINK_OPEN)
    while space and rest.startswith(space[0]):
        space, rest = space[1:], rest[1:]
    return rest
