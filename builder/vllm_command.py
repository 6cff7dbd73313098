"""The command that serves a model with vLLM: flags and environment variables. Reads a model's files, starts nothing.

What every flag is for, measured on vLLM 0.32: the builder needs the logprob of every token that was sampled, thinking
included, as the model gave it (`raw_logprobs`: before temperature and cuts), and sampling settings that come from the
recipe alone (`--generation-config vllm`: else the model's own top_k and top_p apply to requests that name none, and
the logprobs say nothing of them).
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from builder.errors import ServeError, UsageError

_MODULE: Final = "vllm.entrypoints.openai.api_server"
_BATCHED_TOKENS: Final = 16384
_HUB_NAME: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_THINKS: Final = re.compile(r"</?(seed:)?think>")
_PARSERS: Final = {"glm4_moe": "glm45", "minimax_m2": "minimax_m2", "seed_oss": "seed_oss"}


@dataclass(frozen=True)
class VllmCommand:
    """Arguments of the interpreter, and what the environment holds besides its own variables."""

    name: str
    host: str
    port: int
    arguments: list[str]
    environment: dict[str, str]

    @property
    def is_open(self) -> bool:
        """Whether other machines can use the model without a key."""
        keyed = os.environ.get("VLLM_API_KEY") or any(text.split("=")[0] == "--api-key" for text in self.arguments)
        return not keyed and self.host not in ("127.0.0.1", "localhost", "::1")

    def shell(self, python: str) -> str:
        """One line to paste into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join([python, *self.arguments])])


def vllm_command(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    model_name: str | None = None,
    revision: str | None = None,
    reasoning_parser: str = "auto",
    tensor_parallel: int | None = None,
    max_model_len: int | None = None,
    extra: Sequence[str] = (),
) -> VllmCommand:
    """The command for a folder or a Hub model. `extra` goes last, so that it wins over what is chosen here.

    `tensor_parallel` defaults to the most GPUs of this machine that divide the attention heads; without a GPU the
    flags are those of vLLM's CPU build. Raises ServeError where there is no such model, UsageError for options that
    contradict it.
    """
    folder = Path(model) if Path(model).is_dir() else None
    if folder is None and not _HUB_NAME.fullmatch(model):
        raise ServeError(f"{model} is no folder on this machine and no Hub name such as Qwen/Qwen3-8B.")
    if folder is not None and revision is not None:
        raise UsageError(f"--revision {revision} chooses a commit on the Hub; {model} is a folder on this machine.")
    if extra and not extra[0].startswith("-"):
        raise UsageError(f"{extra[0]!r} is no flag of vLLM; what follows -- is passed on to it, such as -- --seed 1.")
    config, template = _described(model, folder, revision, needed=reasoning_parser == "auto")
    parser = _parser(config, template) if reasoning_parser == "auto" else reasoning_parser
    gpus = visible_gpus()
    name = model_name or (folder.resolve().name if folder else model)
    flags: dict[str, str | int | None] = {
        "--model": str(folder.resolve()) if folder else model,
        "--served-model-name": name,
        "--revision": revision,
        "--tokenizer-revision": revision,
        "--host": host,
        "--port": port,
        "--max-logprobs": 20,
        "--logprobs-mode": "raw_logprobs",
        "--generation-config": "vllm",
        "--reasoning-parser": None if parser == "none" else parser,
        "--max-model-len": max_model_len,
        "--tensor-parallel-size": _parallel(tensor_parallel, gpus, config),
    }
    environment = {"PYTHONSAFEPATH": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    switches = ["--disable-uvicorn-access-log"]
    if folder is not None:
        environment["HF_HUB_OFFLINE"] = "1"
    if not gpus:
        # One part for each prompt: seeds of requests kill vLLM's CPU engine where prompts are cut into chunks.
        longest = max_model_len or _text(config).get("max_position_embeddings") or 0
        flags |= {"--dtype": "float32", "--max-num-batched-tokens": max(_BATCHED_TOKENS, longest)}
        switches += ["--enforce-eager", "--no-enable-chunked-prefill"]
        environment["VLLM_CPU_KVCACHE_SPACE"] = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    given = [text for flag, value in flags.items() if value is not None for text in (flag, str(value))]
    return VllmCommand(name, host, port, ["-m", _MODULE, *given, *switches, *extra], environment)


def visible_gpus() -> int:
    """NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves of those that `nvidia-smi -L` lists; 0 without nvidia-smi."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = sum(line.startswith("GPU ") for line in listed.splitlines())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    return min(found, sum(device.strip() not in ("", "-1") for device in chosen.split(",")))


def _parallel(wanted: int | None, gpus: int, config: dict[str, Any]) -> int:
    if wanted is None:
        heads, shared = (_text(config).get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
        return max((n for n in range(1, gpus + 1) if _divides(n, heads, shared or heads)), default=1)
    if wanted > max(gpus, 1):
        raise UsageError(f"--tensor-parallel {wanted} needs {wanted} GPUs; `nvidia-smi -L` shows {gpus} here.")
    return wanted


def _divides(gpus: int, heads: int | None, shared: int | None) -> bool:
    """Whether vLLM can split the attention so: the same heads everywhere, key-value heads split or copied."""
    if not heads or not shared:
        return True
    return heads % gpus == 0 and (shared % gpus == 0 or gpus % shared == 0)


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the language model, which those of models that also see keep inside."""
    return {**config, **(config.get("text_config") or {})}


def _parser(config: dict[str, Any], template: str) -> str:
    """vLLM's name for the parser of this model's reasoning, or `none`: then it stays inside the text, between tags.

    A template without a think tag stands for a model that does not think: a parser would take all it says for thought.
    """
    kind = str(config.get("model_type", ""))
    if kind == "gpt_oss":
        return "openai_gptoss"
    if not _THINKS.search(template):
        return "none"
    if kind.startswith("qwen3"):
        return "qwen3"
    if kind.startswith("deepseek_v3") and re.search(r"\bthinking\b", template):
        return "deepseek_v3"  # V3.1 thinks only when asked to
    return _PARSERS.get(kind, "deepseek_r1")


def _described(model: str, folder: Path | None, revision: str | None, *, needed: bool) -> tuple[dict[str, Any], str]:
    """config.json and the chat template; both empty where they cannot be had and are not needed."""
    path = _file(model, folder, revision, "config.json")
    if path is None:
        if folder is not None:
            raise ServeError(f"{folder} holds no config.json, so it is no model that vLLM can serve.")
        if needed:
            at = f" at revision {revision}" if revision else ""
            raise ServeError(
                f"config.json of {model}{at} cannot be read from the Hub, and without it the reasoning parser is not "
                "known. Check name, revision, network and HF_TOKEN, or name it: --reasoning-parser none (or qwen3, …)."
            )
        return {}, ""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        plain = _file(model, folder, revision, "chat_template.jinja")
        if plain is not None:
            return config, plain.read_text(encoding="utf-8")
        tokenizer = _file(model, folder, revision, "tokenizer_config.json")
        found = json.loads(tokenizer.read_text(encoding="utf-8")).get("chat_template") if tokenizer else None
    except (OSError, ValueError) as error:
        raise ServeError(f"config.json or the chat template of {model} cannot be read: {error}.") from None
    return config, json.dumps(found or "", ensure_ascii=False)  # one template, or a list of named ones


def _file(model: str, folder: Path | None, revision: str | None, name: str) -> Path | None:
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
