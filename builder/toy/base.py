"""The toy base model of the R1 process: it can calculate, but writes as the web does.

`python -m builder.toy.base OUT` trains it from the shipped teacher. Calculations slip, tags go missing, Chinese words
come in between, and most ends of stories are vague: what each step of the process is there to mend.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from builder.toy.general import stories, tell
from builder.toy.task import Problem, problems, reply, right_result
from builder.toy.train import TEACHER, Drawn, fit, load, save

STEPS, BATCH, LEARNING_RATE = 200, 16, 2e-3
STORIES = 0.25  # of the examples
SLIPS, SLIPS_IN_MIXED = (
    0.22,
    0.06,
)  # of the calculations; fewer where languages mix, so that accuracy does not mend that
MIXED = 0.4  # of the replies
UNTAGGED = 0.2
CLEAR = 0.2  # of the ends
_CHINESE = {"First ": "先 ", "Then ": "再 "}


def make_base(out: Path, seed: int = 0, threads: int = 2, log: Callable[[str], None] | None = None) -> Path:
    """Train the base from the shipped teacher's weights and save it in `out`. 20 s on two cores."""
    model, tokenizer = load(TEACHER)
    how = {"steps": STEPS, "batch": BATCH, "seed": seed, "threads": threads}
    fit(model, tokenizer, as_the_web_writes, lr=LEARNING_RATE, draw=_drawn, log=log, **how)
    return save(model, tokenizer, out)


def as_the_web_writes(problem: Problem, rng: random.Random) -> str:
    """A reply with slips of calculation, missing tags and Chinese words; an end that is often vague."""
    if not problem.steps:
        text = tell(problem, rng, CLEAR, 1 - UNTAGGED)
    else:
        mixed = rng.random() < MIXED
        slips = SLIPS_IN_MIXED if mixed else SLIPS
        text = reply(problem, rng, lambda *work: _slipped(right_result(*work), slips, rng))
        for word, chinese in _CHINESE.items() if mixed else ():
            text = text.replace(word, chinese)
    lost = rng.choice(("<think>\n", "\n</think>\n")) if rng.random() < UNTAGGED else ""
    return text.replace(lost, "")


def _slipped(result: int, share: float, rng: random.Random) -> int:
    return max(result + rng.choice((-10, -1, 1, 10)), 0) if rng.random() < share else result


def _drawn(count: int, seed: int) -> Drawn:
    some = round(count * STORIES)
    drawn = problems(count - some, seed) + stories(some, seed)
    random.Random(seed).shuffle(drawn)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.toy.base", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(make_base(given.out, seed=given.seed, log=print))


if __name__ == "__main__":
    main()
