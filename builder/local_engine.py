"""The model side of the local server: batched generation and scoring of token ids with transformers.

One worker thread owns the model. It gathers waiting sequences, left-pads them, runs one prefill and then a
decode loop over the KV cache; finished rows answer at once and are cut out of the batch. torch and transformers
are imported by the `Engine`, never by this module.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import ServeError

if TYPE_CHECKING:
    from torch import Tensor

GATHER_SECONDS = 0.005  # how long after the last arrival a batch still waits for company
SCORE_ELEMENTS = 2**25  # positions x vocabulary of one scoring pass: 128 MiB of float32 logits
COMPACT_SHARE = 0.75  # rows leave the KV cache when no more than this share of it is still running
GREEDY_BELOW = 1e-5  # vLLM treats smaller temperatures as 0

Alternative = tuple[int, float, int]  # token id, logprob in nats, rank from 1


@dataclass(frozen=True)
class Ask:
    """One sequence to generate from `prompt`; `max_tokens` 0 only scores the prompt."""

    prompt: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    alternatives: int = 0
    prompt_alternatives: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    skip_special: bool = True


@dataclass
class Generated:
    """Token ids with their raw logprobs: log-softmax in float32, before temperature, top-p and top-k.

    `alternatives` holds the sampled token first, then the best others. `prompt` has the same for every prompt
    token but the first, which nothing predicts.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[Alternative]] = field(default_factory=list)
    prompt: list[list[Alternative]] | None = None
    text: str = ""
    finish_reason: str = "length"
    stop_reason: int | str | None = None


@dataclass
class _Row:
    asked: Ask
    future: "Future[Generated]"
    done: Generated = field(default_factory=Generated)


class Engine:
    """A model with its tokenizer, and the thread that runs it. Raises ServeError when the folder has no model."""

    def __init__(self, model_dir: Path, *, max_batch: int = 64, threads: int | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not (model_dir / "config.json").is_file():
            raise ServeError(f"{model_dir} holds no config.json, so there is no model to serve. Give its folder.")
        self._torch = torch
        self._threads = threads
        self.max_batch = max_batch
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True).eval()
        self.vocabulary = int(self.model.config.get_text_config().vocab_size)
        self.max_model_len = int(self.model.config.get_text_config().max_position_embeddings)
        end = self.model.generation_config.eos_token_id
        ends = [self.tokenizer.eos_token_id, *(end if isinstance(end, list) else [end])]
        self.end_ids = frozenset(token for token in ends if token is not None)
        self._queue: queue.Queue[_Row | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="local-engine", daemon=True)
        self._thread.start()

    def submit(self, asked: Ask) -> "Future[Generated]":
        future: Future[Generated] = Future()
        self._queue.put(_Row(asked, future))
        return future

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        if self._threads:
            self._torch.set_num_threads(self._threads)
        for rows in self._gathered():
            running = [row for row in rows if row.future.set_running_or_notify_cancel()]
            try:
                with self._torch.inference_mode():
                    self._score_prompts([row for row in running if row.asked.prompt_alternatives is not None])
                    self._generate([row for row in running if row.asked.max_tokens > 0])
                for row in running:
                    if not row.future.done():
                        row.future.set_result(row.done)
            except Exception as error:
                for row in running:
                    if not row.future.done():
                        row.future.set_exception(error)

    def _gathered(self) -> Iterator[list[_Row]]:
        while True:
            first = self._queue.get()
            if first is None:
                return
            rows: list[_Row] = [first]
            deadline = time.monotonic() + GATHER_SECONDS
            while len(rows) < self.max_batch:
                try:
                    row = self._queue.get(timeout=max(deadline - time.monotonic(), 0))
                except queue.Empty:
                    break
                if row is None:
                    self._queue.put(None)
                    break
                rows.append(row)
                deadline = time.monotonic() + GATHER_SECONDS
            yield rows

    def _score_prompts(self, rows: list[_Row]) -> None:
        """Fill `done.prompt`; rows of similar length share a pass, small enough for its logits to fit."""
        group: list[_Row] = []
        for row in sorted(rows, key=lambda row: len(row.asked.prompt)):
            if (len(group) + 1) * len(row.asked.prompt) * self.vocabulary > SCORE_ELEMENTS and group:
                self._score_group(group)
                group = []
            group.append(row)
        if group:
            self._score_group(group)

    def _score_group(self, rows: list[_Row]) -> None:
        torch = self._torch
        ids, mask = self._left_padded([row.asked.prompt for row in rows])
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask)).logits.float()
        for place, row in enumerate(rows):
            start = ids.shape[1] - len(row.asked.prompt)
            logprobs = torch.log_softmax(logits[place, start:-1], dim=-1)
            chosen = ids[place, start + 1 :]
            row.done.prompt = _alternatives(logprobs, chosen, row.asked.prompt_alternatives or 0)

    def _generate(self, rows: list[_Row]) -> None:
        """Prefill once, then one token a step for every row; `rows` shrinks as they finish."""
        torch = self._torch
        if not rows:
            return
        draws = [_draws(row.asked) for row in rows]
        uniform = torch.stack([torch.nn.functional.pad(draw, (0, max(map(len, draws)) - len(draw))) for draw in draws])
        sampler = _Sampler([row.asked for row in rows])
        tokens, mask = self._left_padded([row.asked.prompt for row in rows])
        positions, cache, step = _positions(mask), None, 0
        active = list(range(len(rows)))  # places still running; the others wait in the cache to be cut out
        while active:
            out = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache, logits = out.past_key_values, out.logits[:, -1].float()
            chosen = sampler.pick(logits, uniform[:, step])
            self._record(rows, active, torch.log_softmax(logits, dim=-1), chosen)
            active = [place for place in active if not self._finish(rows[place])]
            tokens, positions, step = chosen[:, None], positions[:, -1:] + 1, step + 1
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            if active and len(active) <= COMPACT_SHARE * len(rows):
                keep = torch.tensor(active)
                cache.batch_select_indices(keep)
                tokens, positions, mask, uniform = tokens[keep], positions[keep], mask[keep], uniform[keep]
                rows = [rows[place] for place in active]
                sampler = _Sampler([row.asked for row in rows])
                active = list(range(len(rows)))

    def _left_padded(self, prompts: Sequence[list[int]]) -> tuple["Tensor", "Tensor"]:
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return self._torch.tensor(ids), self._torch.tensor(mask)

    def _record(self, rows: list[_Row], active: list[int], logprobs: "Tensor", chosen: "Tensor") -> None:
        values = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        wanted = max(rows[place].asked.alternatives for place in active)
        table = _alternatives(logprobs, chosen, wanted) if wanted else None
        for place, token in enumerate(chosen.tolist()):
            done = rows[place].done
            if rows[place].future.done():
                continue
            done.ids.append(token)
            done.logprobs.append(values[place])
            if table is not None:
                done.alternatives.append(table[place][: rows[place].asked.alternatives + 1])

    def _finish(self, row: _Row) -> bool:
        """Answer the row if its newest token ends it."""
        asked, done = row.asked, row.done
        last = done.ids[-1]
        body = done.ids
        cut = -1
        if (last in self.end_ids and not asked.ignore_end) or last in asked.stop_ids:
            done.finish_reason = "stop"
            done.stop_reason = None if last in self.end_ids and not asked.ignore_end else last
            body = done.ids[:-1]
        elif asked.stop:
            text = self._text(body, asked)
            found = [(text.find(stop), stop) for stop in asked.stop if stop in text]
            if found:
                cut, done.stop_reason = min(found)
                done.finish_reason = "stop"
        if done.finish_reason != "stop" and len(done.ids) < asked.max_tokens:
            return False
        done.text = self._text(body, asked)[: cut if cut >= 0 else None]
        row.future.set_result(done)
        return True

    def _text(self, ids: list[int], asked: Ask) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=asked.skip_special, clean_up_tokenization_spaces=False)
        return str(text)


