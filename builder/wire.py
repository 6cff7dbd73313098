"""What is sent for a request: plain chat completions, and what `builder.continuation` makes of them."""

from dataclasses import dataclass
from typing import Any, ClassVar

from builder.config import Generation, Teacher
from builder.requests import Request, sampling


@dataclass(frozen=True)
class Wire:
    """Plain chat completions. `asked` is the model in the teacher's place: its label, its revision, its endpoints.

    `served_as` is the endpoint's name for it where that is not the label; `role` is what its replies are in the tables.
    """

    route: ClassVar[str] = "/chat/completions"

    asked: Teacher
    generation: Generation
    role: str = "teacher"
    served_as: str | None = None

    @property
    def section(self) -> str:
        """The section of the recipe that names the model, for messages."""
        return self.role if self.role in ("judge", "rewrite") else "teacher"

    @property
    def rename(self) -> str:
        """What to do where the endpoint does not know the model by its name, for messages."""
        if self.role == "eval":
            return "Give --model the name that the server uses, or --endpoint the server of that model."
        if self.role == "student":
            return "Give --endpoint a server of the checkpoint."
        return f"Set {self.section}.model to the name that the server uses."

    @property
    def name(self) -> str:
        """The model's name at its endpoints."""
        return self.served_as or self.asked.model

    def payload(self, request: Request, *, token_ids: bool) -> dict[str, Any]:
        """The JSON to send. `token_ids` asks for them too, by vLLM's flag, where logprobs are asked."""
        return {"messages": request.messages, **self.parameters(request, token_ids=token_ids), **self.reporting()}

    def parameters(self, request: Request, *, token_ids: bool) -> dict[str, Any]:
        """Model, sampling and limit, the same on every route."""
        return {
            **({"return_token_ids": True} if token_ids and self.generation.logprobs else {}),
            **sampling(self.generation, request.temperature),
            "model": self.name,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }

    def reporting(self) -> dict[str, Any]:
        """Flags that bring logprobs; they change nothing of the reply."""
        return {"logprobs": True, "top_logprobs": 0} if self.generation.logprobs else {}
