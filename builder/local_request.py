"""Requests to the local server: vLLM's chat and completion bodies, checked and turned into `Ask`s.

Stricter than vLLM 0.32 on purpose: a parameter that we do not have, or one that the chat template does not read,
is refused with 400 instead of being dropped in silence.
"""

import re
from typing import TYPE_CHECKING, Any

from builder.errors import ServeError
from builder.local_engine import Engine
from builder.local_sampling import Ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Json = dict[str, Any]

MAX_ALTERNATIVES = 20  # vLLM's default of --max-logprobs
MAX_CHOICES = 128

# Parameters with the values that change nothing here; every other value is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "stream": (False,),
    "stream_options": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "include_stop_str_in_output": (False,),
    "spaces_between_special_tokens": (True,),
    "include_reasoning": (True,),
    "use_beam_search": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
}
_WITHOUT_EFFECT = {"user", "metadata", "store", "priority", "request_id", "parallel_tool_calls"}
_SAMPLING = {
    "model",
    "max_tokens",
    "n",
    "seed",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "logprobs",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "add_special_tokens",
}
_CHAT = _SAMPLING | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "reasoning_effort",
}
_COMPLETION = _SAMPLING | {"prompt", "echo"}


class Refused(ServeError):
    """A request that the server cannot answer as asked, with its HTTP status and the parameter at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status

    def body(self) -> Json:
        kind = {404: "NotFoundError", 400: "BadRequestError"}.get(self.status, "InternalServerError")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.status}}


class Requests:
    """Reads the requests to one engine, served under one model name."""

    def __init__(self, engine: Engine, model_name: str, max_model_len: int) -> None:
        self._tokenizer: PreTrainedTokenizerBase = engine.tokenizer
        self._vocabulary = engine.vocabulary
        self.model_name = model_name
        self.max_model_len = max_model_len
        template = self._tokenizer.chat_template
        self._template = template if isinstance(template, str) else ""

    def chat_asks(self, body: Json) -> list[Ask]:
        """One Ask a choice. Raises Refused."""
        self._check_known(body, _CHAT)
        logprobs = _flag(body, "logprobs", False)
        top = _integer(body, "top_logprobs", 0, high=MAX_ALTERNATIVES) or 0
        if top and not logprobs:
            raise Refused("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        prompt = self._encode(self._render(body), _flag(body, "add_special_tokens", False))
        name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        return self._asks(body, prompt, _integer(body, name, None, low=1), top, None)

    def completion_asks(self, body: Json) -> list[Ask]:
        """One Ask a choice, prompt after prompt. Raises Refused."""
        self._check_known(body, _COMPLETION)
        echo = _flag(body, "echo", False)
        logprobs = _integer(body, "logprobs", None, high=MAX_ALTERNATIVES)
        max_tokens = _integer(body, "max_tokens", 16, low=0 if echo else 1)
        scored = logprobs if echo else None
        return [
            ask for prompt in self._prompts(body) for ask in self._asks(body, prompt, max_tokens, logprobs or 0, scored)
        ]

    def _asks(
        self, body: Json, prompt: list[int], max_tokens: int | None, alternatives: int, scored: int | None
    ) -> list[Ask]:
        if not prompt:
            raise Refused("The prompt is empty; it needs at least one token.", "prompt")
        room = self.max_model_len - len(prompt)
        if room < (1 if max_tokens is None else max_tokens):
            asked = max_tokens or 0
            raise Refused(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{asked} output tokens and your prompt contains at least {len(prompt)} input tokens, for a total "
                f"of at least {len(prompt) + asked} tokens. Please reduce the length of the input prompt or the "
                f"number of requested output tokens. (parameter=input_tokens, value={len(prompt)})",
                "input_tokens",
            )
        seed = _integer(body, "seed", None, low=-(2**63), high=2**63 - 1)
        prompt_alternatives = _integer(body, "prompt_logprobs", None, high=MAX_ALTERNATIVES)
        top_k = _integer(body, "top_k", 0, low=-1) or 0
        stop = body.get("stop") or []
        texts = tuple([stop] if isinstance(stop, str) else stop)
        if not all(isinstance(text, str) and text for text in texts):
            raise Refused("`stop` must be a text or a list of texts, none of them empty.", "stop")
        return [
            Ask(
                prompt=prompt,
                max_tokens=room if max_tokens is None else max_tokens,
                temperature=_number(body, "temperature", 1.0, low=0.0, high=100.0),
                top_p=_number(body, "top_p", 1.0, low=1e-9, high=1.0),
                top_k=max(top_k, 0),
                seed=None if seed is None else seed + index,
                alternatives=alternatives,
                prompt_alternatives=scored if prompt_alternatives is None else prompt_alternatives,
                stop=texts,
                stop_ids=frozenset(self._token_ids(body.get("stop_token_ids") or [], "stop_token_ids")),
                ignore_end=_flag(body, "ignore_eos", False),
                skip_special=_flag(body, "skip_special_tokens", True),
            )
            for index in range(_integer(body, "n", 1, low=1, high=MAX_CHOICES) or 1)
        ]

    def _check_known(self, body: Json, known: set[str]) -> None:
        model = body.get("model")
        if model is not None and model != self.model_name:
            message = f"The model `{model}` does not exist. This server has `{self.model_name}`."
            raise Refused(message, "model", status=404)
        for name, value in body.items():
            if value is None or name in known or name in _WITHOUT_EFFECT:
                continue
            if name not in _NEUTRAL:
                raise Refused(f"This server does not know the parameter `{name}`; leave it out.", name)
            if value not in _NEUTRAL[name]:
                raise Refused(f"This server does not support `{name}`: {value!r}; leave it out.", name)

    def _render(self, body: Json) -> str:
        """The prompt text of a chat, by the model's own template."""
        if not self._template:
            raise Refused("This model has no chat template; use /v1/completions.", "messages")
        add = _flag(body, "add_generation_prompt", True)
        go_on = _flag(body, "continue_final_message", False)
        if add and go_on:
            raise Refused("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
        extra = dict(body.get("chat_template_kwargs") or {})
        if body.get("reasoning_effort") is not None:
            extra["reasoning_effort"] = body["reasoning_effort"]
        for name in extra:
            if not re.search(rf"\b{re.escape(name)}\b", self._template):
                raise Refused(f"The chat template of this model does not read `{name}`; leave it out.", name)
        try:
            text = self._tokenizer.apply_chat_template(
                self._messages(body),
                tokenize=False,
                add_generation_prompt=add,
                continue_final_message=go_on,
                **extra,
            )
        except Refused:
            raise
        except Exception as error:
            raise Refused(f"The chat template refused these messages: {error}", "messages") from error
        return str(text)

    def _messages(self, body: Json) -> list[dict[str, str]]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refused("`messages` must be a list with at least one message.", "messages")
        return [self._message(message) for message in messages]

    def _message(self, message: object) -> dict[str, str]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused("Every message needs a `role` and a `content`.", "messages")
        content = message.get("content")
        if isinstance(content, list):  # vLLM joins text parts with line breaks
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise Refused("This server reads text only; a message holds another kind of part.", "messages")
            content = "\n".join(str(part.get("text", "")) for part in content)
        if content is not None and not isinstance(content, str):
            raise Refused("The `content` of a message must be a text.", "messages")
        out = {"role": message["role"], "content": content or ""}
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        if reasoning:
            if "reasoning" not in self._template:
                raise Refused("The chat template of this model does not read `reasoning`.", "messages")
            out |= {"reasoning": reasoning, "reasoning_content": reasoning}
        known = {"role", "content", "reasoning", "reasoning_content", "refusal"}
        if unread := [name for name, value in message.items() if value and name not in known]:
            raise Refused(f"This server does not read `{unread[0]}` of a message.", "messages")
        return out

    def _prompts(self, body: Json) -> list[list[int]]:
        prompt = body.get("prompt")
        special = _flag(body, "add_special_tokens", True)
        if isinstance(prompt, str):
            return [self._encode(prompt, special)]
        if isinstance(prompt, list) and prompt:
            if all(isinstance(part, str) for part in prompt):
                return [self._encode(part, special) for part in prompt]
            if all(isinstance(part, list) for part in prompt):
                return [self._token_ids(part, "prompt") for part in prompt]
            return [self._token_ids(prompt, "prompt")]
        raise Refused("`prompt` must be a text, a list of token ids, or a list of either.", "prompt")

    def _token_ids(self, ids: list[Any], name: str) -> list[int]:
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self._vocabulary:
                raise Refused(f"Token id {token!r} in `{name}` is out of vocabulary ({self._vocabulary}).", name)
        return list(ids)

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special).input_ids)


def _flag(body: Json, name: str, default: bool) -> bool:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise Refused(f"`{name}` must be true or false, not {value!r}.", name)
    return value


def _integer(body: Json, name: str, default: int | None, *, low: int = 0, high: int = 2**31) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"`{name}` must be an integer from {low} to {high}, not {value!r}.", name)
    return value


def _number(body: Json, name: str, default: float, *, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"`{name}` must be a number from {low:g} to {high:g}, not {value!r}.", name)
    return float(value)
