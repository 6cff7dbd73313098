"""Rows to tokens and labels: template(prompt) + completion + end of turn, as inference prompts and stops."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from trainer import schedule
from trainer.errors import ModelError, RenderError

Row = dict[str, Any]
IGNORED = -100  # the label that the loss skips
SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
OPEN, CLOSE = "<think>", "</think>"
PROBE = "qzxv"  # stands for an answer; no template treats it specially


@dataclass(frozen=True)
class Rendered:
    """Rows of one stage as tokens: an Arrow stream at `path` in file order; `order` is that of `position`."""

    path: str
    order: list[int]
    dropped: int
    tokens: int
    trained_tokens: int
    longest: int

    def dataset(self) -> Any:
        """Memory-mapped `datasets.Dataset` in the order of `position`."""
        from datasets import Dataset

        return Dataset.from_file(self.path).select(self.order)


@dataclass(frozen=True)
class Renderer:
    """A tokenizer with what its template and its model's files say about the beginning and the end of an answer."""

    tokenizer: Any
    end: tuple[int, ...]  # closes the assistant's turn; inference has to stop at the last
    stops: frozenset[int]  # where `generate` stops, as the model's files say
    vocabulary: int  # rows of the embedding
    opening: str = ""  # the template's generation prompt
    final: str = ""  # gpt-oss: the header that the model itself writes before its answer

    @property
    def added_stop(self) -> str | None:
        """The end of turn where the model's files do not stop at it; those of checkpoints will."""
        return None if self.end[-1] in self.stops else str(self.tokenizer.convert_ids_to_tokens(self.end[-1]))

    def warnings(self) -> list[str]:
        stop = f"the template ends a turn with {self.added_stop}, where the model's files do not stop; checkpoints will"
        pad = f"no pad token: batches are padded with {self.tokenizer.eos_token}, whose labels stay set by hand"
        return [stop] * (self.added_stop is not None) + [pad] * (self.tokenizer.pad_token_id is None)

    def texts(self, row: Row) -> tuple[str, str]:
        """Prompt text as inference sends it, and the completion text that follows it."""
        reply, answer = row["response_id"], row["completion"]
        if not row["prompt"] or not answer or len(answer) != 1 or answer[0]["role"] != "assistant":
            raise RenderError(f"Reply {reply} is not a prompt and one assistant message. Build the release again.")
        try:
            prompt = self.tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        except Exception as error:
            raise RenderError(f"Reply {reply}: the chat template refuses the prompt: {error}.") from error
        text, problem = self._after(answer[0]["content"] or "")
        if problem or not prompt.endswith(self.opening):
            raise RenderError(
                f"Reply {reply} {problem or 'has another prompt'}, but the chat template's prompt ends in "
                f"{self.opening!r}: no inference could yield it. Choose another model or drop such replies."
            )
        return prompt, text

    def encode(self, rows: list[Row]) -> list[tuple[list[int], int]]:
        """Token ids of each row and how many of them carry no loss: the prompt, and a prefix that is to be masked.

        The prompt is tokenised alone, as inference does it. Rows bring `prefix_chars` only where prefixes are masked.
        """
        texts = [self.texts(row) for row in rows]
        prompts = self.tokenizer([prompt for prompt, _ in texts], add_special_tokens=False)["input_ids"]
        completions = self.tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
        encoded: list[tuple[list[int], int]] = []
        for row, (_, text), prompt, tokens in zip(rows, texts, prompts, completions, strict=True):
            if not self.stops.union(self.end[-1:]).isdisjoint(tokens):
                reply = f"Reply {row['response_id']} spells a stop token inside its text"
                raise RenderError(f"{reply}: it would teach to stop there. Drop it with a rule.")
            encoded.append((prompt + tokens + list(self.end), len(prompt) + self._prefix(row, text)))
        return encoded

    def _after(self, completion: str) -> tuple[str, str]:
        """The completion less what the generation prompt has opened of it; and why no inference could yield it."""
        thinks, (_, opened, words) = completion.startswith(OPEN), self.opening.rpartition(OPEN)
        if self.final:  # thoughts and answer are messages of their own; inference begins after <|start|>assistant
            thought, closed, answer = completion.removeprefix(OPEN).rpartition(CLOSE)
            analysis = self.final.replace("final", "analysis") + thought.strip() + "<|end|>" + self.opening
            problem = "" if thinks == bool(closed) and answer.strip() else "is not thoughts and an answer"
            return analysis * thinks + self.final + answer.lstrip(), problem
        if CLOSE in words:
            return completion, "has a <think> block" * thinks
        if not opened or not thinks:
            return completion, "lacks a <think> block" * bool(opened)
        rest = completion.removeprefix(OPEN)
        match = re.match("".join(re.escape(c) + "?" * c.isspace() for c in words), rest)
        return rest[match.end() if match else 0 :], "" if match else "begins its thoughts otherwise"

    def _prefix(self, row: Row, text: str) -> int:
        """How many tokens of the completion's `text` begin in what the student wrote. Raises RenderError for all."""
        written = row.get("prefix_chars") or 0
        prefix = written - (len(row["completion"][0]["content"] or "") - len(text))  # less what the prompt has opened
        if prefix <= 0 or not written:
            return 0
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # Some tokenizers leave a token's space out of its offsets: it begins no later than where the last one ended.
        begins = (min(end, begin) for (_, end), (begin, _) in pairwise([(0, 0), *encoded["offset_mapping"]]))
        masked = sum(1 for begin in begins if begin < prefix)
        if masked == len(encoded["input_ids"]) or self.final:
            raise RenderError(
                f"Reply {row['response_id']}: the student wrote {written:,} characters, "
                + ("which gpt-oss's channels move about" if self.final else "its whole completion")
                + ", so mask_prefix cannot tell what to train. Leave mask_prefix off, or drop such replies."
            )
        return masked


