"""Releases, tokenizers and students small enough to train in a test. Nothing here knows the builder."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

SCHEMA = Path(__file__).parents[2] / "data_cards" / "manifest.schema.json"
ZERO = "0" * 64
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

# ChatML as Qwen3-*-Instruct-2507 writes it: no think block of its own.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<eos>", "<pad>", "<|eot_id|>", "<|begin_of_text|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>"]


def train_tokenizer(
    template: str | None,
    eos: str | None = "<|im_end|>",
    pad: str | None = "<|endoftext|>",
    special: list[str] = SPECIAL,
) -> Any:
    """A byte-level tokenizer trained here, with `<think>` as plain added tokens, as Qwen3 has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(["the sum of one and two is three, so the answer is three\n"] * 4, trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    return fast


def save_student(
    path: Path, tokenizer: Any, stops: list[int] | int | None = None, seed: int = 0, spread: float = 0.02
) -> Path:
    """A Qwen3 of a few thousand parameters with random weights."""
    set_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        initializer_range=spread,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id if stops is None else stops)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def reply(number: int, position: Any, **changes: Any) -> dict[str, Any]:
    """One sft row with all columns of a release."""
    row = {
        "prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{number} + 1?"}],
        "completion": [{"role": "assistant", "content": f"<think>\none more than {number}\n</think>\n\n{number + 1}"}],
        "position": position, "response_id": f"r{number}", "prompt_id": f"p{number}", "domain": "math",
        "temperature": 0.6, "policy": "teacher", "teacher": "t", "teacher_revision": "1", "n_candidates": 1,
        "teacher_sentences": 1, "sentence_count": 1, "mean_delta": 0.2, "student_tokens": 20, "prefix_chars": 0,
        "source": "toy", "source_license": "mit",
    }  # fmt: skip
    return row | changes


def stage_rows(first: int, count: int) -> list[dict[str, Any]]:
    """Rows in file order by id; `position` runs the other way, so that the two orders differ."""
    return [reply(first + i, count - 1 - i) for i in range(count)]


def write_release(
    root: Path,
    stages: dict[str, list[dict[str, Any]]],
    *,
    version: str = "v1",
    extra: dict[str, list[dict[str, Any]]] | None = None,
    schedule: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """A release whose manifest fits the project's schema. `schedule` changes entries by stage name."""
    entries = []
    for config, rows in {**stages, **(extra or {})}.items():
        path = root / "data" / config / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table_of(rows), path)
        if config in stages:
            rowset = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
            entry = {
                "stage": config, "config": config, "kind": "sft", "init": "previous", "rows": len(rows),
                "tokens": None, "rowset_hash": rowset, "epochs": None,
            }  # fmt: skip
            entries.append(entry | (schedule or {}).get(config, {}))
    (root / "README.md").write_text("# a release\n", encoding="utf-8")
    write_manifest(root, version, entries)
    return root


def table_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    table = pa.Table.from_pylist(list(rows) or [reply(0, 0)])
    told = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
    table = table.cast(pa.schema(told))  # a column of nulls has its type in a release
    for name in ("prompt", "completion"):
        if name in table.column_names and pa.types.is_list(table.schema.field(name).type):
            index = table.column_names.index(name)
            table = table.set_column(index, name, table.column(name).cast(MESSAGES))
    return table if rows else table.slice(0, 0)


def write_manifest(root: Path, version: str, schedule: list[dict[str, Any]]) -> None:
    files = []
    for path in sorted(p for p in root.rglob("*") if p.is_file() and ".builder" not in p.parts):
        content = path.read_bytes()
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
        sha = hashlib.sha256(content).hexdigest()
        files.append({"path": path.relative_to(root).as_posix(), "sha256": sha, "bytes": len(content), "rows": rows})
    model = {"model": "t", "revision": "1", "tokenizer": None, "system_prompt": None}
    selection = {
        "selection_id": "s",
        "order": "rules-first",
        "rules": [],
        "selector": "random",
        "params": {},
        "keep": 1,
    }
    manifest = {
        "format": 1, "version": version, "build_id": hashlib.sha256(version.encode()).hexdigest(),
        "created": "2026-11-22T00:00:00Z", "parent": None, "recipe_name": "toy", "recipe_hash": ZERO, "seed": 0,
        "license": "mit", "repo": None, "sql": {}, "prompts": [], "teacher": model, "student": None, "sampling": {},
        "selection": selection, "funnel": [], "rollout": None, "files": files, "schedule": schedule, "calls": {},
        "mixed_policy": None, "score_remarks": {}, "packages": {},
    }  # fmt: skip
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text(encoding="utf-8")))
    (root / ".builder").mkdir(exist_ok=True)
    (root / ".builder" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / ".builder" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def prompt_row(number: int, position: int, **changes: Any) -> dict[str, Any]:
    """One grpo row with all columns of a release."""
    row = {
        "prompt": [{"role": "user", "content": f"{number} + 1?"}], "solution": str(number + 1), "gold_type": "integer",
        "verifier": "math", "language": "en", "domain": "math", "position": position, "prompt_id": f"p{number}",
    }  # fmt: skip
    return row | changes


def pair_row(number: int, position: int, **changes: Any) -> dict[str, Any]:
    """One reward row with all columns of a release: an answer is preferred to none."""
    thoughts = f"<think>\none more than {number}\n</think>\n\n"
    row = {
        "prompt": [{"role": "user", "content": f"{number} + 1?"}],
        "chosen": [{"role": "assistant", "content": f"{thoughts}{number + 1}"}],
        "rejected": [{"role": "assistant", "content": f"{thoughts}who knows"}],
        "gap": 2.0, "position": position,
    }  # fmt: skip
    return row | changes
