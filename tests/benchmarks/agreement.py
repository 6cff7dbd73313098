"""How often the verifiers agree with real labels: `python tests/benchmarks/agreement.py DATA [--show NAME]`.

DATA is a folder with `questions/` and `responses/` as `docs/verification.md` names them (JSONL, gzip). Printed for each
set: replies, how many verdicts agree with the label, and the table of label against verdict. `--show` prints the
disagreements of one set. Programs need bubblewrap; without it their sets are left out.
"""

import argparse
import gzip
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.answers import BOX_TAIL
from builder.code_verifier import code
from builder.ifeval import read_instructions, readings
from builder.languages import language_share
from builder.sandbox import sandbox_problem
from builder.text import split_reasoning
from builder.verify import Item, math_verify_pool, verify_answers

Row = dict[str, Any]
CHANGES = (("<", ">="), ("==", "!="), ("+", "-"), ("1", "2"))


@dataclass(frozen=True)
class Labelled:
    """One answer with what its source says about it: right, or not."""

    name: str
    item: Item
    label: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--show", default="", help="name of a set whose disagreements are printed")
    parser.add_argument("--only", default="", help="pattern: names of the sets to run")
    options = parser.parse_args()
    for name, labelled in sets(options.data):
        if re.search(options.only, name):
            report(name, list(labelled), show=name == options.show)
    if re.search(options.only, "ifeval"):
        report_ifeval(options.data, show=options.show == "ifeval loose")