def load(path: Path, name: str) -> Renderer:
    """The renderer of a model directory. Raises ModelError without chat template, eos token, or end of turn."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model = AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name} is not a model with a tokenizer: {reason}") from error
    if tokenizer.chat_template is None:
        raise ModelError(f"{name} has no chat template, so how to prompt it is unknown. Choose an instruct model.")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{name} has no eos token: nothing would end a reply. Set it in tokenizer_config.json.")
    stops = model.eos_token_id
    if (path / "generation_config.json").is_file():
        stops = GenerationConfig.from_pretrained(path).eos_token_id
    declared = frozenset([stops] if isinstance(stops, int) else stops or [])
    turn = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
    try:
        asked = tokenizer.apply_chat_template(turn[:1], tokenize=False)
        prompted = tokenizer.apply_chat_template(turn[:1], tokenize=False, add_generation_prompt=True)
        before, _, tail = tokenizer.apply_chat_template(turn, tokenize=False).rpartition(PROBE)
    except Exception as error:
        raise ModelError(f"The chat template of {name} cannot render a turn: {error}.") from error
    if not before:
        raise ModelError(f"The chat template of {name} loses an assistant's answer. Nothing could be trained.")
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, prompted, strict=False)))
    opening, header = prompted[shared:], before.removeprefix(prompted)
    final = header if "<|channel|>final" in header and before.startswith(prompted) else ""
    return Renderer(tokenizer, _end(tokenizer, tail, declared), declared, model.vocab_size, opening, final)


def write(
    batches: Iterable[list[Row]], renderer: Renderer, path: Path, *, stage: str, limit: int | None, drop: bool
) -> Rendered:
    """Render a stage to `path`, with its counts beside it. Raises RenderError for rows past `limit` unless `drop`."""
    positions: list[int | None] = []
    too_long: list[str] = []
    tokens = trained = longest = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as stream:
        for rows in batches:
            kept: list[tuple[list[int], list[int]]] = []
            for row, (ids, masked) in zip(rows, renderer.encode(rows), strict=True):
                longest = max(longest, len(ids))
                if max(ids) >= renderer.vocabulary:
                    last = renderer.vocabulary - 1
                    raise ModelError(f"Token {max(ids)} is past the model's last, {last}: not this model's tokenizer.")
                if limit is not None and len(ids) > limit:
                    too_long.append(row["response_id"])
                    continue
                kept.append((ids, [IGNORED] * masked + ids[masked:]))
                positions.append(row["position"])
                tokens, trained = tokens + len(ids), trained + len(ids) - masked
            columns = [pa.array([pair[i] for pair in kept], SCHEMA.types[i]) for i in (0, 1)]
            stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    if too_long and not (drop and positions):
        raise RenderError(
            f"Stage {stage}: {len(too_long):,} of {len(too_long) + len(positions):,} rows exceed max_length {limit:,} "
            f"(longest {longest:,} tokens, first {too_long[0]}). Cut replies would teach the student to stop in "
            "mid-thought: raise max_length, drop them in the selection, or pass --drop-too-long."
        )
    rendered = Rendered(str(path), schedule.by_position(positions), len(too_long), tokens, trained, longest)
    path.with_suffix(".json").write_text(json.dumps(asdict(rendered)), encoding="utf-8")
    return rendered


def read(path: Path) -> Rendered | None:
    """What `write` left at `path`, None where nothing is complete."""
    counted = path.with_suffix(".json")
    return Rendered(**json.loads(counted.read_text(encoding="utf-8"))) if counted.is_file() else None


def _end(tokenizer: Any, tail: str, stops: frozenset[int]) -> tuple[int, ...]:
    """What the template writes after an answer, up to its first stop or added token; eos where it writes none."""
    tokens = tokenizer(tail, add_special_tokens=False)["input_ids"]
    closing = {*stops, *tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    last = next((index for index, token in enumerate(tokens) if token in closing), None)
    return (tokenizer.eos_token_id,) if last is None else tuple(tokens[: last + 1])
