"""What an endpoint really gives, and which steps that allows. Asks a handful of short questions; believes no flag."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from builder.client import Client, RefusedError, RejectedError
from builder.config import Generation, Teacher
from builder.continuation import ThinkTagPrefill, prompt_tokens_of, try_continuation
from builder.errors import BuilderError, EndpointError, FatalReply
from builder.prompt_logprobs import REQUESTS, read_echo
from builder.reply import Reply, parse_reply
from builder.section import Endpoint
from builder.student import NoLogprobs
from builder.text import canonical_text
from builder.tokens import AlignError, align
from builder.windows import Row

_QUESTION = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples has he now?"}]
_TOKENS = 160
_SLACK = 1
"""Servers differ by one on whether the end token is counted (lessons: llama.cpp, vLLM)."""


@dataclass(frozen=True)
class Finding:
    """One ability: whether it is there, and what was seen."""

    name: str
    works: bool | None
    seen: str


@dataclass
class ProbeResult:
    """Abilities of an endpoint and the steps that follow from them."""

    url: str
    model: str
    findings: list[Finding] = field(default_factory=list)

    def works(self, name: str) -> bool:
        """Whether an ability was seen to work."""
        return any(finding.name == name and finding.works for finding in self.findings)

    @property
    def steps(self) -> list[Finding]:
        """Steps with the reason for or against each."""
        aligned = self.works("logprobs cover the text")
        rescoring = self.works("prompt logprobs") or self.works("logprobs of an echoed prompt")
        ids = self.works("completions from token ids")
        return [
            Finding("generate", self.works("chat"), "needs chat completions"),
            Finding("score (divergence)", aligned, "needs a logprob for every token of reasoning and answer"),
            Finding("select by random, longest", self.works("chat"), "needs replies only"),
            Finding(
                "score another model's text here", rescoring, "needs prompt logprobs, or those of an echoed prompt"
            ),
            Finding("mix, teachers with think tags", self.works("continues a prefix") or ids, "needs either of them"),
            Finding("mix, gpt-oss (harmony)", ids, "needs completions from token ids"),
        ]


def probe(url: str, model: str | None = None, *, api_key_env: str | None = None) -> ProbeResult:
    """Probe one endpoint. Raises EndpointError when nothing answers or the model is not there."""
    return asyncio.run(_probe(Endpoint(url=url, api_key_env=api_key_env), model))


async def _probe(endpoint: Endpoint, model: str | None) -> ProbeResult:
    async with Client([endpoint]) as client:
        names = await _names(client, model)
        if model is None and len(names) != 1:
            raise EndpointError(
                f"{endpoint.url} serves {', '.join(names) or 'nothing it lists'}; choose one with --model."
            )
        if model is not None and names and model not in names:
            raise EndpointError(f"{endpoint.url} serves {', '.join(names[:5])}, not {model!r}. Nothing was asked.")
        name = model or names[0]
        result = ProbeResult(endpoint.url, name)
        asker = _Asker(client, name)
        if await _chat(asker, result):
            await _logprobs(asker, result)
            await _checked(result, "same seed, same reply", lambda: _seeds(asker))
            await _checked(result, "temperature leaves logprobs alone", lambda: _raw_logprobs(asker))
            await _checked(result, "prompt logprobs", lambda: _prompt_logprobs(asker))
            await _checked(result, "logprobs of an echoed prompt", lambda: _echo(asker))
            await _checked(result, "continues a prefix", lambda: _continuation(asker))
            await _checked(result, "completions from token ids", lambda: _token_ids_in(asker))
    return result


async def _names(client: Client, model: str | None) -> list[str]:
    try:
        return await client.models()
    except (FatalReply, RefusedError):
        if model is None:
            raise
        return []  # a server without a list of models may still answer


@dataclass(frozen=True)
class _Asker:
    client: Client
    model: str

    async def body(self, **parameters: Any) -> bytes:
        """One chat completion, raw."""
        request = {"model": self.model, "messages": _QUESTION, "max_tokens": _TOKENS, "temperature": 0.0, **parameters}
        return await self.client.post("/chat/completions", request)

    async def plain(self, **parameters: Any) -> dict[str, Any]:
        """One chat completion as JSON: what it holds besides the reply. Raises EndpointError where it is none."""
        body = await self.body(**parameters)
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found.get("choices"):
            raise EndpointError(f"the answer is no chat completion: {body[:80].decode(errors='replace')}")
        return found

    async def reply(self, **parameters: Any) -> Reply:
        """One chat completion, parsed."""
        return parse_reply(await self.body(**parameters))


async def _checked(result: ProbeResult, name: str, look: Callable[[], Awaitable[Finding]]) -> None:
    """Run one look; an endpoint that refuses it lacks the ability."""
    try:
        result.findings.append(await look())
    except BuilderError as error:
        result.findings.append(Finding(name, False, str(error)))


async def _chat(asker: _Asker, result: ProbeResult) -> bool:
    try:
        reply = await asker.reply()
    except BuilderError as error:
        result.findings.append(Finding("chat", False, str(error)))
        return False
    result.findings.append(Finding("chat", True, f"finish_reason {reply.finish_reason}"))
    kind = {"field": "in a field of its own", "none": "none in the reply"}.get(
        reply.reasoning_format, "inside the text"
    )
    result.findings.append(Finding("reasoning", reply.reasoning is not None, kind))
    counted = reply.prompt_tokens is not None and reply.completion_tokens is not None
    result.findings.append(Finding("usage", counted, f"{reply.prompt_tokens} + {reply.completion_tokens} tokens"))
    return True


async def _logprobs(asker: _Asker, result: ProbeResult) -> None:
    async def look() -> Finding:
        try:
            reply = await asker.reply(logprobs=True, top_logprobs=0, return_token_ids=True)
        except RejectedError:  # perhaps only vLLM's flag for token ids; generate goes on without it too
            reply = await asker.reply(logprobs=True, top_logprobs=0)
        usage = reply.completion_tokens
        finite = sum(value is not None and math.isfinite(value) for value in reply.logprobs)
        enough = usage is not None and abs(len(reply.logprobs) - usage) <= _SLACK
        result.findings.append(Finding("logprobs", finite > 0 and enough, f"{finite} finite for {usage} tokens"))
        ids = len(reply.token_ids)
        result.findings.append(Finding("token ids", ids > 0 and ids == len(reply.logprobs), f"{ids} ids"))
        try:
            ends = align(reply.pieces, reply.reasoning, reply.answer)
        except AlignError as error:
            return Finding("logprobs cover the text", False, str(error))
        size = len(canonical_text(reply.reasoning, reply.answer).encode())
        return Finding(
            "logprobs cover the text", bool(len(ends)) and int(ends[-1]) == size and finite > 0, f"{size} bytes"
        )

    await _checked(result, "logprobs", look)


async def _seeds(asker: _Asker) -> Finding:
    texts = []
    for seed in (7, 7, 8, 9, 10):
        reply = await asker.reply(temperature=1.0, seed=seed)
        texts.append(canonical_text(reply.reasoning, reply.answer))
    same, different = texts[0] == texts[1], len(set(texts[1:])) > 1
    seen = "repeats with the seed" if same else "differs with one seed"
    return Finding("same seed, same reply", same and different, seen if different else "all seeds give one reply")


async def _raw_logprobs(asker: _Asker) -> Finding:
    """The first token's logprob at two temperatures, for the same token."""
    found: dict[float, dict[str, float]] = {}
    for temperature in (0.5, 1.0):
        for seed in range(3):
            body = await asker.plain(temperature=temperature, seed=seed, max_tokens=1, logprobs=True, top_logprobs=5)
            content = (body["choices"][0].get("logprobs") or {}).get("content") or []
            for entry in content[:1]:
                for one in [entry, *(entry.get("top_logprobs") or [])]:
                    if isinstance(one.get("logprob"), float | int):
                        found.setdefault(temperature, {})[one.get("token", "")] = one["logprob"]
    common = set(found.get(0.5, {})) & set(found.get(1.0, {}))
    if not common:
        return Finding("temperature leaves logprobs alone", None, "no token was seen at both temperatures")
    gap = max(abs(found[0.5][token] - found[1.0][token]) for token in common)
    return Finding("temperature leaves logprobs alone", gap < 0.02, f"largest difference {gap:.3f} nats")


