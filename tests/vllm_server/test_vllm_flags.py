"""What `builder serve --engine vllm --print` prints, read by the installed vLLM itself. Needs `make vllm`."""

import json
import os
import shlex
import subprocess
from typing import Any

import pytest
from typer.testing import CliRunner

from builder.cli import app
from builder.toy.train import TEACHER
from builder.vllm_command import _PARSERS
from builder.vllm_server import find_python

pytestmark = pytest.mark.vllm

READ = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.reasoning import ReasoningParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
found = []
for line in json.loads(sys.argv[1]):
    options = parser.parse_args(line)
    validate_parsed_serve_args(options)
    found.append({name: value for name, value in vars(options).items() if isinstance(value, str | int | list | None)})
print("READ " + json.dumps({"options": found, "parsers": list(ReasoningParserManager.list_registered())}, default=str))
"""
TEMPLATES = {
    "gpt_oss": "",
    "qwen3_moe": "{{ '<think>' if enable_thinking }}",
    "deepseek_v3": "{{'<｜Assistant｜><think>\\n'}}",
}


def printed(*arguments: str) -> list[str]:
    """What follows the module in the printed line."""
    done = CliRunner().invoke(app, ["serve", *arguments[:1], "--engine", "vllm", "--print", *arguments[1:]])
    assert done.exit_code == 0, done.stderr
    words = shlex.split(done.stdout)
    return words[words.index("vllm.entrypoints.openai.api_server") + 1 :]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Options as vLLM's own parser reads each printed line, and the names of its reasoning parsers; one start."""
    root = tmp_path_factory.mktemp("flags")
    lines = {"toy": printed(str(TEACHER), "--max-model-len", "512", "--", "--seed", "3")}
    smi = root / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo "GPU $i: NVIDIA H200"; done\n', encoding="utf-8")
    smi.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for kind, template in TEMPLATES.items():
            (folder := root / kind).mkdir()
            config = {"model_type": kind, "num_attention_heads": 64, "num_key_value_heads": 8}
            (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
            lines[kind] = printed(str(folder), "--host", "0.0.0.0", "--port", "9000")
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_PYTHON"} | {"HF_HUB_OFFLINE": "1"}
    command = [find_python(), "-P", "-c", READ, json.dumps(list(lines.values()))]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("READ "))[5:])
    return {"parsers": found["parsers"], **dict(zip(lines, found["options"], strict=True))}


def test_vllm_reads_the_flags_for_a_cpu_as_they_are_meant(read: Any) -> None:
    toy = read["toy"]
    assert (toy["model"], toy["served_model_name"]) == (str(TEACHER.resolve()), ["teacher"])
    assert (toy["host"], toy["port"], toy["max_model_len"], toy["seed"]) == ("127.0.0.1", 8000, 512, 3)
    assert (toy["dtype"], toy["enforce_eager"], toy["enable_chunked_prefill"]) == ("float32", True, False)
    assert (toy["max_num_batched_tokens"], toy["tensor_parallel_size"]) == (16384, 1)
    assert (toy["reasoning_parser"], toy["disable_uvicorn_access_log"]) == ("qwen3", True)


def test_vllm_reads_the_flags_for_eight_gpus_as_they_are_meant(read: Any) -> None:
    parsers = {"gpt_oss": "openai_gptoss", "qwen3_moe": "qwen3", "deepseek_v3": "deepseek_r1"}
    for kind, parser in parsers.items():
        options = read[kind]
        assert (options["reasoning_parser"], options["tensor_parallel_size"]) == (parser, 8)
        assert (options["host"], options["port"], options["served_model_name"]) == ("0.0.0.0", 9000, [kind])
        assert (options["dtype"], options["enforce_eager"], options["enable_chunked_prefill"]) == ("auto", False, None)


def test_vllm_gives_raw_logprobs_and_applies_no_sampling_of_its_own(read: Any) -> None:
    for name in ("toy", *TEMPLATES):
        options = read[name]
        assert (options["logprobs_mode"], options["max_logprobs"]) == ("raw_logprobs", 20)
        assert options["generation_config"] == "vllm"


def test_vllm_knows_every_parser_that_we_choose(read: Any) -> None:
    assert {"openai_gptoss", "qwen3", "deepseek_r1", "deepseek_v3", *_PARSERS.values()} <= set(read["parsers"])
