"""Rows with teacher logprobs for the KD plugin of Axolotl: tokens, labels and a target beside each of them.

Its chat strategy puts logprobs to the end of the rendered conversation, whatever tokens a template adds there, and
divides them by their sum over the k listed tokens, which is 1 for the one token that a release holds. So rows come
tokenised: each target stands where the token that it is for is predicted, and keeps its value.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from builder.config import Student
from builder.errors import ReleaseError
from builder.format_rows import Row, Told, Unfit
from builder.student import CannotRender, Rendered, StudentTokenizer
from builder.text import THINK_CLOSE, THINK_OPEN
from builder.tokens import AlignError, align, spans_of_ends, token_bytes

IGNORED: Final = -100
_NOTHING: Final = -1e9
"""Logprob where there is no target; the mask is 0 there. Axolotl pads with the same."""
_PROBE: Final = "An answer."
_ONE: Final[Any] = pa.list_(pa.int32())
SCHEMA: Final = pa.schema(
    [
        ("input_ids", _ONE),
        ("attention_mask", pa.list_(pa.int8())),
        ("labels", _ONE),
        ("target_token_ids", pa.list_(_ONE)),
        ("target_logprobs", pa.list_(pa.list_(pa.float32()))),
        ("target_mask", pa.list_(pa.list_(pa.int8()))),
    ]
)


class KdRows:
    """Renders rows in the tokens of a student that shares its teacher's vocabulary.

    Raises ReleaseError where that tokenizer cannot be used for it, ScoreError where it cannot be loaded.
    """

    def __init__(self, student: Student) -> None:
        self.name = student.model
        self.student = StudentTokenizer(student.model_copy(update={"system_prompt": None}))  # released with the prompts
        pieces = token_bytes(self.student.tokenizer.backend_tokenizer.to_str())
        if pieces is None:
            raise ReleaseError(
                f"The tokenizer of {self.name!r} does not say which bytes its tokens are, so it cannot be proved that "
                "the teacher's tokens are the same ones. Export in another format."
            )
        self.pieces = pieces
        self.end = self._end_of_turn()

    def convert(self, row: Row, told: Told) -> Row:
        """The row as 1-d arrays; `target_*[i]` is for the token that follows `input_ids[i]`. Raises Unfit.

        axolotl 0.19 pairs them so: its loss shifts labels by one place, targets by none (integrations/kd/kernels).
        """
        if row["prefix_chars"]:
            raise Unfit("begin with text that the student wrote, for which the teacher gave no logprobs")
        reasoning, answer = parts_of(row["completion"][0]["content"])
        rendered = self._render(row, reasoning, answer)
        ids = np.asarray([*rendered.prompt_ids, *rendered.completion_ids, *self.end], np.int32)
        labels = ids.copy()
        labels[: len(rendered.prompt_ids)] = IGNORED
        places, values = self._targets(row, rendered, reasoning, answer)
        places += len(rendered.prompt_ids) - 1
        target_ids, logprobs = np.zeros(len(ids), np.int32), np.full(len(ids), _NOTHING, np.float32)
        mask = np.zeros(len(ids), np.int8)
        target_ids[places], logprobs[places], mask[places] = ids[places + 1], values, 1
        return {
            "input_ids": ids,
            "attention_mask": np.ones(len(ids), np.int8),
            "labels": labels,
            "target_token_ids": target_ids,
            "target_logprobs": logprobs,
            "target_mask": mask,
        }

    def _render(self, row: Row, reasoning: str | None, answer: str | None) -> Rendered:
        try:
            rendered = self.student.render(row["prompt"], reasoning, answer)
        except CannotRender as error:
            raise Unfit(f"cannot be rendered by the chat template of {self.name}", str(error)) from error
        if self.end[-1] in rendered.completion_ids:
            raise Unfit("spell the token that ends a turn inside their text, and would teach to stop there")
        return rendered

    def _targets(
        self, row: Row, rendered: Rendered, reasoning: str | None, answer: str | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Completion tokens that are the teacher's too, by place, and its logprobs of them.

        Think tags, line breaks beside them and the end of turn have none; nor have a few tokens where the teacher
        wrote a word in other tokens than its tokenizer would.
        """
        token_ids, values = row["token_ids"], row["logprob"]
        if values is None or not len(values):
            raise Unfit("have no teacher logprobs in config `logprobs`")
        if len(token_ids) != len(values):
            raise Unfit("have no token ids beside their logprobs", f"{len(token_ids)} for {len(values)}")
        try:
            ends = align([self.pieces[one] for one in token_ids.tolist()], reasoning, answer)
        except (AlignError, KeyError) as error:  # a KeyError's text is the id that the vocabulary lacks
            raise Unfit(
                f"do not follow from the teacher's token ids in the vocabulary of {self.name}; targets are token ids, "
                "so student and teacher must share a tokenizer",
                str(error),
            ) from error
        try:
            mine = self.student.align(rendered, reasoning, answer)
        except AlignError as error:
            raise Unfit(f"cannot be aligned with the tokens of {self.name}", str(error)) from error
        theirs = spans_of_ends(ends)
        here, there = _content(mine), _content(theirs)
        _, a, b = np.intersect1d(_keys(mine[here]), _keys(theirs[there]), return_indices=True)
        here, there = here[a], there[b]
        same = (np.asarray(rendered.completion_ids)[here] == token_ids[there]) & np.isfinite(values[there])
        return here[same], values[there[same]]

    def _end_of_turn(self) -> list[int]:
        """What the template writes after an answer up to its first special token, as the trainer ends a row."""
        turn = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]
        tokenizer = self.student.tokenizer
        try:
            before, _, tail = tokenizer.apply_chat_template(turn, tokenize=False).rpartition(_PROBE)
        except Exception as error:  # templates are programs of strangers and raise what they like
            raise ReleaseError(f"The chat template of {self.name!r} cannot render a turn: {error}.") from error
        if not before or tokenizer.eos_token_id is None:
            raise ReleaseError(f"{self.name!r} has no chat template that ends a turn. Choose an instruct model.")
        tokens: list[int] = tokenizer(tail, add_special_tokens=False)["input_ids"]
        closing = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        last = next((place for place, token in enumerate(tokens) if token in closing), None)
        return [tokenizer.eos_token_id] if last is None else tokens[: last + 1]


