"""The student behind an OpenAI-compatible server: logprobs of given token ids, by prompt logprobs or by echo."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from builder.config import Student
from builder.errors import ScoreError
from builder.scoring_server import TEST_TEXT, ProofText, ScoringServer
from builder.student import CannotRender, NoLogprobs, Rendered, StudentTokenizer
from builder.windows import Row, Windowed

_ADVICE: Final = (
    "The server must serve this very model, tokenizer included, and give logprobs of token ids: as prompt_logprobs "
    "(vLLM), or of an echoed prompt (completions with echo and logprobs). Nothing was scored. Mend the server, or set "
    "student.backend=local."
)


class EndpointStudent(StudentTokenizer):
    """A student that is served elsewhere. Raises ScoreError unless the endpoint serves it and gives logprobs of ids.

    What cannot be checked from here is that the server holds the weights of `student.revision`: a server is started
    with them, and tokens that agree do not show it.
    """

    def __init__(self, student: Student) -> None:
        super().__init__(student)
        if student.endpoint is None:
            raise ScoreError("The student has no endpoint; add student.endpoint.url=http://host:8000/v1.")
        self.endpoint = student.endpoint
        proof = ScoringServer.proved(self.endpoint, self._test(), name=self._name, advice=_ADVICE)
        self.server = asyncio.run(proof)

    def logprobs(self, rows: Sequence[Rendered]) -> list[np.ndarray | Windowed | NoLogprobs]:
        """Logprob of each completion token, nats, float32, one array a row; or why there is none.

        Rows that the server does not bear whole come as `Windowed`. A reason that is not `lasting` means that the
        server went away: such rows wait for another call.
        """
        return asyncio.run(self.server.score([Row(row.prompt_ids, row.completion_ids) for row in rows]))

    def _test(self) -> ProofText:
        """A short text, with the chat template's own tokens where it renders."""
        try:
            text = self.prompt([{"role": "user", "content": "What is 17 + 25?"}])[0] + TEST_TEXT
        except CannotRender:
            text = TEST_TEXT
        try:
            ids = self.ids(text)
        except CannotRender as error:
            raise ScoreError(
                f"Student {self.student.model!r} cannot read a test text: {error}. Check student.model."
            ) from None
        return ProofText(text, Row(ids[:1], ids[1:]), [str(self.tokenizer.decode([index])) for index in ids])

    def _name(self, listed: list[str]) -> str:
        """The name to ask for; a folder's name says little, so what is served alone may stand for a folder."""
        wanted = self.student.model
        here = Path(wanted).is_dir()
        short = Path(wanted).resolve().name if here else wanted.split("/")[-1]
        for name in (wanted, short):
            if name in listed:
                return name
        if not listed:  # a server without a list of models may still answer
            return short if here else wanted
        if here and len(listed) == 1:
            return listed[0]
        raise ScoreError(
            f"{self.endpoint.url} serves {', '.join(listed[:5])}, not {wanted!r}. Nothing was scored. "
            f"Serve the student under its name (vLLM: --served-model-name {short})."
        )
