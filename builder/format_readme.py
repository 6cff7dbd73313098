"""What stands beside the files of an export: where the rows are from, how to load them, what they lack."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml


@dataclass(frozen=True)
class StageFile:
    """A stage as a file: `config` is its name in the format, `stage` in the release."""

    config: str
    stage: str
    kind: str
    file: str
    rows: int


@dataclass(frozen=True)
class About:
    """What README.md and dataset_info.json say."""

    format: str
    source: str
    revision: str
    recipe_name: str
    version: str
    build_id: str
    license: str | None
    system_prompt: str | None
    stages: Sequence[StageFile]
    companion: int | None
    notes: Sequence[str]


_HAS_SYSTEM: Final = ("messages", "alpaca", "sharegpt")
_LOST: Final = {
    "dasd": "System prompts have no column. Scores, source and temperature of a row are in `meta`, a JSON object.",
    "messages": "Scores, policy and `prefix_chars` of the rows stay in the release; rows join it by `response_id`.",
    "alpaca": "Scores, policy, source and `prefix_chars` stay in the release; rows join it by `response_id`.",
    "sharegpt": "Scores, policy, source and `prefix_chars` stay in the release; rows join it by `response_id`.",
    "axolotl-kd": (
        "Texts, ids and scores stay in the release. The teacher's logprobs are those of the tokens that it sampled "
        "and of no others: one target a token (k = 1)."
    ),
}


def readme(about: About) -> str:
    """README.md of an export, with the front matter by which `datasets.load_dataset(folder, config)` finds files."""
    head = {
        **({"license": about.license} if about.license else {}),
        "configs": [{"config_name": one.config, "data_files": one.file} for one in about.stages],
    }
    rows = "".join(f"| `{one.file}` | {one.stage} | {one.kind} | {one.rows:,} |\n" for one in about.stages)
    if about.companion is not None:
        rows += f"| `logprob.parquet` | all | tokens and logprobs by `sample_uuid` | {about.companion:,} |\n"
    notes = "".join(f"- {note}.\n" for note in about.notes)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n"
        f"# {about.recipe_name} {about.version} as {about.format}\n\n"
        f"Exported by `builder release --format {about.format}` from release {about.version} of {about.source}"
        f"{f' at {about.revision}' if about.revision != about.build_id else ''}, build_id `{about.build_id}`. "
        f"License: {about.license or 'none was declared'}; the release's card names those of its sources.\n\n"
        f"| file | stage | kind | rows |\n|---|---|---|---|\n{rows}\n"
        "Stages stand in training order, and each begins with the weights of the one before unless the release says "
        "otherwise. Rows stand in the order of the first epoch, which holds only where the tool does not shuffle.\n\n"
        f"{_use(about)}\n## What these files lack\n\n- {_LOST[about.format]}\n{notes}"
    )


def dataset_info(about: About) -> str:
    """`dataset_info.json` as LLaMA-Factory reads it from its `dataset_dir` (data/README.md there)."""
    found: dict[str, Any] = {}
    for one in about.stages:
        pair = {"chosen": "chosen", "rejected": "rejected"} if one.kind == "reward" else {}
        if about.format == "alpaca":
            columns = {"prompt": "instruction", "query": "input", "system": "system", "history": "history"}
            columns |= pair or {"response": "output"}
        else:
            columns = {"messages": "conversations", "system": "system", **pair}
        found[dataset_name(about, one)] = {
            "file_name": one.file,
            **({"formatting": "sharegpt"} if about.format == "sharegpt" else {}),
            **({"ranking": True} if pair else {}),
            "columns": columns,
        }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def dataset_name(about: About, stage: StageFile) -> str:
    """Name of a stage in `dataset_info.json`: that of the release and the stage's."""
    return f"{about.recipe_name}-{about.version}-{stage.config}"


def _use(about: About) -> str:
    if about.format in ("alpaca", "sharegpt"):
        return _llama_factory(about)
    if about.format == "axolotl-kd":
        return _axolotl(about)
    text = f'```python\ndatasets.load_dataset("<this folder>", "{about.stages[0].config}", split="train")\n```\n'
    if about.format == "messages":
        if any(one.kind == "sft" for one in about.stages):
            text += (
                "`messages` does not say what is trained: TRL trains every token of it, prompts too, unless "
                "`assistant_only_loss=True`. The release itself has `prompt` and `completion`, which say it.\n"
            )
        return text
    if about.system_prompt:
        text += f"Train with the system prompt {json.dumps(about.system_prompt, ensure_ascii=False)}.\n"
    return text


def _llama_factory(about: About) -> str:
    names = ",".join(dataset_name(about, one) for one in about.stages[:1])
    return (
        f"LLaMA-Factory, one run a stage (here {about.stages[0].stage}):\n\n"
        f"```yaml\ndataset_dir: <this folder>\ndataset: {names}\n"
        'default_system: ""       # else rows without a system prompt get the template\'s\n'
        "mask_history: true       # else earlier replies of a conversation are trained too\n"
        "disable_shuffling: true  # keep the order of the rows\n```\n"
    )


def _axolotl(about: About) -> str:
    return (
        f"Axolotl 0.19, one run a stage (here {about.stages[0].stage}):\n\n"
        "```yaml\nplugins: [axolotl.integrations.kd.KDPlugin]\nkd_trainer: true\nkd_ce_alpha: 0.1\nkd_alpha: 0.9\n"
        "kd_temperature: 1.0\nkd_normalize_topk: false  # true makes the loss of one target a constant\n"
        f"datasets:\n  - path: <this folder>/{about.stages[0].file}\n    ds_type: parquet\n    type:\n"
        "curriculum_sampling: true  # keep the order of the rows\n```\n"
        "The loss on a target is p · (log p − log q), p the teacher's probability of the token and q the student's: "
        "cross entropy weighted by how sure the teacher was, not a divergence over the vocabulary. `target_*[i]` is "
        "for the token behind `input_ids[i]`. Think tags and the end of a turn have no target, only labels.\n"
    )
