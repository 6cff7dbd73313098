"""One run asked for real, of `scale.py`: many requests in flight, and what `builder plan` says of its disk."""

import json
import subprocess
import tempfile
from pathlib import Path

from scale import Size, serving
from scale_data import PER_PROMPT, write_recipe
from scale_process import bytes_below, measure

from builder import journal

IN_FLIGHT = 2_000
LIMIT_BYTES = 4 * 2**30
WITHIN = 0.2
# No student is asked here, so nothing is scored, and no rule or selector wants scores.
_NO_SCORES = (
    "selection.rules=[answer_missing, response_near_duplicate, sentence_repeated]", "selection.selector=random",
    "student=null",
)  # fmt: skip


def in_flight(*, quick: bool) -> None:
    """Memory and replies a second with 2,000 requests held at the server, short replies and long ones."""
    print("| tokens a reply | replies | held at once | replies/s | memory | failed attempts |")
    print("|---|---|---|---|---|---|")
    for tokens, replies, latency_s, bodies in ((80, 6_000, 4.0, 256), (16_000, 2_400 if quick else 6_000, 20.0, 16)):
        with tempfile.TemporaryDirectory() as folder:
            size = Size(replies, Path(folder))
            write_recipe(size.folder, replies)
            with serving(tokens, logprobs=True, latency_s=latency_s, bodies=bodies) as (url, held):
                asked = f"teacher.endpoints=[{{url: '{url}', max_in_flight: {IN_FLIGHT}}}]"
                cost = measure(size.builder("generate", asked))
            failed = sum(number for name, number in journal.counts(size.run / "journal").items() if name != "reply")
            over = " **over**" if cost.peak_bytes > LIMIT_BYTES else ""
            print(
                f"| {tokens:,} | {replies:,} | {held[0]:,} | {replies / cost.seconds:,.0f} "
                f"| {cost.peak_bytes / 2**20:,.0f} MiB{over} | {failed:,} |",
                flush=True,
            )


def disk(*, quick: bool) -> None:
    """What a plan says before the first reply and after one in ten, and what the run takes in the end."""
    print("| tokens a reply | logprobs | replies | plan, nothing here | plan, a tenth here | run, MB | verdict |")
    print("|---|---|---|---|---|---|---|")
    for tokens, replies, logprobs in _disk_cases(quick=quick):
        with tempfile.TemporaryDirectory() as folder:
            size = Size(replies, Path(folder))
            write_recipe(size.folder, replies)
            asked = [f"generation.logprobs={str(logprobs).lower()}", *_NO_SCORES]
            first = _planned(size, [*asked, "--tokens-per-reply", str(tokens)])
            with serving(tokens, logprobs=logprobs, latency_s=0.05, bodies=min(replies, 4096)) as (url, _):
                generate = size.builder("generate", f"teacher.endpoints.0.url={url}", *asked)
                measure([*generate, "--limit", str(replies // PER_PROMPT // 10)])
                second = _planned(size, asked)
                measure(generate)
            for verb in ("verify", "select", "release"):
                measure(size.builder(verb, *asked))
            took = bytes_below(size.run)
            worst = max(abs(said / took - 1) for said in (first, second))
            numbers = " | ".join(f"{value / 1e6:,.1f}" for value in (first, second, took))
            verdict = f"{worst:.0%}{' **missed**' if worst > WITHIN else ''}"
            print(f"| {tokens:,} | {logprobs} | {replies:,} | {numbers} | {verdict} |", flush=True)


def _disk_cases(*, quick: bool) -> list[tuple[int, int, bool]]:
    """Tokens a reply, replies, logprobs."""
    few = [(500, 2_000, True), (500, 2_000, False)]
    return (
        few if quick else [*few, (80, 20_000, True), (2_000, 2_000, True), (2_000, 2_000, False), (8_000, 2_000, True)]
    )


def _planned(size: Size, words: list[str]) -> float:
    """Bytes that `builder plan` expects."""
    command = [word for word in size.builder("plan", *words, "--json") if word != "--quiet"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(said)["plan"]["disk_bytes"]["value"])
