import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from endpoint import DROP, Ask, endpoint, reply_to, text_reply_to

from builder.errors import EndpointError
from builder.probe import probe


def vllm(ask: Ask) -> bytes:
    """A server with every ability: prompt logprobs, continuation without a new turn, greedy at temperature 0."""
    seed = ask.body.get("seed") if ask.body["temperature"] else None
    reply = reply_to({**ask.body, "messages": ask.body["messages"][:1], "seed": seed})
    if ask.body.get("prompt_logprobs"):
        reply["prompt_logprobs"] = [None, {"5": {"logprob": -1.0}}, {"6": {"logprob": -2.0}}]
    if len(ask.body["messages"]) > 1 and not ask.body.get("continue_final_message"):
        reply["usage"]["prompt_tokens"] += 5
    return json.dumps(reply).encode()


def echo(ask: Ask) -> bytes | None:
    """A completion with the prompt's logprobs before its own, where echo is asked."""
    if not ask.body.get("echo"):
        return None
    reply = text_reply_to(ask.body)
    logprobs, prompt = reply["choices"][0]["logprobs"], ask.body["prompt"]
    logprobs["tokens"] = [str(index) for index in prompt] + logprobs["tokens"][:1]
    logprobs["token_logprobs"] = [None, *[-1.5] * (len(prompt) - 1), -0.5]
    return json.dumps(reply).encode()


def findings(script: Callable[[Ask], Any], **options: Any) -> dict[str, bool | None]:
    with endpoint(script=script, **options) as server:
        result = probe(server.url)
    assert len({finding.name for finding in result.findings}) == len(result.findings)
    return {finding.name: finding.works for finding in result.findings}


def steps(script: Callable[[Ask], Any], **options: Any) -> dict[str, bool | None]:
    with endpoint(script=script, **options) as server:
        return {step.name: step.works for step in probe(server.url).steps}


def test_an_able_endpoint_allows_every_step() -> None:
    found = findings(vllm, completes=True, text_script=echo)
    assert [name for name, works in found.items() if not works] == []
    assert set(found) >= {
        "chat",
        "reasoning",
        "usage",
        "logprobs",
        "token ids",
        "prompt logprobs",
        "logprobs of an echoed prompt",
        "continues a prefix",
        "completions from token ids",
    }
    assert all(steps(vllm, completes=True, text_script=echo).values())


def test_flags_that_merely_do_not_fail_are_not_believed() -> None:
    def deaf(ask: Ask) -> bytes:
        known = {name: ask.body[name] for name in ("model", "messages", "max_tokens")}
        reply = reply_to({**known, "seed": None})
        reply["usage"]["prompt_tokens"] = 11 * len(ask.body["messages"])
        return json.dumps(reply).encode()

    found = findings(deaf)
    assert found["chat"]
    assert [found[name] for name in ("logprobs", "token ids", "same seed, same reply", "prompt logprobs")] == [
        False
    ] * 4
    assert not found["continues a prefix"]
    assert steps(deaf) == {
        "generate": True,
        "score (divergence)": False,
        "select by random, longest": True,
        "score another model's text here": False,
        "mix, teachers with think tags": False,
        "mix, gpt-oss (harmony)": False,
    }


@pytest.mark.parametrize(
    "refusal", [400, 422, 500, b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b"", DROP]
)
def test_an_extension_that_is_refused_is_an_ability_that_lacks(refusal: Any) -> None:
    def strict(ask: Ask) -> Any:
        extra = {"prompt_logprobs", "continue_final_message", "logprobs", "top_logprobs", "return_token_ids"}
        return refusal if extra & set(ask.body) else vllm(ask)

    found = findings(strict)
    assert found["chat"]
    assert found["same seed, same reply"]
    assert not any(found[name] for name in ("logprobs", "prompt logprobs", "continues a prefix"))


def test_an_echoed_prompt_rescores_where_prompt_logprobs_lack() -> None:
    def plain(ask: Ask) -> Any:
        return 400 if "prompt_logprobs" in ask.body else vllm(ask)

    found = findings(plain, completes=True, text_script=echo)
    assert (found["prompt logprobs"], found["logprobs of an echoed prompt"]) == (False, True)
    assert steps(plain, completes=True, text_script=echo)["score another model's text here"]


def test_an_echo_without_the_prompts_logprobs_is_not_believed() -> None:
    assert findings(vllm, completes=True)["logprobs of an echoed prompt"] is False


def test_logprobs_are_found_where_only_token_ids_are_refused() -> None:
    found = findings(lambda ask: 400 if "return_token_ids" in ask.body else vllm(ask))
    assert (found["logprobs"], found["logprobs cover the text"], found["token ids"]) == (True, True, False)


def test_logprobs_scaled_by_temperature_are_told_apart() -> None:
    def scaled(ask: Ask) -> bytes:
        reply = json.loads(vllm(ask))
        for entry in ((reply["choices"][0]["logprobs"] or {}).get("content") or [])[:1]:
            entry["logprob"] = -1.0 / (ask.body["temperature"] or 1.0)
        return json.dumps(reply).encode()

    assert findings(scaled)["temperature leaves logprobs alone"] is False


def test_missing_logprobs_leave_the_question_of_temperature_open() -> None:
    def missing(ask: Ask) -> bytes:
        return (
            vllm(ask).replace(b'"logprob": -', b'"logprob": null, "x": -').replace(b'"logprob": 0.0', b'"logprob": NaN')
        )

    found = findings(missing)
    assert not found["logprobs"]
    assert not found["temperature leaves logprobs alone"]


def test_an_endpoint_whose_chat_fails_allows_nothing() -> None:
    assert findings(lambda ask: 500) == {"chat": False}
    assert not any(steps(lambda ask: b"<html>").values())


def test_the_model_must_be_clear_before_anything_is_asked() -> None:
    with endpoint(model="other") as server:
        with pytest.raises(EndpointError, match="serves other, not 'toy'"):
            probe(server.url, "toy")
        server.models_body = b'{"data": [{"id": "a"}, {"id": "b"}]}'
        with pytest.raises(EndpointError, match="serves a, b; choose one with --model"):
            probe(server.url)
        server.models_body = b"{}"
        with pytest.raises(EndpointError, match="serves nothing it lists"):
            probe(server.url)
        assert server.asks == []


def test_a_server_without_a_list_of_models_is_probed_by_name() -> None:
    with endpoint(model=None, script=vllm) as server:
        assert probe(server.url, "toy").works("chat")
        with pytest.raises(EndpointError, match="answered 404"):
            probe(server.url)


def test_nobody_at_the_address_is_one_sentence() -> None:
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached"):
        probe("http://127.0.0.1:9/v1")


def test_a_key_is_sent_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-hunter2-hunter2")
    script = lambda ask: web.Response(status=500, text=ask.authorization)  # noqa: E731
    with endpoint(script=script) as server:
        result = probe(server.url, api_key_env="TEACHER_KEY")
        assert server.asks[0].authorization == "Bearer sk-hunter2-hunter2"
    assert "hunter2" not in repr(result)
