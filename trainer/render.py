"""Rows to what a trainer takes: template(prompt) + completion + end of turn, as inference prompts and stops."""

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from trainer.errors import ModelError, ReleaseError, RenderError

Row = dict[str, Any]
IGNORED = -100  # the label that the loss skips
IDS, TURNS = pa.list_(pa.int32()), pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
GRPO: Row = {"prompt": TURNS} | dict.fromkeys(("solution", "gold_type", "verifier", "language", "domain"), pa.string())
# What the trainer of each kind takes, and what is only read here: length and trained are tokens.
GIVEN: dict[str, Row] = {"sft": dict.fromkeys(("input_ids", "labels"), IDS), "grpo": GRPO}
GIVEN["reward"] = dict.fromkeys(("chosen_ids", "rejected_ids"), IDS)
READ: Row = {"length": pa.int32(), "trained": pa.int32(), "position": pa.int64(), "response_id": pa.string()}
OPEN, CLOSE, PROBE = "<think>", "</think>", "qzxv"  # the last stands for an answer: no template knows it


class Renderer:
    """A tokenizer, and how answers begin and end: `end` closes the assistant's turn; inference stops at `stops`, as the
    model's files say; `opening` is the generation prompt; `final` the header that gpt-oss writes before its answer."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            model = AutoConfig.from_pretrained(path).get_text_config()
            ends = GenerationConfig.from_pretrained(path) if (path / "generation_config.json").is_file() else model
        except Exception as error:
            raise ModelError(f"{name} is not a model with a tokenizer: {error}") from error
        has = {"chat template": self.tokenizer.chat_template, "eos token": self.tokenizer.eos_token}
        for missing in (what for what in has if has[what] is None):
            raise ModelError(f"{name} has no {missing}: how to prompt or end is unknown. Choose an instruct model.")
        self.vocabulary, stops = model.vocab_size, ends.eos_token_id
        self.places = places(path)
        self.stops = frozenset([stops] if isinstance(stops, int) else stops or [])
        template: Any = self.tokenizer.apply_chat_template
        turn = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PROBE}]
        try:
            asked = template(turn[:1], tokenize=False)
            prompted = template(turn[:1], tokenize=False, add_generation_prompt=True)
            before, _, tail = template(turn, tokenize=False).rpartition(PROBE)
        except Exception as error:
            raise ModelError(f"The chat template of {name} cannot render a turn: {error}.") from error
        if not before:
            raise ModelError(f"The chat template of {name} loses an assistant's answer. Nothing could be trained.")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, prompted, strict=False)))
        self.opening, header = prompted[shared:], before.removeprefix(prompted)
        self.final = header if "<|channel|>final" in header and before.startswith(prompted) else ""
        # What the template writes after an answer, up to its first stop or added token; eos where nothing closes it.
        after = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        closing = {*self.stops, *self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        last = next((index for index, token in enumerate(after) if token in closing), None)
        self.end = [self.tokenizer.eos_token_id] if last is None else list(after[: last + 1])

    @property
    def added_stop(self) -> str | None:
        """The end of turn where the model's files do not stop at it; those of checkpoints will."""
        return None if self.end[-1] in self.stops else str(self.tokenizer.convert_ids_to_tokens(self.end[-1]))

    @property
    def begun(self) -> str:
        """What the generation prompt has opened of the thoughts, `<think>` and what follows it, else nothing."""
        _, opened, words = self.opening.rpartition(OPEN)
        return opened + words if opened and CLOSE not in words else ""

    def warnings(self) -> list[str]:
        stop = f"the template ends a turn with {self.added_stop}, where the model's files do not stop; checkpoints will"
        pad = f"no pad token: batches are padded with {self.tokenizer.eos_token}, whose labels stay set by hand"
        return [stop] * (self.added_stop is not None) + [pad] * (self.tokenizer.pad_token_id is None)

    def texts(self, row: Row) -> tuple[str, str]:
        """Prompt text as inference sends it, and the completion text that follows it."""
        reply, words = f"Reply {row['response_id']}", spoken(row["completion"])
        prompt = self.prompted(row["prompt"], reply)
        if not words:
            raise RenderError(f"{reply} is not a prompt and one assistant message of mere text. Build it again.")
        text, problem = self._after(words)
        if problem or not prompt.endswith(self.opening):
            told = f"{reply} {problem or 'has another prompt'}, but the chat template's prompt ends in {self.opening!r}"
            raise RenderError(f"{told}: no inference could yield it. Choose another model or drop such replies.")
        return prompt, text

    def prompted(self, messages: Any, reply: str) -> str:
        """The prompt as inference sends it; `reply` names the row in errors."""
        turns = plain(messages)
        if not turns or not all({"role"} < turn.keys() and isinstance(turn.get("content", ""), str) for turn in turns):
            raise RenderError(f"{reply} is not a prompt and one assistant message of mere text. Build it again.")
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:
            raise RenderError(f"{reply}: the chat template refuses the prompt: {error}.") from error

    def judged(self, prompts: list[Any], contents: list[str], thoughts: bool) -> list[list[int]]:
        """Token ids of what a preference model reads: prompt and answer, between them the `thoughts` if asked, end of
        turn. A think block that the template opens belongs to the reply, so it is there with its thoughts alone."""
        texts = []
        for messages, content in zip(prompts, contents, strict=True):
            asked = self.prompted(messages, "A prompt that is to be judged").removesuffix(self.begun)
            _, closed, answer = content.rpartition(CLOSE)
            answer = answer if closed or OPEN not in content else ""  # thoughts that never end have no answer
            texts.append(asked + (content if thoughts else answer.lstrip()))
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [[*one, *self.end] for one in ids]

    def columns(self, kind: str, rows: list[Row], thoughts: bool) -> dict[str, list[Any]]:
        """What a trainer takes of rows, by column, with their lengths in tokens and how many of these carry loss."""
        if kind == "sft":
            encoded = self.encode(rows)
            known = {"length": [len(ids) for ids, _ in encoded], "trained": [len(ids) - n for ids, n in encoded]}
            labels = [[IGNORED] * n + ids[n:] for ids, n in encoded]
            return known | {"input_ids": [ids for ids, _ in encoded], "labels": labels}
        if kind == "grpo":
            texts = [self.prompted(row["prompt"], f"The prompt {row['response_id']}") for row in rows]
            lengths = [len(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
            return {"length": lengths, "trained": [0] * len(rows), "prompt": [plain(row["prompt"]) for row in rows]}
        sides = []
        for side in ("chosen", "rejected"):
            words = [spoken(row[side]) for row in rows]
            for row in (row for row, said in zip(rows, words, strict=True) if not said):
                told = f"The {side} reply {row['response_id']} is no assistant message of text"
                raise RenderError(f"{told}. Build it again.")
            sides.append(self.judged([row["prompt"] for row in rows], words, thoughts))
        both = [(len(one), len(two)) for one, two in zip(*sides, strict=True)]
        counts: Row = {"length": [max(pair) for pair in both], "trained": [sum(pair) for pair in both]}
        return counts | {"chosen_ids": sides[0], "rejected_ids": sides[1]}

    def encode(self, rows: list[Row]) -> list[tuple[list[int], int]]:
        """Token ids of each row and how many of them carry no loss: the prompt, and a prefix that is to be masked."""
        texts, encoded = [self.texts(row) for row in rows], []
        # The prompt is tokenised alone, as inference does it.
        sides = [self.tokenizer([*side], add_special_tokens=False)["input_ids"] for side in zip(*texts, strict=True)]
        for row, (_, text), prompt, tokens in zip(rows, texts, *sides, strict=True):
            ids = prompt + tokens + self.end
            if not self.stops.union(self.end[-1:]).isdisjoint(tokens):
                told = f"Reply {row['response_id']} spells a stop token inside its text"
                raise RenderError(f"{told}: it would teach to stop there. Drop it with a rule.")
            if (highest := max(*ids, self.tokenizer.pad_token_id or 0)) >= self.vocabulary:
                raise ModelError(f"Token {highest} is past the model's last of {self.vocabulary:,}: not its tokenizer.")
            encoded.append((ids, len(prompt) + self._prefix(row, text)))
        return encoded

    def _after(self, completion: str) -> tuple[str, str]:
        """The completion less what the generation prompt has opened of it; and why no inference could yield it."""
        thinks, (_, opened, words) = completion.startswith(OPEN), self.opening.rpartition(OPEN)
        if self.final:  # thoughts and answer are messages of their own; inference begins after <|start|>assistant
            tag = f"\n{CLOSE}\n\n"  # as a release writes it: the words on both sides may speak of the tag
            thought, closed, answer = completion.removeprefix(OPEN).rpartition(tag if tag in completion else CLOSE)
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
        """How many tokens of the completion's `text` the student wrote: cuts lie where a word and a token end."""
        written = row.get("prefix_chars") or 0
        chars = written - (len(row["completion"][0]["content"]) - len(text))  # less what the prompt has opened
        if written and (self.final or chars >= len(text)):
            why = "which gpt-oss's channels move about" if self.final else "its whole completion"
            told = f"Reply {row['response_id']}: the student wrote {written:,} characters, {why}"
            raise RenderError(f"{told}, so nothing tells what to train. Leave mask_prefix off, or drop such replies.")
        return len(self.tokenizer(text[:chars], add_special_tokens=False)["input_ids"]) if written and chars > 0 else 0


def places(path: Path) -> int | None:
    """Tokens that the model in a directory reads at most, None where it does not say."""
    return getattr(AutoConfig.from_pretrained(path).get_text_config(), "max_position_embeddings", None)


def plain(messages: Any) -> list[Row]:
    """Messages without their null keys: templates would print them, or take them for given."""
    return [{key: turn[key] for key in turn or () if turn[key] is not None} for turn in messages or ()]


def spoken(messages: Any) -> str:
    """The text of one assistant message, empty for anything else."""
    said = plain(messages)
    words: Any = said[0].get("content") if said else None
    return words if isinstance(words, str) and said == [{"role": "assistant", "content": words}] else ""


def tokens(
    batches: Iterable[list[Row]], renderer: Renderer, path: Path, *, stage: str, limit: int | None, drop: bool,
    kind: str = "sft", most: str = "max_length", thoughts: bool = False,
) -> tuple[Dataset, dict[str, int]]:  # fmt: skip
    """Rows as their trainer takes them in the order of `position`, in an Arrow file at `path`, and their counts.
    Rendered unless the file is there. Raises RenderError for more than `limit` tokens, `most` named, unless `drop`."""
    schema = pa.schema(GIVEN[kind] | READ)
    if not path.exists():
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            for batch in batches:
                rows = [{"response_id": f"at position {row['position']}"} | row for row in batch]
                columns: Any = {name: [row.get(name) for row in rows] for name in schema.names}
                columns |= renderer.columns(kind, rows, thoughts)
                stream.write_batch(pa.RecordBatch.from_pydict(columns, schema))
    dataset = Dataset.from_file(str(path))
    positions, trained, lengths = (dataset.data[name] for name in ("position", "trained", "length"))
    trained, lengths = trained.to_numpy(), lengths.to_numpy()
    if positions.null_count or len(positions.unique()) < len(positions):
        raise ReleaseError("`position` is null or repeated in some rows: their order is undefined. Build it again.")
    kept = lengths <= (lengths.max() if limit is None else limit)
    if (dropped := int((~kept).sum())) and not (drop and kept.any()):
        named = f"longest {lengths.max():,} tokens, first {dataset[int(kept.argmin())]['response_id']}"
        told = f"Stage {stage}: {dropped:,} of {len(kept):,} rows exceed {most} {limit:,} ({named}). Cut they would"
        raise RenderError(f"{told} teach to stop in mid-thought: raise it, drop them by a rule or by --drop-too-long.")
    order = positions.to_numpy().argsort()
    counts = {"rows": int(kept.sum()), "dropped_rows": dropped, "longest": int(lengths[kept].max())}
    read = trained if kind == "reward" else lengths  # both sides of a pair
    counts |= {"tokens": int(read[kept].sum()), "trained_tokens": int(trained[kept].sum())}
    return dataset.select(order[kept[order]]).select_columns([*GIVEN[kind], *["position"] * (kind == "grpo")]), counts
