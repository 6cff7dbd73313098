"""Weight, making and first paint of the report: `python report.py [--replies 1000 10000 100000] [--keep FOLDER]`.

Runs of that many candidate replies, eight to a prompt, of a few hundred words with formulas, code and other scripts,
scored sentence by sentence. Goals: the page below 5 MB whatever the run holds; made with less than 2 GB of memory.
First paint is what headless Chromium says (`first-contentful-paint`), `ready` when the lens stands; both need package
playwright and /usr/bin/chromium and are left out elsewhere. --keep leaves runs and pages in a folder.
"""

import argparse
import hashlib
import importlib
import random
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from builder.config import Recipe, Selection, Stage, Student, Teacher
from builder.divergence import MIN_TOKENS
from builder.features import update_features
from builder.models import student_id
from builder.report import collect
from builder.report_page import write_report
from builder.schema import MARGINS
from builder.selection import select
from builder.store import Run, columns_table
from builder.text import canonical_text, sentence_byte_ends

PER_PROMPT, PART, LIMIT_BYTES = 8, 4_000, 5_000_000
CHROMIUM = Path("/usr/bin/chromium")
STUDENT = Student(model="org/student", revision="5" * 40)
RECIPE = Recipe(
    name="bench",
    teacher=Teacher(model="org/teacher", revision="7" * 40),
    student=STUDENT,
    selection=Selection(rules=["response_truncated", "sentence_repeated", "answer_wrong"]),
    stages={"low": Stage(where="temperature = 0.6"), "high": Stage(where="temperature = 1.0")},
)
SAID = (
    "We need the sum of the first $n$ odd numbers.",
    "Let \\(S_n = \\sum_{k=1}^{n} (2k-1)\\), so that \\(S_1 = 1\\).",
    "By induction, $S_{n+1} = S_n + 2n + 1 = (n+1)^2$.",
    "Wait, let me check that with a small program.",
    "```python\ndef odd_sum(n):\n    return sum(2 * k - 1 for k in range(1, n + 1))\n```\n",
    "It prints 1, 4, 9 and 16, as it should.",
    "Hmm, the question asks for \\[ \\frac{1}{n} \\sum_{k=1}^{n} (2k-1) = n. \\]",
    "So the mean is $n$ and nothing else.",
    "换一种方法:前 n 个奇数之和是 n 的平方。",
    "Therefore the boxed answer is $\\boxed{n^2}$.",
)
DOMAINS = ("math", "code", "science")


def write_rows(run: Run, replies: int) -> None:
    """Replies with their prompts, sentences, scores and verdicts."""
    identity, begin = student_id(STUDENT), datetime(2026, 11, 20, tzinfo=UTC)
    for first in range(0, replies, PART):
        draw = random.Random(first)
        rows: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("prompts", "responses", "sentences", "scores", "verdicts")
        }
        for number in range(first, min(first + PART, replies)):
            asked, sample = divmod(number, PER_PROMPT)
            prompt = hashlib.md5(f"p{asked}".encode()).hexdigest()
            if sample == 0:
                rows["prompts"].append({
                    "prompt_id": prompt,
                    "messages": [{"role": "user", "content": f"What is the sum of the first {asked} odd numbers?"}],
                    "domain": DOMAINS[asked % 7 % 3], "gold": str(asked**2), "gold_type": "integer", "verifier": "math",
                    "sources": [{"source": "toy.jsonl", "revision": None, "license": "mit"}], "gold_conflicts": 0,
                })  # fmt: skip
            reply = _reply(draw, number, prompt, sample, begin)
            rows["responses"].append(reply)
            sentences = _sentences(draw, reply)
            rows["sentences"].append({**sentences, "student_id": identity})
            rows["scores"].append({**_score(sentences), "student_id": identity})
            verdict = "wrong" if draw.random() < 0.15 + 0.1 * sample / PER_PROMPT else "correct"
            rows["verdicts"].append({
                "response_id": reply["response_id"], "verifier": "math", "verifier_version": "1", "verdict": verdict,
                "extracted": "3", "votes": [],
            })  # fmt: skip
        for name, table in rows.items():
            run.append(name, columns_table(name, table))


