"""A run of synthetic replies with teacher logprobs, and a student's tokenizer, for the benchmark of `builder score`."""

import random
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from builder.store import Run, columns_table
from builder.text import completion_text
from builder.tokens import align, token_bytes

_SPECIAL: Final = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As GPT-4's and Qwen's tokenizers cut text before they merge bytes.
_CUT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words() -> list[str]:
    """Words of this project, as often as it uses them."""
    root = Path(__file__).resolve().parents[2]
    files = [root / "README.md", *sorted((root / "builder").glob("*.py"))]
    return re.findall("[A-Za-z]{2,}", " ".join(path.read_text(encoding="utf-8") for path in files))


def _sentence(draw: random.Random, words: list[str]) -> str:
    """Prose mostly; formulas, numbered steps, code and wide characters as reasoning has them."""
    kind = draw.random()
    some = " ".join(draw.choices(words, k=draw.randint(5, 24)))
    if kind < 0.08:
        letter = draw.choice("xyzn")
        return f"${letter}^{draw.randint(2, 9)} + {draw.randint(2, 99)}{letter} = {draw.random():.3f}$, so {some}."
    if kind < 0.10:
        return f"```python\n{some} = f(x)\nprint({draw.choice(words)})\n```\n"
    if kind < 0.12:
        return f"因此 n ≥ 3。 naïve π/2 {draw.choice(words)}。"
    if kind < 0.16:
        return f"\n{draw.randint(1, 9)}. {some}."
    return some + draw.choice([".", ".", ".", "?", "!", ", e.g. this one.", ".\n\n"])


def _text(draw: random.Random, words: list[str], size: int) -> str:
    """Sentences of `size` words or a few more."""
    sentences: list[str] = []
    while size > 0:
        sentences.append(_sentence(draw, words))
        size -= sentences[-1].count(" ") + 1
    return " ".join(sentences).strip()


def _tokenizer(sample: list[str], vocabulary: int) -> Tokenizer:
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_SPECIAL,
        show_progress=False,
    )
    result.train_from_iterator(sample, trainer)
    result.add_tokens(["<think>", "</think>"])
    return result


def write_run(folder: Path, replies: int) -> int:
    """A run of replies of a few hundred to 20,000 tokens, and a student without weights; gives the tokens in all."""
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    draw, words = random.Random(0), _words()
    sample = [_text(draw, words, 400) for _ in range(200)]
    teacher = _tokenizer(sample, 6000)
    student = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(sample, 8000), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    student.chat_template = _TEMPLATE
    student.save_pretrained(folder / "student")
    Qwen3Config(vocab_size=len(student), max_position_embeddings=65_536).save_pretrained(folder / "student")
    pieces = token_bytes(teacher.to_str()) or {}
    prompts = [_prompt(f"p{index}", _text(draw, words, 40)) for index in range(50)]
    responses, logprobs = [], []
    for index in range(replies):
        size = int(min(12_000, max(200, draw.lognormvariate(7.4, 0.9))))
        reasoning, answer = _text(draw, words, size * 5 // 6), _text(draw, words, size // 6)
        ids = teacher.encode(completion_text(reasoning, answer) + "<|im_end|>", add_special_tokens=False).ids
        name = f"r{index:06}"
        responses.append(_reply(name, f"p{index % 50}", reasoning, answer, len(ids)))
        values = -np.random.default_rng(index).exponential(0.4, len(ids)).astype(np.float32)
        ends = align([pieces[token] for token in ids], reasoning, answer)
        logprobs.append(
            {"response_id": name, "token_ids": ids, "token_end": ends, "logprob": values, "nonfinite_count": 0}
        )
    run = Run(folder / "run")
    run.append("prompts", columns_table("prompts", prompts))
    run.append("logprobs", columns_table("logprobs", logprobs))
    run.append("responses", columns_table("responses", responses))
    return sum(row["completion_tokens"] for row in responses)


def _prompt(name: str, text: str) -> dict[str, Any]:
    return {
        "prompt_id": name,
        "messages": [{"role": "user", "content": text}],
        "sources": [{"source": "synthetic", "revision": None, "license": None}],
        "gold_conflicts": 0,
    }


def _reply(name: str, prompt_id: str, reasoning: str, answer: str, tokens: int) -> dict[str, Any]:
    return {
        "response_id": name, "prompt_id": prompt_id, "role": "teacher", "model": "toy", "sample_index": 0,
        "temperature": 0.6, "reasoning": reasoning, "answer": answer, "reasoning_format": "tags",
        "finish_reason": "stop", "prompt_tokens": 60, "completion_tokens": tokens, "tool_calls": 0,
        "replaced_characters": 0, "logprobs_mode": "raw", "prefix_chars": 0,
    }  # fmt: skip
