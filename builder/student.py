"""The student before training: renders a reply as training will. Where its logprobs come from is another module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builder.config import Student
from builder.errors import ScoreError
from builder.identity import Message
from builder.text import THINK_CLOSE, THINK_OPEN, completion_text
from builder.tokens import AlignError, align, align_offsets, spans_of_ends, token_bytes


class CannotRender(Exception):
    """The student's template or context cannot hold this reply; the message says why."""


@dataclass(frozen=True)
class NoLogprobs:
    """In place of a row's logprobs: why there are none, and whether asking again would bring the same."""

    reason: str
    lasting: bool = True


@dataclass(frozen=True)
class Rendered:
    """One reply in the student's tokens.

    `pieces` are the bytes of the completion tokens, none where that is not known of its kind of tokenizer; `completion`
    is the text behind the prompt.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    pieces: list[bytes]
    completion: str = ""

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
def loading(student: Student) -> Iterator[None]:
    """What transformers and the Hub raise while they load a model, as ScoreError."""
    try:
        yield
    except Exception as error:  # which one depends on what is broken and in which of three libraries
        raise ScoreError(
            f"Student {student.model!r} cannot be loaded: {error}. Check student.model and student.revision."
        ) from error


def hub_revision(student: Student) -> str | None:
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
        with loading(student):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(student.model, revision=hub_revision(student))
            config: Any = AutoConfig.from_pretrained(student.model, revision=hub_revision(student)).get_text_config()
        if not self.tokenizer.is_fast:
            raise ScoreError(
                f"Student {student.model!r} has no fast tokenizer. Sentences are found by the bytes of its tokens, "
                "which only fast tokenizers give; convert it with AutoTokenizer(..., use_fast=True)."
            )
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.vocabulary: int = getattr(config, "vocab_size", None) or len(self.tokenizer)
        known = token_bytes(self.tokenizer.backend_tokenizer.to_str())
        self._pieces = [known.get(index, b"") for index in range(max(len(self.tokenizer), *known) + 1)] if known else []

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
        prompt, prompt_ids = self.prompt(messages)
        completion = _after(prompt, completion_text(reasoning, answer))
        completion_ids = self.ids(completion)
        pieces = [self._pieces[index] for index in completion_ids] if self._pieces else []
        return Rendered(prompt_ids, completion_ids, pieces, completion)

    def align(self, rendered: Rendered, reasoning: str | None, answer: str | None) -> np.ndarray:
        """Bytes of the canonical text that each completion token covers, int32, shape (tokens, 2). Raises AlignError.

        By the bytes of the tokens where they spell the text, which is exact for parts of characters too; by offsets
        where they do not: what this tokenizer lower-cases, composes or does not know, its model reads so in training.
        """
        if rendered.pieces:
            try:
                return spans_of_ends(align(rendered.pieces, reasoning, answer))
            except AlignError:  # the offsets prove or refuse what the bytes do not say
                pass
        coded = self.tokenizer(rendered.completion, add_special_tokens=False, return_offsets_mapping=True)
        if coded["input_ids"] != rendered.completion_ids:
            raise AlignError("its tokenizer gives other tokens for the same text each time")
        blank = [piece.isspace() for piece in rendered.pieces]
        return align_offsets(rendered.completion, coded["offset_mapping"], reasoning, answer, blank)


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
