"""A student of a few thousand parameters, and replies with teacher tokens, as literal rows."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from builder.config import Recipe, Student, Teacher
from builder.store import Run, columns_table
from builder.tokens import AlignError, align

torch.set_num_threads(1)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = ["One and two is three. So the answer is three!\n\nIs it? It is.\n", "每个苹果三元。所以六元。👩‍👩‍👧"] * 4
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(vocabulary: int = 330) -> Tokenizer:
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    result.train_from_iterator(CORPUS, trainer)
    result.add_tokens(["<think>", "</think>"])
    return result


def word_piece() -> Tokenizer:
    result = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    result.normalizer = normalizers.Lowercase()
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", *SPECIAL], show_progress=False)
    result.train_from_iterator(CORPUS, trainer)
    return result


def save_student(
    path: Path,
    *,
    template: str = CHATML,
    tokenizer: Tokenizer | None = None,
    positions: int = 4096,
    embeddings: int | None = None,
    cap: float | None = None,
    seed: int = 0,
) -> Path:
    """A Qwen3, or with `cap` a Gemma2 with soft-capped logits; random weights, probabilities far from even."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer or byte_level(), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = template
    size: dict[str, Any] = {
        "vocab_size": embeddings or len(fast), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": positions,
        "initializer_range": 0.7, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None,
    }  # fmt: skip
    set_seed(seed)
    if cap is None:
        model: Any = Qwen3ForCausalLM(Qwen3Config(**size))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**size, final_logit_softcapping=cap, query_pre_attn_scalar=8))
        with torch.no_grad():
            model.lm_head.weight.mul_(4)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


def prompt(name: str = "p", text: str = "What is 1 + 2?") -> dict[str, Any]:
    return {
        "prompt_id": name,
        "messages": [{"role": "user", "content": text}],
        "domain": "math",
        "gold": "3",
        "gold_type": "number",
        "verifier": "number",
        "sources": [{"source": "toy.jsonl", "revision": None, "license": "mit"}],
        "gold_conflicts": 0,
    }


def reply(name: str, prompt_id: str = "p", **changes: Any) -> dict[str, Any]:
    return {
        "response_id": name, "prompt_id": prompt_id, "role": "teacher", "model": "org/teacher", "sample_index": 0,
        "temperature": 0.6, "reasoning": "One and two make three. That was easy to see.", "answer": "So it is 3.",
        "reasoning_format": "tags", "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 21,
        "tool_calls": 0, "replaced_characters": 0, "logprobs_mode": "raw", "prefix_chars": 0,
        **changes,
    }  # fmt: skip


TEACHER = byte_level(290)


def logprobs(row: dict[str, Any], *, seed: int = 0, lossy: bool = False, **changes: Any) -> dict[str, Any]:
    """The row of `logprobs` that sealing makes of this reply; `lossy` loses the bytes of characters that are split."""
    text = f"<think>\n{row['reasoning']}\n</think>\n\n{row['answer']}<|im_end|>" if row["reasoning"] else row["answer"]
    token_ids = TEACHER.encode(text, add_special_tokens=False).ids
    pieces = [teacher_bytes()[index] for index in token_ids]
    if lossy:
        pieces = [b"" if piece.decode(errors="replace").count("\ufffd") else piece for piece in pieces]
    values = np.random.default_rng([seed, len(token_ids)]).uniform(-2, 0, len(token_ids)).astype(np.float32)
    try:
        ends, detail = align(pieces, row["reasoning"], row["answer"]).tolist(), None
    except AlignError as error:
        ends, detail = None, str(error)
    return {
        "response_id": row["response_id"], "token_ids": token_ids, "token_end": ends, "logprob": values.tolist(),
        "nonfinite_count": 0, "align_detail": detail, **changes,
    }  # fmt: skip


@cache
def teacher_bytes() -> dict[int, bytes]:
    """Bytes by id, from GPT-2's published table, without the code under test."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
    found = {}
    for token, index in TEACHER.get_vocab().items():
        plain = token in SPECIAL or token in ("<think>", "</think>")
        found[index] = token.encode() if plain else bytes(byte_of[character] for character in token)
    return found


def make_run(
    root: Path,
    replies: Iterable[dict[str, Any]],
    values: Iterable[dict[str, Any]] | None = None,
    prompts: Iterable[dict[str, Any]] | None = None,
) -> Run:
    run = Run(root)
    rows = list(replies)
    given = [logprobs(row) for row in rows] if values is None else list(values)
    run.append("prompts", columns_table("prompts", list(prompts or [prompt()])))
    run.append("logprobs", columns_table("logprobs", given))
    run.append("responses", columns_table("responses", rows))
    return run


def recipe(student: Path, **changes: Any) -> Recipe:
    """There is no tokenizer here: token texts have to do, as with most endpoints."""
    teacher = Teacher(model="org/teacher", tokenizer=changes.pop("tokenizer", str(student / "none")))
    return Recipe(name="toy", teacher=teacher, student=Student(model=str(student), dtype="float32", **changes))


TEXTS = [
    ("One and two make three. That was easy to see.", "So it is 3."),
    ("每个苹果三元。所以一共六元。\n\nShort. 👩‍👩‍👧 is one family, e.g. of three.", "六元，我想是这样。"),
    ("Let $x = 1. 5$ be.\n```python\nprint(1). x\n```\nDone with that now.", "x  =\u30001\t2\r\nend of it all"),
    ("Only one sentence is here but it is a long one", "Yes it is so"),
    (None, "An answer alone. It has two sentences."),
]
REPLIES = [reply(f"r{i}", reasoning=reasoning, answer=answer) for i, (reasoning, answer) in enumerate(TEXTS)]
