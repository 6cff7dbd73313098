"""A student that runs on this machine: logprobs of given tokens by one forward pass."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from builder.config import Student
from builder.errors import ScoreError
from builder.student import NoLogprobs, Rendered, StudentTokenizer, hub_revision, loading

if TYPE_CHECKING:
    import torch

_HEAD_POSITIONS: Final = 512
"""Positions whose logits exist at once: 512 × 152k float32 is 0.3 GB; a whole 64k reply would be 40 GB."""

_SERVE_IT: Final = "serve it with vLLM (--tensor-parallel-size over several devices) and set student.backend=endpoint"


class LocalStudent(StudentTokenizer):
    """A causal language model on this machine, through transformers: every visible CUDA device, else the CPU.

    Each device holds a replica and draws rows; forward passes release the GIL, so a thread each is enough. Every row
    has a pass of its own, so that its score hangs on nothing else: rows that share one change each other by rounding,
    of a toy model by up to 6e-6 nats a token in float32 and 0.04 in bfloat16, and which rows wait together hangs on
    shards and on what was scored before. Raises ScoreError when it cannot be loaded or does not fit on a device: to
    spread one model is a server's work.
    """

    def __init__(self, student: Student, devices: Sequence[str] = ()) -> None:
        try:
            import torch
            import transformers  # noqa: F401
        except ImportError as error:
            raise ScoreError(
                f"Scoring with a local student needs torch and transformers ({error}). "
                "Install them with: pip install 'tempered[local]', or serve the student and set "
                "student.backend=endpoint."
            ) from error
        super().__init__(student)
        devices = devices or [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
        self.replicas = [Replica(student, device) for device in devices]
        self.vocabulary = self.replicas[0].vocabulary

    def logprobs(self, rows: Sequence[Rendered]) -> list[np.ndarray | NoLogprobs]:
        """Logprob of each completion token, nats, float32, one array a row; or why a row has none.

        Raises ScoreError where a pass fails for another reason than the memory that a row needs.
        """
        found: dict[int, np.ndarray | NoLogprobs] = {}
        # longest first, so that no device is left alone with them at the end
        waiting = deque(sorted(range(len(rows)), key=lambda index: -rows[index].training_tokens))

        def draw(replica: Replica) -> None:
            while True:
                try:
                    index = waiting.popleft()
                except IndexError:
                    return
                found[index] = replica.logprobs(rows[index])

        with ThreadPoolExecutor(len(self.replicas)) as pool:
            try:
                drawing = [pool.submit(draw, replica) for replica in self.replicas]
                wait(drawing, return_when=FIRST_EXCEPTION)
            finally:
                waiting.clear()  # after an error or Ctrl-C the others end with the row they have
        for work in drawing:
            work.result()
        return [found[index] for index in range(len(rows))]


class Replica:
    """The model on one device. Raises ScoreError when it cannot be loaded there."""

    def __init__(self, student: Student, device: str) -> None:
        from transformers import AutoModelForCausalLM

        self.student = student
        self.device = device
        with loading(student):
            model: Any = AutoModelForCausalLM.from_pretrained(
                student.model, revision=hub_revision(student), dtype=student.dtype
            )
        try:
            self.model = model.to(device).eval()
            self._decoder: Any = model.get_decoder()
            self.vocabulary = self._probe()
        except Exception as error:
            raise self._failed("cannot be used", error) from error

    def logprobs(self, row: Rendered) -> np.ndarray | NoLogprobs:
        """Logprob of each completion token of one row, or that it does not fit on the device."""
        try:
            return self._forward(row)
        except Exception as error:
            if not _out_of_memory(error):
                raise self._failed(f"failed over a row of {row.training_tokens:,} tokens", error) from error
        # Out here, because inside the handler the traceback still holds the tensors that took the memory.
        self._release()
        try:
            self._probe()
        except Exception as error:  # not this row's fault: no row would be scored, and all would be named too long
            raise self._failed("cannot go on", error) from error
        return NoLogprobs(f"its {row.training_tokens:,} tokens do not fit in the memory of {self._name}")

    def _forward(self, row: Rendered) -> np.ndarray:
        import torch

        tokens = torch.tensor([row.prompt_ids + row.completion_ids], device=self.device)
        start = len(row.prompt_ids)
        with torch.inference_mode():
            output = self._decoder(input_ids=tokens, use_cache=False)
            return self._gather(output, output.last_hidden_state[0, start - 1 : -1], tokens[0, start:])

    def _gather(self, output: Any, hidden: "torch.Tensor", targets: "torch.Tensor") -> np.ndarray:
        """Logprobs of `targets`, log-softmax in float32 over a bounded number of positions at a time."""
        import torch

        found = [torch.zeros(0)]
        for start in range(0, len(targets), _HEAD_POSITIONS):
            logits = self._logits(output, hidden[start : start + _HEAD_POSITIONS]).float()
            chosen = logits.gather(-1, targets[start : start + _HEAD_POSITIONS, None])[:, 0]
            found.append((chosen - torch.logsumexp(logits, dim=-1)).cpu())
        array: np.ndarray = torch.cat(found).numpy()
        return array

    def _logits(self, output: Any, hidden: "torch.Tensor") -> "torch.Tensor":
        """Logits of hidden states, shape (positions, vocabulary), by the model's own forward on a decoder that is done.

        So every scale and soft cap behind the decoder is the model's, whichever it has. `output` is the decoder's.
        """
        import torch

        output.last_hidden_state = hidden[None]
        self._decoder.forward = lambda *_, **__: output
        try:
            filler = torch.zeros((1, len(hidden)), dtype=torch.long, device=self.device)
            logits: torch.Tensor = self.model(input_ids=filler, use_cache=False).logits[0]
        finally:
            del self._decoder.forward
        return logits

    def _probe(self) -> int:
        """Size of the vocabulary; raises ValueError unless logits from hidden states by parts are the model's own."""
        import torch

        ids = torch.arange(8, device=self.device)[None, :]
        with torch.inference_mode():
            whole = self.model(input_ids=ids, use_cache=False).logits[0]
            output = self._decoder(input_ids=ids, use_cache=False)
            parts = torch.cat([self._logits(output, part) for part in output.last_hidden_state[0].split(4)])
        apart = torch.linalg.vector_norm(whole.float() - parts.float()) / torch.linalg.vector_norm(whole.float())
        if apart > 10 * torch.finfo(whole.dtype).eps:  # not so for nan: then each row says that it is not finite
            raise ValueError("its logits do not follow from its last hidden states alone")
        return int(whole.shape[-1])

    def _failed(self, what: str, error: Exception) -> ScoreError:
        if _out_of_memory(error):
            return ScoreError(
                f"Student {self.student.model!r} {what} on {self._name}: out of memory. Every device holds the whole "
                f"model. Free the device, pick others by CUDA_VISIBLE_DEVICES, set student.dtype=bfloat16, or "
                f"{_SERVE_IT}. Finished rows are kept."
            )
        return ScoreError(
            f"Student {self.student.model!r} {what} on {self._name}: {type(error).__name__}: {error}. "
            f"Check student.model and the driver, or {_SERVE_IT}. Finished rows are kept."
        )

    @property
    def _name(self) -> str:
        """The device as a reason names it: equal devices have equal names."""
        import torch

        if not self.device.startswith("cuda"):
            return f"this machine ({self.device})"
        device = torch.cuda.get_device_properties(self.device)
        return f"{device.name} ({device.total_memory / 2**30:.0f} GiB)"

    def _release(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            with torch.cuda.device(self.device):
                torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    """CUDA's allocator has a type of its own, cuBLAS and the CPU's allocator only a message."""
    import torch

    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in said or "CUBLAS_STATUS_ALLOC_FAILED" in said
    )
