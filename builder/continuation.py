"""Let a teacher go on where a student's text ends: the adapters, and the proof that an endpoint does it.

`think-tag-prefill` gives the prefix as the last chat message and asks the server to leave it open (vLLM's
`continue_final_message`). `think-tag-completions` and `harmony` render the prompt here and send token ids to raw
completions: templates that rewrite an assistant's thinking, and gpt-oss, whose chat form cannot be left open.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import msgspec

from builder.client import Client, Lane, RefusedError, RetryableError, endpoints_of
from builder.config import Generation, MixedPolicy, Recipe, Teacher
from builder.errors import EndpointError, FatalReply
from builder.identity import Message
from builder.models import teacher_tokenizer
from builder.prefix import Prefix
from builder.reply import Usage
from builder.requests import Request, messages_of
from builder.text import THINK_OPEN
from builder.wire import Wire

_QUESTION: Final = ({"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples has he now?"},)
_THINKING: Final = Prefix("First take 3 plus 4 is", None)
_ANSWERING: Final = Prefix("First take 3 plus 4 is 7.", "The answer")


@dataclass(frozen=True)
class ThinkTagPrefill(Wire):
    """The prefix as the last chat message, left open."""

    name_of_adapter: ClassVar[str] = "think-tag-prefill"

    def payload(self, request: Request, *, token_ids: bool) -> dict[str, Any]:
        begun = {"role": "assistant", "content": request.prefix or ""}
        plain = super().payload(request, token_ids=token_ids)
        return {
            **plain,
            "messages": [*request.messages, begun],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }


@dataclass(frozen=True)
class ThinkTagCompletions(Wire):
    """Template, then the prefix, as token ids: what inference would have seen had the teacher written the prefix."""

    name_of_adapter: ClassVar[str] = "think-tag-completions"
    route: ClassVar[str] = "/completions"
    shows_markers: ClassVar[bool] = False

    tokenizer: Any = field(default=None, repr=False)

    def payload(self, request: Request, *, token_ids: bool) -> dict[str, Any]:
        parameters = self.parameters(request, token_ids=token_ids)
        for name in ("reasoning_effort", "chat_template_kwargs"):  # the template has them already
            parameters.pop(name, None)
        return {
            **parameters,
            "prompt": self.prompt_ids(request.messages, Prefix.of(request.prefix or "")),
            **({"logprobs": 0} if self.generation.logprobs else {}),
            **({"skip_special_tokens": False} if self.shows_markers else {}),
        }

    def prompt_ids(self, messages: Sequence[Message], begun: Prefix) -> list[int]:
        """Token ids of the prompt and the prefix. Raises FatalReply where the template refuses the messages."""
        options = dict(self.generation.extra_body.get("chat_template_kwargs") or {})
        if self.generation.reasoning_effort is not None:
            options["reasoning_effort"] = self.generation.reasoning_effort
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **options
            )
        except Exception as error:  # templates are programs of strangers and raise what they like
            raise FatalReply(f"the teacher's chat template refuses the prompt: {error}") from error
        return self.ids(text) + self.prefix_ids(text, begun)

    def prefix_ids(self, prompt: str, begun: Prefix) -> list[int]:
        """Token ids of the prefix behind the prompt, less a think block that the template opened already."""
        opened = prompt.rstrip().endswith(THINK_OPEN)
        text = (
            begun.text.removeprefix(THINK_OPEN).removeprefix(prompt[len(prompt.rstrip()) :]) if opened else begun.text
        )
        return self.ids(text)

    def ids(self, text: str, *, plain: bool = False) -> list[int]:
        """Token ids of a text, nothing added. `plain` spells out control tokens: a student's text holds none."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
        return found


@dataclass(frozen=True)
class Harmony(ThinkTagCompletions):
    """gpt-oss: thinking in the analysis channel, the answer in the final one (openai/harmony docs/format.md)."""

    name_of_adapter: ClassVar[str] = "harmony"
    shows_markers: ClassVar[bool] = True

    def payload(self, request: Request, *, token_ids: bool) -> dict[str, Any]:
        # Chat adds these for gpt-oss, raw completions do not: without them a tool call would go on for ever.
        stops = self.tokenizer.convert_tokens_to_ids(["<|return|>", "<|call|>"])
        return {**super().payload(request, token_ids=token_ids), "stop_token_ids": stops}

    def prefix_ids(self, prompt: str, begun: Prefix) -> list[int]:
        """The message that the prefix begins, left open; one before it is closed."""
        opening = "" if prompt.endswith("<|start|>assistant") else "<|start|>assistant"
        found: list[int] = []
        if begun.reasoning is not None:
            found += self.ids(f"{opening}<|channel|>analysis<|message|>") + self.ids(begun.reasoning, plain=True)
            opening = "<|end|><|start|>assistant"
        if begun.answer is not None:
            found += self.ids(f"{opening}<|channel|>final<|message|>") + self.ids(begun.answer, plain=True)
        return found


@dataclass(frozen=True)
class Continuing:
    """How a teacher goes on: the adapter, and whether it can inside an answer, behind the closed think block."""

    wire: Wire
    adapter: str
    answers: bool


class _Body(msgspec.Struct):
    usage: Usage | None = None


