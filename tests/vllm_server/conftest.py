"""Two servers for all tests, one after the other: with the reasoning parser that we choose, and with none."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served

from builder.toy.train import TEACHER
from builder.vllm_server import running_vllm


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy teacher, with sampling settings of its own that nobody asked for."""
    folder = Path(shutil.copytree(TEACHER, tmp_path_factory.mktemp("vllm") / "teacher"))
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"do_sample": True, "top_k": 1, "max_new_tokens": 3}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", params=[("auto", "field", "field"), ("none", "tags", "prefilled")], ids=lambda p: p[0])
def served(model: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    parser, form, prefilled_form = request.param
    extra = ["--trust-request-chat-template"]
    with running_vllm(model, model_name="toy-teacher", reasoning_parser=parser, extra=extra) as url:
        yield Served(url, form, prefilled_form)