def parts_of(completion: str) -> tuple[str | None, str | None]:
    """Reasoning and answer of a released completion: what `text.completion_text` joined, at the first closing tag."""
    head, tail = f"{THINK_OPEN}\n", f"\n{THINK_CLOSE}\n\n"
    reasoning, closed, answer = completion.removeprefix(head).partition(tail)
    if not completion.startswith(head) or not closed:
        return None, completion or None
    return reasoning, answer or None


def table(rows: Sequence[Row]) -> pa.Table:
    """Rows of `KdRows.convert` as Arrow: one target a token, as lists of one."""
    columns = [_lists([row[field.name] for row in rows], field.type) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _lists(values: list[np.ndarray], kind: Any) -> Any:
    flat: Any = pa.array(np.concatenate(values))
    if pa.types.is_list(kind.value_type):
        flat = pa.ListArray.from_arrays(_offsets(np.ones(len(flat), np.int32)), flat)
    return pa.ListArray.from_arrays(_offsets(np.asarray([len(one) for one in values])), flat)


def _offsets(lengths: np.ndarray) -> Any:
    return pa.array(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def _content(spans: np.ndarray) -> np.ndarray:
    """Places of the tokens that cover bytes of the text."""
    return np.flatnonzero(spans[:, 1] > spans[:, 0])


def _keys(spans: np.ndarray) -> np.ndarray:
    start, stop = spans.astype(np.int64).T
    keys: np.ndarray = (start << 32) | stop
    return keys
