"""A student that runs on this machine: logprobs of given tokens by one forward pass."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from builder.config import Student
from builder.errors import ScoreError
from builder.student import Rendered, StudentTokenizer, hub_revision, loading

if TYPE_CHECKING:
    import torch

_BATCH_TOKENS: Final = 16_384
_BATCH_ROWS: Final = 64
_HEAD_POSITIONS: Final = 1_024
"""Positions whose logits exist at once: 1,024 × 152k float32 is 0.6 GB; a whole 64k reply would be 40 GB."""


class LocalStudent(StudentTokenizer):
    """A causal language model on this machine, through transformers. Raises ScoreError when it cannot be loaded."""

    def __init__(self, student: Student) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM
        except ImportError as error:
            raise ScoreError(
                f"Scoring with a local student needs torch and transformers ({error}). "
                "Install them with: pip install 'tempered[local]', or serve the student and set "
                "student.backend=endpoint."
            ) from error
        super().__init__(student)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with loading(student):
            model: Any = AutoModelForCausalLM.from_pretrained(
                student.model, revision=hub_revision(student), dtype=self._dtype()
            )
        self.model = model.to(self.device).eval()
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._chunked = self._head_stands_apart()

    def logprobs(self, rows: Sequence[Rendered]) -> list[np.ndarray]:
        """Logprob of each completion token, nats, float32, one array a row; batched by length."""
        order = sorted(range(len(rows)), key=lambda index: rows[index].training_tokens)
        result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        batch: list[int] = []
        for index in order:
            widest = rows[index].training_tokens
            if batch and (len(batch) >= _BATCH_ROWS or widest * (len(batch) + 1) > _BATCH_TOKENS):
                self._forward(rows, batch, result)
                batch = []
            batch.append(index)
        if batch:
            self._forward(rows, batch, result)
        return result

    def _forward(self, rows: Sequence[Rendered], batch: list[int], result: list[np.ndarray]) -> None:
        import torch

        ids = [rows[index].prompt_ids + rows[index].completion_ids for index in batch]
        width = max(len(row) for row in ids)
        tokens = torch.zeros((len(ids), width), dtype=torch.long)
        mask = torch.zeros((len(ids), width), dtype=torch.long)
        for place, row in enumerate(ids):
            tokens[place, : len(row)] = torch.tensor(row)
            mask[place, : len(row)] = 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        with torch.inference_mode():
            if self._chunked:
                hidden = self.model.get_decoder()(input_ids=tokens, attention_mask=mask, use_cache=False)[0]
                head = self._head
            else:
                hidden = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
                head = None
            for place, index in enumerate(batch):
                start, stop = len(rows[index].prompt_ids), len(ids[place])
                result[index] = self._gather(hidden[place, start - 1 : stop - 1], tokens[place, start:stop], head)

    def _gather(self, hidden: "torch.Tensor", targets: "torch.Tensor", head: Any) -> np.ndarray:
        """Logprobs of `targets`, log-softmax in float32 over a bounded number of positions at a time."""
        import torch

        found = []
        for start in range(0, len(targets), _HEAD_POSITIONS):
            chunk = hidden[start : start + _HEAD_POSITIONS]
            logits = (head(chunk) if head is not None else chunk).float()
            wanted = targets[start : start + _HEAD_POSITIONS]
            chosen = logits.gather(-1, wanted[:, None])[:, 0]
            found.append(chosen - torch.logsumexp(logits, dim=-1))
        array: np.ndarray = torch.cat(found).cpu().numpy() if found else np.zeros(0, np.float32)
        return array.astype(np.float32)

    def _head(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Logits of hidden states: the output embedding and, where the configuration names one, its soft cap."""
        import torch

        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def _head_stands_apart(self) -> bool:
        """Whether `_head` on the last hidden state gives the model's own logits; some models scale them otherwise."""
        import torch

        probe = torch.arange(8, device=self.device)[None, :] % int(self.model.config.get_text_config().vocab_size)
        with torch.inference_mode():
            whole = self.model(input_ids=probe, use_cache=False).logits
            hidden = self.model.get_decoder()(input_ids=probe, use_cache=False)[0]
            apart = self._head(hidden)
        return bool(torch.allclose(whole.float(), apart.float(), rtol=1e-4, atol=1e-6))

    def _dtype(self) -> "torch.dtype":
        import torch

        if self.student.dtype == "auto":
            return torch.bfloat16 if self.device == "cuda" else torch.float32
        dtype: torch.dtype = getattr(torch, self.student.dtype)
        return dtype