def continuing(recipe: Recipe, policy: MixedPolicy) -> Continuing:
    """The adapter by which every endpoint of the teacher goes on, tried with one-token requests.

    Raises EndpointError where none does, before anything of the run is asked or paid.
    """
    teacher = recipe.require_teacher()
    generation = recipe.generation.model_copy(update={"temperatures": [policy.temperature]})
    tokenizer = teacher_tokenizer(teacher)
    tried: list[str] = []
    for adapter in _adapters(policy.continuation, tokenizer):
        wire = _wire(adapter, teacher, generation, tokenizer)
        if wire is None:
            tried.append(f"{adapter}: the teacher's tokenizer is not to be had (teacher.tokenizer)")
            continue
        thinking, answers, seen = asyncio.run(_try_everywhere(wire, teacher))
        if thinking:
            return Continuing(wire, adapter, answers)
        tried.append(f"{adapter}: {seen}")
    raise EndpointError(
        f"The teacher {teacher.model} cannot go on from a student's text, so there are no mixed-policy rows to be had "
        f"from it here; nothing was asked but a few one-token requests. Tried {'; '.join(tried)}. Serve it with vLLM "
        "(`builder probe` shows what an endpoint gives), or name a tokenizer of it in teacher.tokenizer."
    )


def _adapters(wanted: str, tokenizer: Any) -> list[str]:
    if wanted != "auto":
        return [wanted]
    if tokenizer is not None and {"<|channel|>", "<|message|>"} <= set(tokenizer.get_added_vocab()):
        return [Harmony.name_of_adapter]
    return [ThinkTagPrefill.name_of_adapter, ThinkTagCompletions.name_of_adapter]


def _wire(adapter: str, teacher: Teacher, generation: Generation, tokenizer: Any) -> Wire | None:
    if adapter == ThinkTagPrefill.name_of_adapter:
        return ThinkTagPrefill(teacher, generation, "mixed")
    kind = Harmony if adapter == Harmony.name_of_adapter else ThinkTagCompletions
    return None if tokenizer is None else kind(teacher, generation, "mixed", tokenizer=tokenizer)


async def _try_everywhere(wire: Wire, teacher: Teacher) -> tuple[bool, bool, str]:
    """Whether every endpoint goes on while thinking, and inside an answer; and what was seen."""
    async with Client(endpoints_of(teacher)) as client:
        found = [await try_continuation(client, lane, wire) for lane in client.lanes]
    seen = "; ".join(dict.fromkeys(seen for _, _, seen in found))
    return all(one for one, _, _ in found), all(two for _, two, _ in found), seen


async def try_continuation(client: Client, lane: Lane, wire: Wire) -> tuple[bool, bool, str]:
    """Whether one endpoint goes on while thinking, and inside an answer; and what was seen. Costs up to 8 tokens.

    Believes token counts, not flags: a server that ignores the flag closes the message and opens a new turn, which
    costs more prompt tokens; a template that rewrites thinking costs more than prompt and prefix together.
    """
    try:
        alone = await _prompt_tokens(client, lane, wire, None)
        thinking, seen = await _goes_on(client, lane, wire, _THINKING, alone)
        answers, seen_after = await _goes_on(client, lane, wire, _ANSWERING, alone)
    except RetryableError as error:
        raise EndpointError(
            f"{error}. Whether the teacher can go on from a prefix is not known; rerun later."
        ) from None
    except (EndpointError, msgspec.DecodeError) as error:
        return False, False, f"refused ({error})"
    return thinking, answers, f"while thinking {seen}, inside an answer {seen_after}"


async def _goes_on(client: Client, lane: Lane, wire: Wire, begun: Prefix, alone: int | None) -> tuple[bool, str]:
    open_ended = await _prompt_tokens(client, lane, wire, begun)
    if isinstance(wire, ThinkTagCompletions):
        sent = len(wire.prompt_ids(_QUESTION, begun))
        return open_ended == sent, f"{open_ended} prompt tokens for {sent} ids"
    closed = await _prompt_tokens(client, lane, wire, begun, closed=True)
    prefix = await _text_tokens(client, lane, wire, begun.text)
    if open_ended is None or closed is None or alone is None:
        return False, "no token counts"
    if open_ended >= closed:
        return False, f"the message is closed ({open_ended} prompt tokens, {closed} without the flag)"
    # One token of slack: text alone may begin with a token that every text begins with.
    if prefix is not None and open_ended - alone > prefix + 1:
        return False, f"the template rewrites it ({open_ended} prompt tokens, {alone} for the prompt + {prefix})"
    return True, f"{open_ended} prompt tokens, {closed} when closed"


async def _prompt_tokens(
    client: Client, lane: Lane, wire: Wire, begun: Prefix | None, *, closed: bool = False
) -> int | None:
    """Prompt tokens by the endpoint's count: of the question, with a prefix left open, or with it as a closed turn."""
    messages = messages_of(wire.generation, _QUESTION)
    plain = Request("0" * 64, "", messages, 0.0, 0, 0, 1, begun.text if begun else None)
    if begun is None or closed:
        turn = [{"role": "assistant", "content": begun.text}] if begun else []
        payload = {**Wire.payload(wire, plain, token_ids=False), "messages": [*messages, *turn]}
        return prompt_tokens_of(await client.post(Wire.route, payload, lane))
    return prompt_tokens_of(await client.post(wire.route, wire.payload(plain, token_ids=False), lane))


async def _text_tokens(client: Client, lane: Lane, wire: Wire, text: str) -> int | None:
    """Tokens of a text by itself; None where the endpoint has no raw completions."""
    try:
        return prompt_tokens_of(
            await client.post("/completions", {"model": wire.name, "prompt": text, "max_tokens": 1}, lane)
        )
    except (FatalReply, RefusedError):
        return None


def prompt_tokens_of(body: bytes) -> int | None:
    """Prompt tokens by the endpoint's count; None where it gives none."""
    usage = msgspec.json.decode(body, type=_Body).usage
    return usage.prompt_tokens if usage else None
