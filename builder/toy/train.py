"""Train the toy models: the shipped teacher, and a student that has the form of an answer without the skill.

`python -m builder.toy.train teacher OUT` makes the weights in `builder/toy/teacher/` again.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.toy.task import Problem, no_arithmetic, problems, reply
from builder.toy.tokenizer import (
    MAX_POSITIONS,
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    TURN_END,
    build_tokenizer,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

TEACHER = Path(__file__).resolve().parent / "teacher"

SYSTEM_PROMPT = "You are a helpful assistant."
SYSTEM_SHARE = 0.2  # of the training prompts, so that a recipe may send one or not

TEACHER_SIZE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4}
STUDENT_SIZE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3}
TEACHER_STEPS = 1500
STUDENT_STEPS = 150
TEACHER_BATCH, STUDENT_BATCH = 32, 16  # small: on two cores more steps beat larger batches

Replies = Callable[[Problem, random.Random], str]
Drawn = list[Problem]
Draw = Callable[[int, int], Drawn]
"""Problems of an examples' batch, from how many and a seed."""
Example = tuple[list[int], int]


def train_teacher(
    out: Path,
    seed: int = 0,
    steps: int = TEACHER_STEPS,
    threads: int = 2,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train the teacher on right replies and save weights, configuration and tokenizer in `out`."""
    tokenizer = build_tokenizer(TEACHER_VOCABULARY)
    model = _new_model(tokenizer, TEACHER_SIZE, heads=4, seed=seed)
    fit(model, tokenizer, reply, steps=steps, batch=TEACHER_BATCH, lr=4e-3, seed=seed, threads=threads, log=log)
    return save(model, tokenizer, out)


def make_student(
    out: Path,
    seed: int = 0,
    steps: int = STUDENT_STEPS,
    threads: int = 2,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Build the student and teach it the form only: no training reply of its calculates anything.

    An untrained student would call every sentence of the teacher new; this one knows the phrases. Random results
    instead of repeated ones would teach it to ignore the numbers, and later training starts three times slower.
    """
    tokenizer = build_tokenizer(STUDENT_VOCABULARY)
    model = _new_model(tokenizer, STUDENT_SIZE, heads=4, seed=seed + 1)

    def form(problem: Problem, rng: random.Random) -> str:
        return reply(problem, rng, no_arithmetic)

    fit(model, tokenizer, form, steps=steps, batch=STUDENT_BATCH, lr=1e-2, seed=seed + 1, threads=threads, log=log)
    return save(model, tokenizer, out)


def _new_model(tokenizer: "PreTrainedTokenizerFast", size: dict[str, Any], heads: int, seed: int) -> "Qwen3ForCausalLM":
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.08,  # models this narrow start several times faster than with 0.02
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **size,
    )
    return Qwen3ForCausalLM(config)


def fit(
    model: "Qwen3ForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    replies: Replies,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    threads: int,
    draw: Draw = problems,
    log: Callable[[str], None] | None = None,
) -> None:
    """Cross-entropy on the replies; the prompt is context only. Warm-up, cosine, float32."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.98),
    )
    warmup = min(50, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 1.0) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2),
    )
    model.train()
    began = time.monotonic()
    for step, rows in enumerate(_batches(tokenizer, replies, steps, batch, seed, draw), start=1):
        loss = model(**rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if log and step % 50 == 0:
            log(f"step {step}/{steps}  loss {loss.item():.4f}  {time.monotonic() - began:.0f} s")
    model.train(False)
    torch.set_num_threads(before)


def _batches(
    tokenizer: "PreTrainedTokenizerFast", replies: Replies, steps: int, batch: int, seed: int, draw: Draw
) -> Iterator[dict[str, "Tensor"]]:
    """`steps` batches of fresh examples, of similar lengths within a batch to save padding."""
    rng = random.Random(f"batches:{seed}")
    chunk = 32
    for start in range(0, steps, chunk):
        count = min(chunk, steps - start)
        examples = [_example(tokenizer, problem, replies, rng) for problem in draw(count * batch, rng.getrandbits(32))]
        examples.sort(key=lambda example: len(example[0]))
        batches = [examples[place : place + batch] for place in range(0, len(examples), batch)]
        rng.shuffle(batches)
        for chosen in batches:
            yield _collate(chosen, tokenizer.pad_token_id)


def _example(tokenizer: "PreTrainedTokenizerFast", problem: Problem, replies: Replies, rng: random.Random) -> Example:
    """Token ids of prompt and reply, and how many of them are prompt."""
    messages = [{"role": "user", "content": problem.question}]
    if rng.random() < SYSTEM_SHARE:
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    prompt_ids = tokenizer(prompt).input_ids
    return prompt_ids + tokenizer(replies(problem, rng) + TURN_END).input_ids, len(prompt_ids)


def _collate(batch: list[Example], pad: int | None) -> dict[str, "Tensor"]:
    import torch

    longest = max(len(ids) for ids, _ in batch)
    inputs, labels, mask = [], [], []
    for ids, prompt_length in batch:
        room = longest - len(ids)
        inputs.append(ids + [pad or 0] * room)
        labels.append([-100] * prompt_length + ids[prompt_length:] + [-100] * room)
        mask.append([1] * len(ids) + [0] * room)
    rows: dict[str, Any] = {"input_ids": inputs, "labels": labels, "attention_mask": mask}
    return {name: torch.tensor(values) for name, values in rows.items()}


def load(folder: Path) -> tuple["Qwen3ForCausalLM", "PreTrainedTokenizerFast"]:
    """Weights in float32 and tokenizer of a toy model."""
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return Qwen3ForCausalLM.from_pretrained(folder, dtype="float32"), tokenizer


def save(model: "Qwen3ForCausalLM", tokenizer: "PreTrainedTokenizerFast", out: Path) -> Path:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.toy.train", description=__doc__)
    parser.add_argument("model", choices=("teacher", "student"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    make, steps = {"teacher": (train_teacher, TEACHER_STEPS), "student": (make_student, STUDENT_STEPS)}[given.model]
    print(make(given.out, seed=given.seed, steps=given.steps or steps, threads=given.threads, log=print))


if __name__ == "__main__":
    main()
