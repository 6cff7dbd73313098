"""The model side of the local server: batched generation and scoring of token ids with transformers.

One worker thread owns the model. It gathers waiting sequences, left-pads them, runs one prefill and then a
decode loop over the KV cache; finished rows answer at once and are cut out of the batch. torch and transformers
are imported by the `Engine`, never by this module.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import ServeError
from builder.local_sampling import Ask, Generated, Sampler, alternatives_of, draws_of

if TYPE_CHECKING:
    from torch import Tensor

GATHER_SECONDS = 0.005  # how long after the last arrival a batch still waits for company
SCORE_ELEMENTS = 2**25  # positions x vocabulary of one scoring pass: 128 MiB of float32 logits
COMPACT_SHARE = 0.75  # rows leave the KV cache when no more than this share of it is still running


@dataclass
class _Row:
    asked: Ask
    future: "Future[Generated]"
    done: Generated = field(default_factory=Generated)


class Engine:
    """A model with its tokenizer, and the thread that runs it. Raises ServeError when the folder has no model."""

    def __init__(self, model_dir: Path, *, max_batch: int = 64, threads: int | None = None) -> None:
        if not (model_dir / "config.json").is_file():
            raise ServeError(f"{model_dir} holds no config.json, so there is no model to serve. Give its folder.")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._threads = threads
        self.max_batch = max_batch
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
        self.model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
        self.model.train(False)
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
            except Exception as error:  # the requests of this batch fail, the server lives on
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
            row.done.prompt = alternatives_of(logprobs, chosen, row.asked.prompt_alternatives or 0)

    def _generate(self, rows: list[_Row]) -> None:
        """Prefill once, then one token a step for every row; `rows` shrinks as they finish."""
        torch = self._torch
        if not rows:
            return
        draws = [draws_of(row.asked) for row in rows]
        uniform = torch.stack([torch.nn.functional.pad(draw, (0, max(map(len, draws)) - len(draw))) for draw in draws])
        sampler = Sampler([row.asked for row in rows])
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
                sampler = Sampler([row.asked for row in rows])
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
        table = alternatives_of(logprobs, chosen, wanted) if wanted else None
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