async def _prompt_logprobs(asker: _Asker) -> Finding:
    body = await asker.plain(max_tokens=1, prompt_logprobs=1)
    values = body.get("prompt_logprobs") or body["choices"][0].get("prompt_logprobs") or []
    return Finding("prompt logprobs", len(values) > 1, f"{len(values)} positions")


async def _echo(asker: _Asker) -> Finding:
    """Whether completions give the logprobs of a prompt of token ids; few ids, which every vocabulary has."""
    row = Row([20], [21, 22])
    request = {"model": asker.model, "prompt": row.ids, "max_tokens": 1, "temperature": 1.0, **REQUESTS["echo"]}
    found = read_echo(await asker.client.post("/completions", request), row)
    said = found.reason if isinstance(found, NoLogprobs) else f"{len(found)} logprobs for {len(found)} tokens"
    return Finding("logprobs of an echoed prompt", not isinstance(found, NoLogprobs), said)


async def _continuation(asker: _Asker) -> Finding:
    """Whether the last assistant message can be left open; what was seen names answers apart from thinking."""
    wire = ThinkTagPrefill(Teacher(model=asker.model), Generation())
    thinking, _, seen = await try_continuation(asker.client, asker.client.lanes[0], wire)
    return Finding("continues a prefix", thinking, seen)


async def _token_ids_in(asker: _Asker) -> Finding:
    """Whether raw completions take a prompt of token ids; few ids, which every vocabulary has."""
    body = await asker.client.post("/completions", {"model": asker.model, "prompt": [20, 21, 22], "max_tokens": 1})
    counted = prompt_tokens_of(body)
    return Finding("completions from token ids", counted == 3, f"{counted} prompt tokens for 3 ids")
