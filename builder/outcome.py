"""What a verifier says of one reply."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["correct", "wrong", "unscorable", "timeout", "error"]


@dataclass(frozen=True)
class Outcome:
    """Verdict, the answer that was compared (None where none was found), and one `check:verdict` for each check."""

    verdict: Verdict
    extracted: str | None
    votes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Open:
    """A comparison that needs math-verify: to be run by `math_verify_vote(gold, extracted)`, then `settle`d."""

    gold: str
    extracted: str
    typed: Verdict