def _reply(draw: random.Random, number: int, prompt: str, sample: int, begin: datetime) -> dict[str, Any]:
    length = max(4, int(draw.lognormvariate(2.7, 0.5)))
    reasoning = " ".join(draw.choice(SAID) for _ in range(length)).strip()
    temperature = 0.6 if sample < PER_PROMPT // 2 else 1.0
    return {
        "response_id": hashlib.md5(f"r{number}".encode()).hexdigest(), "prompt_id": prompt, "role": "teacher",
        "model": "org/teacher", "sample_index": sample % (PER_PROMPT // 2), "temperature": temperature,
        "reasoning": reasoning, "answer": f"So it is $n^2$, which for this question makes {number}.",
        "reasoning_format": "tags", "finish_reason": "length" if draw.random() < 0.02 else "stop",
        "prompt_tokens": 20, "completion_tokens": len(reasoning) // 3, "tool_calls": 0, "replaced_characters": 0,
        "logprobs_mode": "raw", "prefix_chars": 0, "cost_usd": len(reasoning) * 2e-7,
        "received_at": begin + timedelta(seconds=number // 3 + (3600 if number % 1000 > 600 else 0)),
    }  # fmt: skip


def _sentences(draw: random.Random, reply: dict[str, Any]) -> dict[str, Any]:
    ends = sentence_byte_ends(canonical_text(reply["reasoning"], reply["answer"]))
    teacher = [min(1.0, max(0.01, draw.gauss(0.9 - 0.25 * (reply["temperature"] - 0.6), 0.08))) for _ in ends]
    gaps = [draw.gauss(0.12 * 20 / (20 + place), 0.12) for place in range(len(ends))]
    return {
        "response_id": reply["response_id"], "byte_end": ends, "teacher_tokens": [draw.randint(2, 30) for _ in ends],
        "student_tokens": [draw.randint(2, 30) for _ in ends], "p_teacher": teacher,
        "p_student": [min(1.0, max(0.0, p - gap)) for p, gap in zip(teacher, gaps, strict=True)],
    }  # fmt: skip


def _score(row: dict[str, Any]) -> dict[str, Any]:
    tokens = zip(row["teacher_tokens"], row["student_tokens"], strict=True)
    counts = [min(pair) >= MIN_TOKENS for pair in tokens]
    gaps = [p - q for p, q, good in zip(row["p_teacher"], row["p_student"], counts, strict=True) if good]
    return {
        "response_id": row["response_id"], "status": "ok", "sentence_count": len(counts),
        "short_sentences": counts.count(False), "teacher_counts": [sum(gap > one for gap in gaps) for one in MARGINS],
        "student_counts": [sum(-gap > one for gap in gaps) for one in MARGINS],
        "mean_delta": sum(gaps) / len(gaps) if gaps else None, "log_ratio_nats": 0.4, "student_tokens": 100,
    }  # fmt: skip


def painted(page: Path) -> str:
    """Milliseconds to the first paint and to a lens that stands, as Chromium measures them; why not, elsewhere."""
    try:
        play_in = importlib.import_module("playwright.sync_api").sync_playwright
    except ImportError:
        return "paint not measured: package playwright is not installed"
    if not CHROMIUM.exists():
        return f"paint not measured: no {CHROMIUM}"
    with play_in() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1400, "height": 900})
        shown.goto(page.as_uri())
        shown.wait_for_selector("#reader-title", timeout=60_000)
        first, ready = shown.evaluate(
            "[performance.getEntriesByName('first-contentful-paint')[0].startTime, "
            "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd]"
        )
        browser.close()
    return f"first paint {first:5.0f} ms, ready {ready:5.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp())
    too_large = False
    for replies in asked.replies:
        run = Run(folder / f"run-{replies}")
        if not run.root.is_dir():
            write_rows(run, replies)
            update_features(run)
            run.event("select", asdict(select(run, RECIPE)))
        began = time.perf_counter()
        page = write_report(collect(run, RECIPE), folder / f"report-{replies}.html")
        took = time.perf_counter() - began
        size = page.stat().st_size
        too_large |= size >= LIMIT_BYTES
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{replies:>8,} replies: {size / 1e6:.2f} MB, made in {took:.1f} s, {peak:,.0f} MB at most so far; "
            f"{painted(page)}",
            flush=True,
        )
    if asked.keep is None:
        shutil.rmtree(folder)
    sys.exit(f"A page is not below {LIMIT_BYTES:,} bytes." if too_large else 0)


if __name__ == "__main__":
    main()