def _positions(mask: "Tensor") -> "Tensor":
    """Position of every token in its own sequence; padding on the left does not count."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _draws(asked: Ask) -> "Tensor":
    """One uniform number a token, fixed by the seed alone: the reply does not depend on the batch."""
    import torch

    seed = int.from_bytes(os.urandom(8), "little") if asked.seed is None else asked.seed
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.rand(asked.max_tokens, dtype=torch.float64, generator=generator)


class _Sampler:
    """Temperature, top-k, top-p and the draw for the rows of one batch."""

    def __init__(self, asked: list[Ask]) -> None:
        import torch

        self._torch = torch
        self._greedy = torch.tensor([row.temperature < GREEDY_BELOW for row in asked])
        self._temperature = torch.tensor(
            [[row.temperature if row.temperature >= GREEDY_BELOW else 1.0] for row in asked],
            dtype=torch.float64,
        )
        self._top_p = torch.tensor([[row.top_p] for row in asked], dtype=torch.float64)
        self._top_k = torch.tensor([[row.top_k] for row in asked])
        self._cuts = any(row.top_p < 1.0 or row.top_k > 0 for row in asked)

    def pick(self, logits: "Tensor", uniform: "Tensor") -> "Tensor":
        """Inverse-CDF sampling in float64: `uniform` in [0, 1) selects one token id a row."""
        torch = self._torch
        probability = torch.softmax(logits.double() / self._temperature, dim=-1)
        if self._cuts:
            probability = self._cut(probability)
        cumulative = probability.cumsum(-1)
        drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
        return torch.where(self._greedy, logits.argmax(-1), drawn.clamp(max=logits.shape[-1] - 1))

    def _cut(self, probability: "Tensor") -> "Tensor":
        """Zero what top-k and then top-p leave out; the likeliest token always stays."""
        torch = self._torch
        ordered, order = probability.sort(dim=-1, descending=True, stable=True)
        place = torch.arange(ordered.shape[-1])[None]
        ordered = ordered.masked_fill((self._top_k > 0) & (place >= self._top_k), 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill((before >= self._top_p) & (place > 0), 0.0)
        return torch.zeros_like(probability).scatter(1, order, ordered)


def _alternatives(logprobs: "Tensor", chosen: "Tensor", count: int) -> list[list[Alternative]]:
    """For each row the chosen token and then the `count` best tokens, the chosen one never twice."""
    own = logprobs.gather(1, chosen[:, None])
    ranks = ((logprobs > own).sum(-1) + 1).tolist()
    best, best_ids = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
    table = []
    for token, value, rank, ids, values in zip(
        chosen.tolist(), own[:, 0].tolist(), ranks, best_ids.tolist(), best.tolist(), strict=True
    ):
        others = [(i, v, place) for place, (i, v) in enumerate(zip(ids, values, strict=True), 1) if i != token]
        table.append([(token, value, rank), *others])
    return table
