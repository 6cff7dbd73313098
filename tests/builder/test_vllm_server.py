"""`builder serve --engine vllm` without vLLM: which command it builds, and a stand-in program instead of the server."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

from builder import vllm_server
from builder.cli import app
from builder.errors import ServeError, UsageError
from builder.toy.train import TEACHER
from builder.vllm_command import VllmCommand, visible_gpus, vllm_command
from builder.vllm_server import find_python, free_port, running_vllm, serve_vllm

THINKING = "{{ '<think>' if enable_thinking }}"
R1_TEMPLATE = "{{'<｜Assistant｜><think>\\n'}}"
V31_TEMPLATE = "{% if thinking %}<think>{% else %}</think>{% endif %}"


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a nvidia-smi that lists so many GPUs in front of any other."""

    def put(number: int) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        lines = [f"GPU {i}: NVIDIA H200 (UUID: GPU-{i})\\n  MIG 1g.18gb Device 0" for i in range(number)]
        program.write_text("#!/bin/sh\nprintf '" + "\\n".join([*lines, ""]) + "'\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    put(0)
    return put


def model(folder: Path, template: str = THINKING, **config: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)


def flags(command: VllmCommand) -> dict[str, str]:
    """Flags with their values; switches with none."""
    given = command.arguments[2:]
    return {
        flag: "" if i + 1 == len(given) or given[i + 1].startswith("--") else given[i + 1]
        for i, flag in enumerate(given)
        if flag.startswith("--")
    }


def test_every_command_asks_for_raw_logprobs_and_the_recipes_sampling_alone(gpus: Any) -> None:
    for number in (0, 2):
        gpus(number)
        given = flags(vllm_command(str(TEACHER), model_name="toy"))
        assert given["--logprobs-mode"] == "raw_logprobs"
        assert given["--max-logprobs"] == "20"
        assert given["--generation-config"] == "vllm"
        assert (given["--served-model-name"], given["--host"]) == ("toy", "127.0.0.1")


def test_a_cpu_gets_the_flags_that_its_build_needs(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    command = vllm_command(str(TEACHER))
    given = flags(command)
    assert (given["--dtype"], given["--tensor-parallel-size"]) == ("float32", "1")
    assert {"--enforce-eager", "--no-enable-chunked-prefill"} <= set(given)
    assert command.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert flags(vllm_command(str(TEACHER), max_model_len=20000))["--max-num-batched-tokens"] == "20000"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "8")
    assert vllm_command(str(TEACHER)).environment["VLLM_CPU_KVCACHE_SPACE"] == "8"


def test_a_gpu_gets_no_flag_of_the_cpu_build(gpus: Any) -> None:
    gpus(1)
    command = vllm_command(str(TEACHER))
    assert not {"--dtype", "--enforce-eager", "--no-enable-chunked-prefill"} & set(flags(command))
    assert "VLLM_CPU_KVCACHE_SPACE" not in command.environment


@pytest.mark.parametrize(
    ("found", "heads", "shared", "parallel"),
    [(8, 64, 8, 8), (8, 28, 4, 4), (6, 64, 8, 4), (8, 4, 2, 4), (3, None, None, 3), (8, 24, None, 8)],
)
def test_the_model_is_spread_over_as_many_gpus_as_divide_its_heads(
    gpus: Any, tmp_path: Path, found: int, heads: int | None, shared: int | None, parallel: int
) -> None:
    gpus(found)
    folder = model(tmp_path / "m", text_config={"num_attention_heads": heads, "num_key_value_heads": shared})
    assert flags(vllm_command(folder))["--tensor-parallel-size"] == str(parallel)


def test_hidden_gpus_are_not_counted(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(8)
    assert visible_gpus() == 8
    for chosen, number in (("0,3", 2), ("", 0), ("-1", 0), ("0,1,2,3,4,5,6,7,8", 8)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert visible_gpus() == number


@pytest.mark.parametrize(
    ("kind", "template", "parser"),
    [
        ("gpt_oss", "", "openai_gptoss"),
        ("qwen3", THINKING, "qwen3"),
        ("qwen3_moe", THINKING, "qwen3"),
        ("qwen3_moe", "instruct", None),
        ("deepseek_v3", R1_TEMPLATE, "deepseek_r1"),
        ("deepseek_v3", V31_TEMPLATE, "deepseek_v3"),
        ("deepseek_v3", "instruct", None),
        ("qwen2", R1_TEMPLATE, "deepseek_r1"),
        ("llama", R1_TEMPLATE, "deepseek_r1"),
        ("llama", "instruct", None),
        ("glm4_moe", THINKING, "glm45"),
        ("seed_oss", "<seed:think>", "seed_oss"),
    ],
)
def test_the_parser_follows_the_kind_and_whether_the_template_thinks(
    tmp_path: Path, kind: str, template: str, parser: str | None
) -> None:
    folder = model(tmp_path / "m", template, model_type=kind)
    assert flags(vllm_command(folder)).get("--reasoning-parser") == parser
    assert flags(vllm_command(folder, reasoning_parser="step3"))["--reasoning-parser"] == "step3"
    assert "--reasoning-parser" not in flags(vllm_command(folder, reasoning_parser="none"))


def test_a_template_inside_the_tokenizers_settings_counts(tmp_path: Path) -> None:
    folder = Path(model(tmp_path / "m", model_type="qwen3"))
    (folder / "chat_template.jinja").unlink()
    assert "--reasoning-parser" not in flags(vllm_command(str(folder)))
    named = {"chat_template": [{"name": "default", "template": THINKING}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    assert flags(vllm_command(str(folder)))["--reasoning-parser"] == "qwen3"


def test_a_hub_model_keeps_its_name_and_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(model(tmp_path / "m", model_type="qwen3"))
    asked = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, revision))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    command = vllm_command("Qwen/Qwen3-8B", revision="abc123")
    given = flags(command)
    assert given["--model"] == given["--served-model-name"] == "Qwen/Qwen3-8B"
    assert given["--revision"] == given["--tokenizer-revision"] == "abc123"
    assert given["--reasoning-parser"] == "qwen3"
    assert set(asked) == {("Qwen/Qwen3-8B", "abc123")}
    assert "HF_HUB_OFFLINE" not in command.environment
    assert vllm_command(str(folder)).environment["HF_HUB_OFFLINE"] == "1"


def test_a_hub_model_out_of_reach_needs_its_parser_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ServeError, match=r"config\.json of a/b at revision v1 cannot be read.*--reasoning-parser"):
        vllm_command("a/b", revision="v1")
    assert "--reasoning-parser" not in flags(vllm_command("a/b", reasoning_parser="none"))


def test_a_server_open_to_other_machines_without_a_key_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert not vllm_command(str(TEACHER)).is_open
    assert vllm_command(str(TEACHER), host="0.0.0.0").is_open
    assert not vllm_command(str(TEACHER), host="0.0.0.0", extra=["--api-key=k"]).is_open
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert not vllm_command(str(TEACHER), host="0.0.0.0").is_open


def test_what_cannot_be_served_is_said_at_once(gpus: Any, tmp_path: Path) -> None:
    gpus(2)
    with pytest.raises(ServeError, match="no folder on this machine and no Hub name"):
        vllm_command("/no/such/folder")
    with pytest.raises(ServeError, match=r"holds no config\.json"):
        vllm_command(str(tmp_path))
    with pytest.raises(UsageError, match="--revision v1 chooses a commit on the Hub"):
        vllm_command(str(TEACHER), revision="v1")
    with pytest.raises(UsageError, match="--tensor-parallel 4 needs 4 GPUs; `nvidia-smi -L` shows 2"):
        vllm_command(str(TEACHER), tensor_parallel=4)
    with pytest.raises(UsageError, match="'seed' is no flag of vLLM"):
        vllm_command(str(TEACHER), extra=["seed"])


def test_print_gives_a_line_for_the_shell_and_flags_after_the_dashes_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PYTHON", sys.executable)
    folder = model(tmp_path / "a model", model_type="qwen3")
    options = ["serve", folder, "--engine", "vllm", "--port", "9", "--print", "--", "--max-model-len", "64"]
    done = CliRunner().invoke(app, options)
    words = shlex.split(done.stdout)
    assert sys.executable in words
    assert words[words.index("--model") + 1] == folder
    assert words[words.index("--served-model-name") + 1] == "a model"
    assert words[-2:] == ["--max-model-len", "64"]
    assert {"PYTHONSAFEPATH=1", "VLLM_NO_USAGE_STATS=1", "HF_HUB_OFFLINE=1"} <= set(words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "vllm", "--max-batch", "8"], "--max-batch means nothing to --engine vllm"),
        (["--engine", "vllm", "--threads", "1"], "--threads means nothing to --engine vllm"),
        (["--print"], "--print means nothing to --engine local"),
        (["--tensor-parallel", "2"], "--tensor-parallel means nothing to --engine local"),
        (["--", "--seed", "1"], "flags after -- means nothing to --engine local"),
        (["--engine", "sglang"], "--engine 'sglang' is not known"),
    ],
)
def test_an_option_of_the_other_engine_is_refused(options: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["serve", str(TEACHER), *options])
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr


def test_the_python_of_vllm_is_found_or_its_installation_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "__file__", str(tmp_path / "elsewhere" / "builder" / "vllm_server.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    (tmp_path / "vllm").mkdir()  # a folder of that name is no installation
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ServeError, match="make vllm"):
        find_python()
    assert " python -m vllm" in CliRunner().invoke(app, ["serve", str(TEACHER), "--engine", "vllm", "--print"]).stdout
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert find_python() == str(python)
    monkeypatch.setenv("VLLM_PYTHON", sys.executable)
    assert find_python() == sys.executable
    monkeypatch.setenv("VLLM_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(ServeError, match="nothing, which is no program"):
        find_python()


STAND_IN = """\
import http.server, os, pathlib, signal, subprocess, sys, time
mode = pathlib.Path(__file__).with_name("mode").read_text()
port = int(sys.argv[sys.argv.index("--port") + 1])
if mode == "dies":
    print("RuntimeError: the root cause", flush=True)
    print(*(f"line {i}" for i in range(50)), sep="\\n")
    sys.exit(3)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path(__file__).with_name("pids").write_text(f"{os.getpid()} {worker.pid}")
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else lambda *_: os._exit(0))
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
if mode == "silent":
    time.sleep(60)
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of vLLM's Python: it listens, has a worker, and behaves as the file `mode` says."""
    (tmp_path / "server.py").write_text(STAND_IN, encoding="utf-8")
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "server.py"} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "mode").write_text("listens", encoding="utf-8")
    monkeypatch.setenv("VLLM_PYTHON", str(program))
    monkeypatch.setattr(vllm_server, "_STOP_SECONDS", 1.0)
    return tmp_path


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits for a parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def all_end(folder: Path) -> bool:
    pids = [int(pid) for pid in (folder / "pids").read_text(encoding="utf-8").split()]
    deadline = time.monotonic() + 10
    while not all(map(ended, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(pids) == 2 and all(map(ended, pids))


@pytest.mark.parametrize("mode", ["listens", "deaf"])
def test_the_block_has_a_server_and_leaves_no_process_behind(stand_in: Path, mode: str) -> None:
    (stand_in / "mode").write_text(mode, encoding="utf-8")
    with running_vllm(TEACHER) as url:
        health = url.removesuffix("/v1") + "/health"
        assert urllib.request.urlopen(health, timeout=5).status == 200
    assert all_end(stand_in)


def test_a_server_that_never_listens_is_ended_in_time(stand_in: Path) -> None:
    (stand_in / "mode").write_text("silent", encoding="utf-8")
    with pytest.raises(ServeError, match="did not listen in 1 s"), running_vllm(TEACHER, start_seconds=1.0):
        pass
    assert all_end(stand_in)


def test_a_server_that_dies_first_is_told_with_its_cause_and_last_words(stand_in: Path) -> None:
    (stand_in / "mode").write_text("dies", encoding="utf-8")
    with pytest.raises(ServeError, match=r"(?s)exit code 3.*RuntimeError: the root cause.*line 49"):
        serve_vllm(vllm_command(str(TEACHER), port=free_port()), ready=print)
    with (
        pytest.raises(ServeError, match=r"(?s)exit code 3.*RuntimeError: the root cause.*line 49"),
        running_vllm(TEACHER),
    ):
        pass


def test_a_port_in_use_is_said_before_anything_loads(stand_in: Path) -> None:
    with running_vllm(TEACHER) as url:
        port = int(url.removesuffix("/v1").rsplit(":", 1)[1])
        with pytest.raises(ServeError, match=rf"Cannot listen on 127\.0\.0\.1:{port}"):
            serve_vllm(vllm_command(str(TEACHER), port=port), ready=print)
        with pytest.raises(ServeError, match="Choose another --port"), running_vllm(TEACHER, port=port):
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_command_ends_the_engine(stand_in: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "builder.cli", "serve", str(TEACHER), "--engine", "vllm", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    late = threading.Timer(60, process.kill)
    late.start()
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith("serving teacher at http://127.0.0.1:")
    process.send_signal(number)
    assert process.wait() == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    late.cancel()
    if number == signal.SIGKILL:  # the kernel tells vLLM, and vLLM its workers; this stand-in does not
        pids = (stand_in / "pids").read_text(encoding="utf-8").split()
        os.kill(int(pids[1]), signal.SIGKILL)
    assert all_end(stand_in)