def read(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file; lines end at line feeds only."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as lines:
        yield from (json.loads(line) for line in lines)


def sets(data: Path) -> Iterator[tuple[str, Iterator[Labelled]]]:
    """Names and answers of the sets, math first."""
    for name in ("gsm8k_train.jsonl.gz", "math_test_minus500.jsonl.gz", "svamp.jsonl.gz", "aime24.jsonl"):
        yield f"math: golds of {name}", golds(data / "questions" / name, r"So the answer is \boxed{{{}}}.")
    yield "math: golds of olymmath", golds(data / "questions/olymmath_easy_en_zh.jsonl.gz", r"\boxed{{{}}}")
    yield "math: other golds of gsm8k", shifted(data / "questions/gsm8k_train.jsonl.gz", r"\boxed{{{}}}")
    yield "math: math_many_samples", answers(data / "responses/math_many_samples.jsonl.gz", "math", "score")
    yield "math: aime24_ten_samples", answers(data / "responses/aime24_ten_samples.jsonl.gz", "math", "correct")
    yield "math: qwen3b_think_tags", answers(data / "responses/qwen3b_think_tags.jsonl.gz", "math", "score")
    for name in ("mmlu_stem_a", "aqua_dev"):
        path = data / f"questions/{name}.jsonl.gz"
        yield f"choice: golds of {name}", golds(path, "It cannot be A, so the answer is ({}).")
        yield f"choice: other golds of {name}", shifted(path, "It cannot be A, so the answer is ({}).")
    gym = data / "questions/reasoning_gym_a.jsonl.gz"
    yield "exact: golds of reasoning_gym", golds(gym, "<answer>{}</answer>")
    yield "exact: reasoning_gym", answers(data / "responses/reasoning_gym_a.jsonl.gz", "exact", "score")
    yield "set: golds of MATH with commas, shuffled", shuffled(data / "questions/math_test_minus500.jsonl.gz")
    yield "language: English replies", english(data / "responses")
    yield "format: answer_tag, qwen3b_think_tags", tags(data / "responses/qwen3b_think_tags.jsonl.gz")
    for name in ("humaneval", "mbpp_train_valid") if sandbox_problem() is None else ():
        rows = list(read(data / f"questions/{name}.jsonl.gz"))
        yield f"code: solutions of {name}", (_program(row, row, True) for row in rows)
        yield f"code: other solutions of {name}", (_program(*two, False) for two in itertools.pairwise(rows))
        yield f"code: changed solutions of {name}", changed(rows)


def golds(path: Path, form: str) -> Iterator[Labelled]:
    """Every gold as the answer to itself."""
    for row in read(path):
        yield Labelled(row["id"], _item(row, form.format(row["gold"])), True)


def shifted(path: Path, form: str) -> Iterator[Labelled]:
    """Every gold as the answer to the question before."""
    rows = list(read(path))
    for row, other in itertools.pairwise(rows):
        yield Labelled(row["id"], _item(row, form.format(other["gold"])), row["gold"] == other["gold"])


def answers(path: Path, verifier: str, label: str) -> Iterator[Labelled]:
    """Replies of a model with the verdict that their source stored."""
    for row in read(path):
        if row["gold"] is None or row["meta"].get(label) is None:
            continue
        _, answer, _ = split_reasoning(row["response"])
        yield Labelled(row["id"], Item(row["gold"], answer, verifier, None), float(row["meta"][label]) == 1.0)


def shuffled(path: Path) -> Iterator[Labelled]:
    """Golds that are lists, in another order."""
    for row in read(path):
        parts = row["gold"].split(",")
        if len(parts) > 1 and re.fullmatch(r"[-\w\s,]+", row["gold"]):
            random.Random(row["id"]).shuffle(parts)
            yield Labelled(row["id"], Item(row["gold"], f"\\boxed{{{','.join(parts)}}}", "set"), True)


def english(folder: Path) -> Iterator[Labelled]:
    """Replies to English questions by models that answer in English."""
    for name in ("math_many_samples", "aime_style_long_and_short", "qwen3b_think_tags", "mip_svamp_long"):
        for row in read(folder / f"{name}.jsonl.gz"):
            yield Labelled(row["id"], Item("en", row["response"], "language"), True)


def tags(path: Path) -> Iterator[Labelled]:
    """Replies that were asked for `<think>…</think><answer>…</answer>`, by a plain pattern."""
    for row in read(path):
        text = row["response"].strip()
        label = bool(re.fullmatch(r"(?s)(?:(?!<answer>).)*<answer>(?:(?!<answer>).)*\S\s*</answer>", text[-BOX_TAIL:]))
        yield Labelled(row["id"], Item("answer_tag", row["response"], "format"), label)


def report(name: str, labelled: list[Labelled], *, show: bool) -> None:
    """Agreement of one set, and its disagreements."""
    with math_verify_pool(workers=1) as pool:
        outcomes = verify_answers([one.item for one in labelled], pool)
    table = Counter(
        ("right" if one.label else "wrong", outcome.verdict) for one, outcome in zip(labelled, outcomes, strict=True)
    )
    agreed = table["right", "correct"] + table["wrong", "wrong"]
    print(f"{name:44} {agreed:5} of {len(labelled):5} agree ({agreed / len(labelled):.2%})", end="")
    rest = {key: count for key, count in sorted(table.items()) if key not in (("right", "correct"), ("wrong", "wrong"))}
    print("  " + ", ".join(f"{label} but {verdict}: {count}" for (label, verdict), count in rest.items()), flush=True)
    for one, outcome in zip(labelled, outcomes, strict=True) if show else ():
        if (outcome.verdict == "correct") != one.label or outcome.verdict not in ("correct", "wrong"):
            end = (one.item.answer or "")[-160:]
            print(f"  {one.name} label {one.label} {outcome}\n    gold {one.item.gold[:120]!r} answer …{end!r}")


def report_ifeval(data: Path, *, show: bool) -> None:
    """Agreement with the benchmark's own verdicts (loose), reply by reply and instruction by instruction."""
    questions = {row["prompt"]: row["gold"] for row in read(data / "questions/ifeval_en.jsonl.gz")}
    replies = instructions = 0
    agreed: Counter[str] = Counter()
    apart: Counter[str] = Counter()
    for row in read(data / "responses/ifeval_small_models_en.jsonl.gz"):
        asked = read_instructions(questions[row["prompt"]])
        if asked is None:
            print(f"ifeval: gold of {row['id']} is not read")
            continue
        texts = readings(row["response"])
        found = [any(map(one.is_followed, texts)) for one in asked]
        replies += 1
        instructions += len(found)
        agreed["replies"] += all(found) == row["meta"]["follow_all"]
        strict = all(one.is_followed(row["response"]) for one in asked)
        agreed["strict"] += strict == row["meta"]["follow_all"]
        for one, ours, theirs in zip(asked, found, row["meta"]["followed"], strict=True):
            if ours != theirs:
                apart[one.name] += 1
                if show:
                    share = language_share(row["response"], one.arguments.get("language", "en"))
                    print(f"  {row['id']} {one} ours {ours} theirs {theirs} share {share} {row['response'][:100]!r}")
    print(f"ifeval loose: {agreed['replies']} of {replies} replies agree; strict against loose: {agreed['strict']}")
    print(f"ifeval loose: {instructions - apart.total()} of {instructions} instructions agree; not: {dict(apart)}")


def changed(rows: list[Row]) -> Iterator[Labelled]:
    """Solutions with one operator changed, where they have it; right where program and tests run through as one."""
    for row, (old, new) in itertools.product(rows, CHANGES):
        source = row["meta"]["canonical_solution"]
        if old in source:
            other = row | {"meta": row["meta"] | {"canonical_solution": source.replace(old, new, 1)}}
            made = _program(row, other, True)
            program = (made.item.answer or "").replace("\n```", f"\n{made.item.gold}\n```")
            alone = code('{"inputs": [""], "outputs": [""]}', None, program, False)
            yield Labelled(f"{row['id']} {old}{new}", made.item, alone.verdict == "correct")


def _program(row: Row, other: Row, label: bool) -> Labelled:
    """The solution to `other` as an answer to `row`; HumanEval's solutions continue their prompts."""
    source, gold = other["meta"]["canonical_solution"], row["gold"]
    if entry_point := row["meta"].get("entry_point"):
        source, gold = other["prompt"] + source, f"{gold}\n\ncheck({entry_point})\n"
    return Labelled(row["id"], Item(gold, f"```python\n{source}\n```", "code"), label)


def _item(row: Row, answer: str) -> Item:
    kind = {"choice": "choice", "exact_text": "exact"}.get(row["gold_type"], "math")
    return Item(row["gold"], answer, kind, row["gold_type"])


if __name__ == "__main__":
    main()
