"""Tokens and labels: what is trained follows exactly what inference prompts, and ends where inference stops."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer_toys import CHATML, reply, save_student, train_tokenizer

from trainer import render
from trainer.errors import ModelError, ReleaseError, RenderError

# Qwen3-*-Thinking-2507 opens the think block in its generation prompt and drops thoughts of earlier turns.
QWEN_THINKING = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%").replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# DeepSeek-R1-Distill: drops everything before the closing tag, opens the block without a line break of its own.
R1_DISTILL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|Assistant|>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% else %}<|User|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>{% endif %}"
)
MESSAGE = "<think>\none more than 7\n</think>\n\n8"


@dataclass(frozen=True)
class Family:
    template: str
    eos: str
    stops: tuple[str, ...]
    bos: str | None
    prompt: str  # what inference prompts, written by hand
    trained: str  # what has to follow, written by hand


FAMILIES = {
    "qwen3-instruct": Family(
        CHATML, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), None,
        "<|im_start|>user\n7 + 1?<|im_end|>\n<|im_start|>assistant\n", f"{MESSAGE}<|im_end|>",
    ),
    "qwen3-thinking": Family(
        QWEN_THINKING, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), None,
        "<|im_start|>user\n7 + 1?<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "one more than 7\n</think>\n\n8<|im_end|>",
    ),
    "llama-3": Family(
        LLAMA, "<|eot_id|>", ("<|eot_id|>",), "<|begin_of_text|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n7 + 1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n", f"{MESSAGE}<|eot_id|>",
    ),
    "gemma": Family(
        GEMMA, "<eos>", ("<eos>", "<end_of_turn>"), "<bos>",
        "<bos><start_of_turn>user\n7 + 1?<end_of_turn>\n<start_of_turn>model\n", f"{MESSAGE}<end_of_turn>",
    ),
    "r1-distill": Family(
        R1_DISTILL, "<eos>", ("<eos>",), "<s>",
        "<s><|User|>7 + 1?<|Assistant|><think>", "\none more than 7\n</think>\n\n8<eos>",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, render.Renderer]:
    chosen = FAMILIES[request.param]
    tokenizer = train_tokenizer(chosen.template, eos=chosen.eos, pad="<pad>")
    if chosen.bos:
        tokenizer.bos_token = chosen.bos
    stops = [tokenizer.convert_tokens_to_ids(token) for token in chosen.stops]
    path = save_student(tmp_path_factory.mktemp(request.param), tokenizer, stops)
    return chosen, render.Renderer(path, request.param)


def row(**changes: Any) -> dict[str, Any]:
    return reply(7, 0, prompt=[{"role": "user", "content": "7 + 1?"}]) | changes


def test_trained_tokens_follow_exactly_what_inference_prompts(family: tuple[Family, render.Renderer]) -> None:
    chosen, renderer = family
    ((ids, masked),) = renderer.encode([row()])
    tokenizer = renderer.tokenizer
    prompted = tokenizer.apply_chat_template(row()["prompt"], add_generation_prompt=True, return_dict=False)
    assert ids[:masked] == prompted
    assert tokenizer.decode(ids[:masked]) == chosen.prompt
    assert tokenizer.decode(ids[masked:]) == chosen.trained


def test_think_is_opened_once(family: tuple[Family, render.Renderer]) -> None:
    _, renderer = family
    ((ids, _),) = renderer.encode([row()])
    assert ids.count(renderer.tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert ids.count(renderer.tokenizer.convert_tokens_to_ids("</think>")) == 1


def test_last_trained_token_is_where_inference_stops(family: tuple[Family, render.Renderer]) -> None:
    _, renderer = family
    ((ids, _),) = renderer.encode([row()])
    assert ids[-1] in renderer.stops
    assert renderer.added_stop is None and renderer.warnings() == []


def test_prompt_is_masked_and_everything_after_is_trained(
    family: tuple[Family, render.Renderer], tmp_path: Path
) -> None:
    _, renderer = family
    rendered = render.tokens([[row()]], renderer, tmp_path / "a.arrow", stage="s", limit=None, drop=False)
    item, ((ids, masked),) = rendered[0][0], renderer.encode([row()])
    assert item["input_ids"] == ids
    assert item["labels"] == [-100] * masked + ids[masked:]
    counts = {
        "rows": 1,
        "dropped_rows": 0,
        "longest": len(ids),
        "tokens": len(ids),
        "trained_tokens": len(ids) - masked,
    }
    assert rendered[1] == counts
    again = render.tokens(iter(()), renderer, tmp_path / "a.arrow", stage="s", limit=None, drop=False)
    assert again[0][0] == item and again[1] == counts


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> render.Renderer:
    return render.Renderer(save_student(tmp_path_factory.mktemp("chatml"), train_tokenizer(CHATML)), "chatml")


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@given(
    positions=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1, max_size=20), cut=st.integers(0, 20)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_rows_come_in_position_order(chatml: render.Renderer, long_lived: Path, positions: list[int], cut: int) -> None:
    rows = [reply(number, position) for number, position in enumerate(positions)]
    batches = [batch for batch in (rows[:cut], rows[cut:]) if batch]
    path = long_lived / f"{uuid4()}.arrow"
    dataset, _ = render.tokens(batches, chatml, path, stage="s", limit=None, drop=False)
    texts = [chatml.tokenizer.decode(ids) for ids in dataset["input_ids"]]
    expected = sorted(range(len(positions)), key=positions.__getitem__)
    assert [int(text.partition("user\n")[2].partition(" +")[0]) for text in texts] == expected


@pytest.mark.parametrize("positions", [[0, None], [3, 3]])
def test_null_or_repeated_positions_are_refused(
    chatml: render.Renderer, tmp_path: Path, positions: list[int | None]
) -> None:
    rows = [reply(number, position) for number, position in enumerate(positions)]
    with pytest.raises(ReleaseError, match="`position` is null or repeated"):
        render.tokens([rows], chatml, tmp_path / "a.arrow", stage="s", limit=None, drop=False)


def test_too_long_rows_are_refused_with_counts(chatml: render.Renderer, tmp_path: Path) -> None:
    long = reply(2, 1, completion=[{"role": "assistant", "content": "<think>\n" + "so " * 99 + "\n</think>\n\n3"}])
    options: dict[str, Any] = {"stage": "low-temperature", "limit": 70}
    with pytest.raises(RenderError, match=r"1 of 2 rows exceed max_length 70 .*first r2"):
        render.tokens([[reply(1, 0), long]], chatml, tmp_path / "a.arrow", **options, drop=False)
    kept = render.tokens([[reply(1, 0), long]], chatml, tmp_path / "b.arrow", **options, drop=True)
    assert (kept[1]["rows"], kept[1]["dropped_rows"], kept[1]["longest"] <= 70) == (1, 1, True)
    with pytest.raises(RenderError, match="1 of 1 rows"):
        render.tokens([[long]], chatml, tmp_path / "c.arrow", **options, drop=True)


def test_a_row_of_exactly_max_length_is_kept(chatml: render.Renderer, tmp_path: Path) -> None:
    ((ids, _),) = chatml.encode([reply(1, 0)])
    options: dict[str, Any] = {"stage": "s", "drop": False}
    assert render.tokens([[reply(1, 0)]], chatml, tmp_path / "a.arrow", limit=len(ids), **options)[1]["rows"] == 1
    with pytest.raises(RenderError):
        render.tokens([[reply(1, 0)]], chatml, tmp_path / "b.arrow", limit=len(ids) - 1, **options)


def test_a_stop_token_spelled_in_a_reply_is_refused(chatml: render.Renderer) -> None:
    with pytest.raises(RenderError, match="r7 spells a stop token"):
        chatml.encode([row(completion=[{"role": "assistant", "content": "<think>\na\n</think>\n\n<|im_end|>8"}])])


ANSWER = {"role": "assistant", "content": "8"}
SHAPES: list[dict[str, Any]] = [
    {"prompt": []}, {"prompt": None}, {"prompt": [None]}, {"prompt": [{"role": "user", "content": None}]},
    {"prompt": [{"role": None, "content": "7 + 1?"}]}, {"prompt": [{"role": "user", "content": 8}]},
    {"completion": []}, {"completion": None}, {"completion": [None]}, {"completion": [ANSWER, ANSWER]},
    {"completion": [{"role": "user", "content": "8"}]}, {"completion": [ANSWER | {"content": None}]},
    {"completion": [ANSWER | {"content": ""}]}, {"completion": [ANSWER | {"content": 8}]},
    {"completion": [ANSWER | {"reasoning_content": "thoughts that nothing would train"}]},
]  # fmt: skip


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_a_row_of_another_shape_is_refused(chatml: render.Renderer, changes: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="one assistant message"):
        chatml.encode([row(**changes)])


def test_null_keys_of_a_message_are_none(chatml: render.Renderer) -> None:
    nulls = {"tool_calls": None, "reasoning_content": None}
    prompt = [turn | nulls for turn in row()["prompt"]]
    assert chatml.encode([row(prompt=prompt, completion=[ANSWER | nulls])]) == chatml.encode([row(completion=[ANSWER])])


def test_a_pad_token_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    path = save_student(tmp_path / "m", train_tokenizer(CHATML))
    tokenizer = train_tokenizer(CHATML)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(path)
    with pytest.raises(ModelError, match=r"Token \d+ is past the model's last of"):
        render.Renderer(path, "m").encode([row()])


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "generation_config.json"])
def test_a_torn_file_of_the_model_is_refused(tmp_path: Path, name: str) -> None:
    path = save_student(tmp_path / "m", train_tokenizer(CHATML))
    (path / name).write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="m is not a model with a tokenizer"):
        render.Renderer(path, "m")


def make(tmp_path: Path, template: str | None, **tokens: Any) -> render.Renderer:
    return render.Renderer(
        save_student(tmp_path / "m", train_tokenizer(template, **tokens), stops=tokens.pop("stops", 0)), "m"
    )


def test_an_answer_without_thoughts_fits_no_template_that_opens_them(tmp_path: Path) -> None:
    renderer = make(tmp_path, QWEN_THINKING)
    with pytest.raises(RenderError, match="lacks a <think> block"):
        renderer.encode([row(completion=[{"role": "assistant", "content": "8"}])])


def test_thoughts_fit_no_template_that_closes_them(tmp_path: Path) -> None:
    closing = QWEN_THINKING.replace("<think>\n{%", "<think>\n\n</think>\n\n{%")
    with pytest.raises(RenderError, match="has a <think> block"):
        make(tmp_path, closing).encode([row()])


def test_a_role_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"r7: the chat template refuses the prompt: System role not supported"):
        make(tmp_path, GEMMA, eos="<eos>").encode([reply(7, 0)])


def test_an_end_of_turn_that_generation_ignores_is_added_and_told(tmp_path: Path) -> None:
    renderer = make(tmp_path, CHATML)  # the model's files stop at token 0 only
    assert renderer.added_stop == "<|im_end|>"
    assert "checkpoints will" in renderer.warnings()[0]


def test_a_template_without_end_of_turn_is_closed_by_eos(tmp_path: Path) -> None:
    renderer = make(tmp_path, "{% for m in messages %}{{ m.content }}\n{% endfor %}", eos="<eos>")
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.end) == ["<eos>"]


def test_without_pad_token_the_end_of_turn_keeps_its_label(tmp_path: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    renderer = make(tmp_path, CHATML, pad=None)
    assert any("no pad token" in warning for warning in renderer.warnings())
    rows = [reply(1, 1), row(completion=[{"role": "assistant", "content": "<think>\nx\n</think>\n\n1234567"}])]
    data = render.tokens([rows], renderer, tmp_path / "a", stage="s", limit=None, drop=False)[0]
    batch = DataCollatorForLanguageModeling(pad_token_id=renderer.tokenizer.eos_token_id)([data[0], data[1]])
    ends = (batch["labels"] == renderer.end[-1]).sum(dim=1).tolist()
    assert ends == [1, 1]


@pytest.mark.parametrize(
    ("template", "tokens", "message"),
    [
        (None, {}, "no chat template"),
        (CHATML, {"eos": None}, "no eos token"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {}, "loses an assistant's answer"),
        ("{{ raise_exception('never') }}", {}, "cannot render a turn: never"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_is_refused(
    tmp_path: Path, template: str | None, tokens: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        make(tmp_path, template, **tokens)


def test_a_tokenizer_of_another_model_is_refused(chatml: render.Renderer, tmp_path: Path) -> None:
    small = copy.copy(chatml)
    small.vocabulary = 100
    with pytest.raises(ModelError, match="past the model's last"):
        render.tokens([[reply(1, 0)]], small, tmp_path / "a", stage="s", limit=None, drop=False)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model"):
        render.Renderer(tmp_path, "nothing")
