"""Adapters that let a teacher go on: what they send, and which one an endpoint gets."""

import json
from pathlib import Path
from typing import Any

import pytest
from endpoint import Ask, Endpoint, endpoint, reply_to
from score_toys import byte_level, save_student
from transformers import PreTrainedTokenizerFast

from builder.config import Generation, MixedPolicy, Recipe, Teacher
from builder.continuation import Harmony, ThinkTagCompletions, ThinkTagPrefill, continuing
from builder.errors import EndpointError
from builder.requests import Request

THINKING = "<think>\nOne and two"
ANSWERING = "<think>\nIt is three.\n</think>\n\nSo the"
MARKERS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
HARMONY_TEMPLATE = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def request(prefix: str) -> Request:
    return Request("0" * 64, "p", [{"role": "user", "content": "One and two?"}], 1.0, 0, 7, 64, prefix, "r-1")


def harmony_tokenizer() -> PreTrainedTokenizerFast:
    core = byte_level()
    core.add_special_tokens(MARKERS)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|return|>", pad_token="<|endoftext|>")
    fast.chat_template = HARMONY_TEMPLATE
    return fast


def sent(tokenizer: Any, wire: ThinkTagCompletions, prefix: str) -> str:
    payload = wire.payload(request(prefix), token_ids=True)
    assert "messages" not in payload and payload["max_tokens"] == 64 and payload["seed"] == 7
    return str(tokenizer.decode(payload["prompt"]))


def test_prefill_leaves_the_prefix_open_as_the_last_message() -> None:
    wire = ThinkTagPrefill(Teacher(model="toy"), Generation(reasoning_effort="high"), "mixed")
    payload = wire.payload(request(THINKING), token_ids=True)
    assert payload["messages"][-1] == {"role": "assistant", "content": THINKING}
    assert (payload["continue_final_message"], payload["add_generation_prompt"]) == (True, False)
    assert (payload["logprobs"], payload["return_token_ids"], payload["reasoning_effort"]) == (True, True, "high")


def test_harmony_ids_open_the_analysis_or_the_final_message() -> None:
    tokenizer = harmony_tokenizer()
    wire = Harmony(Teacher(model="toy"), Generation(reasoning_effort="high"), "mixed", tokenizer=tokenizer)
    prompt = "<|start|>system<|message|>Reasoning: high<|end|><|start|>user<|message|>One and two?<|end|>"
    thinking = "<|start|>assistant<|channel|>analysis<|message|>"
    final = "<|start|>assistant<|channel|>final<|message|>"
    assert sent(tokenizer, wire, THINKING) == f"{prompt}{thinking}One and two"
    assert sent(tokenizer, wire, ANSWERING) == f"{prompt}{thinking}It is three.<|end|>{final}So the"
    assert sent(tokenizer, wire, "So the") == f"{prompt}{final}So the"
    payload = wire.payload(request(THINKING), token_ids=True)
    assert payload["skip_special_tokens"] is False and payload["logprobs"] == 0
    assert "reasoning_effort" not in payload
    assert payload["stop_token_ids"] == tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])


def test_markers_that_a_student_spells_stay_text_and_end_no_message() -> None:
    tokenizer = harmony_tokenizer()
    wire = Harmony(Teacher(model="toy"), Generation(), "mixed", tokenizer=tokenizer)
    ids = wire.payload(request("<think>\nI say <|end|> here"), token_ids=False)["prompt"]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert ids.count(end) == 2  # of the system and the user message
    assert tokenizer.decode(ids).endswith("I say <|end|> here")


@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_raw_completions_show_the_teacher_what_it_would_have_written_itself(tmp_path: Path, opened: str) -> None:
    from transformers import AutoTokenizer

    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] " + opened.replace("\n", "{{ '\n' }}") + "{% endif %}"
    )
    tokenizer = AutoTokenizer.from_pretrained(save_student(tmp_path / "m", template=template))
    wire = ThinkTagCompletions(Teacher(model="toy"), Generation(), "mixed", tokenizer=tokenizer)
    assert sent(tokenizer, wire, THINKING) == "[user] One and two?\n[assistant] <think>\nOne and two"
    assert sent(tokenizer, wire, ANSWERING).endswith("[assistant] <think>\nIt is three.\n</think>\n\nSo the")


def recipe(server: Endpoint, tokenizer: Path | str = "none") -> Recipe:
    teacher = {"model": "toy", "tokenizer": str(tokenizer), "endpoints": [{"url": server.url}]}
    return Recipe.model_validate({"name": "toy", "teacher": teacher})


def counts(ask: Ask, *, leaves_open: bool = True, rewrites: int = 0, answers: bool = True) -> bytes:
    """11 prompt tokens, one a word of an assistant message, 5 for the end of a turn and the beginning of another."""
    reply = reply_to({**ask.body, "messages": ask.body["messages"][:1], "max_tokens": 1})
    last = ask.body["messages"][-1]
    if last["role"] == "assistant":
        words = len(last["content"].split())
        dropped = "</think>" in last["content"] and not answers
        if dropped or not leaves_open or not ask.body.get("continue_final_message"):
            words += 5
        reply["usage"]["prompt_tokens"] += words + rewrites
    return json.dumps(reply).encode()


def test_a_server_that_leaves_the_message_open_is_taken_at_its_token_counts() -> None:
    with endpoint(script=counts, completes=True) as server:
        found = continuing(recipe(server), MixedPolicy())
    assert (found.adapter, found.answers) == ("think-tag-prefill", True)
    assert all(ask.body["max_tokens"] == 1 for ask in server.asks)
    assert len(server.asks) == 7


def test_a_template_that_drops_thinking_before_an_answer_limits_where_rollouts_are_cut() -> None:
    with endpoint(script=lambda ask: counts(ask, answers=False), completes=True) as server:
        found = continuing(recipe(server), MixedPolicy())
    assert (found.adapter, found.answers) == ("think-tag-prefill", False)


@pytest.mark.parametrize(
    ("options", "seen"),
    [({"leaves_open": False}, "the message is closed"), ({"rewrites": 4}, "the template rewrites it")],
)
def test_a_teacher_that_cannot_go_on_is_refused_with_what_was_seen(options: dict[str, Any], seen: str) -> None:
    with (
        endpoint(script=lambda ask: counts(ask, **options), completes=True) as server,
        pytest.raises(EndpointError, match=seen) as caught,
    ):
        continuing(recipe(server), MixedPolicy())
    assert "think-tag-completions: the teacher's tokenizer is not to be had" in str(caught.value)


def test_where_chat_cannot_be_left_open_raw_completions_do_it_with_the_teachers_tokenizer(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "teacher")
    with endpoint(script=lambda ask: counts(ask, leaves_open=False), completes=True) as server:
        found = continuing(recipe(server, folder), MixedPolicy())
    assert (found.adapter, found.answers) == ("think-tag-completions", True)


def test_a_teacher_with_harmony_tokens_goes_on_by_token_ids(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "teacher")
    harmony_tokenizer().save_pretrained(folder)
    with endpoint(completes=True) as server:
        assert continuing(recipe(server, folder), MixedPolicy()).adapter == "harmony"
    with endpoint(completes=False) as server, pytest.raises(EndpointError, match="harmony: refused"):
        continuing(recipe(server, folder), MixedPolicy())


def test_an_endpoint_that_is_down_says_that_nothing_is_known() -> None:
    with endpoint() as server:
        asked = recipe(server)
    with pytest.raises(EndpointError, match="is not known; rerun later"):
        continuing(asked, MixedPolicy())
