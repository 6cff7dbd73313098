"""Overhead of the trainer: `python train.py [--rounds N]`.

A stage (load, train, save, hash, record) beside a plain `SFTTrainer` (load, train, save) on the same token ids, labels,
order and arguments, in turns within one run, the best CPU time of each; goal ≥ 0.97 of its tokens a second. A stage has
a fixed cost of about 0.3 s (memory is collected when it ends), which a real one of hours does not notice. Preparation,
from parquet to token ids and labels on disk, beside bare batched calls of the tokenizer on the same texts. One thread.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1] / "trainer"))

import datasets
import torch
import transformers
from trainer_toys import CHATML, reply, save_student, train_tokenizer, write_release
from transformers import AutoTokenizer, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import SFTTrainer  # type: ignore[attr-defined]

from trainer import data, plan, render, train

GOAL, ROWS, TEXTS = 0.97, 1500, 4000
LINE = "the sum of one and two is three, so the answer is three\n"


def rows(count: int, lines: int) -> list[dict[str, Any]]:
    answer = f"<think>\n{LINE * lines}</think>\n\n"
    return [reply(i, i, completion=[{"role": "assistant", "content": f"{answer}{i + 1}"}]) for i in range(count)]


def student(path: Path) -> Path:
    """Two layers of width 128, half a million parameters: a step is arithmetic enough to be worth timing."""
    tokenizer = train_tokenizer(CHATML)
    save_student(path, tokenizer)
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "head_dim": 32}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **shape, **ends)).save_pretrained(path)
    return path


def seconds(work: Callable[[], Any]) -> float:
    """Of this process on one thread, which other work on the machine lengthens less than those of the clock."""
    start = time.process_time()
    work()
    return time.process_time() - start


def plain(job: plan.Job, tokens: Any, output: Path) -> None:
    args = plan.arguments(job, job.stages[0])
    args.output_dir = str(output)
    # In the stage's own order, as everybody would write it without a schedule.
    args.train_sampling_strategy = "sequential"
    tokenizer = AutoTokenizer.from_pretrained(job.base.path)
    trainer = SFTTrainer(str(job.base.path), args, train_dataset=tokens, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model()


def training(folder: Path, rounds: int) -> float:
    release = write_release(folder / "v1", {"one": rows(ROWS, 12)})
    options = ["defaults.logging_steps=10", "defaults.disable_tqdm=true"]
    base, trained = student(folder / "student"), 0
    ours, theirs = [], []
    for number in range(rounds + 1):  # the first warms up
        job = plan.Job(str(release), str(base), folder / f"out{number}", "smoke", options)
        (folder / f"rows{number}").mkdir()
        prepared = plan.rendered(job, job.stages[0], folder / f"rows{number}")
        tokens, counts = prepared[0]
        trained, wanted = counts["tokens"], plan.identity(job, job.stages[0])
        args = plan.arguments(job, job.stages[0])
        train.lineage.start(Path(str(args.output_dir)), wanted | {"processes": 1})
        stage = partial(train.train_stage, job, job.stages[0], wanted, args, prepared, None)
        arms = [(ours, stage), (theirs, partial(plain, job, tokens, folder / f"plain{number}"))]
        for times, work in arms if number % 2 else reversed(arms):
            times.append(seconds(work))
    fast, slow = (trained / min(times[1:]) for times in (theirs, ours))
    print(
        f"training      {slow:>10,.0f} tokens/s a stage, {fast:,.0f} plain SFTTrainer: {slow / fast:.3f} (goal {GOAL})"
    )
    return slow / fast


def preparation(folder: Path, rounds: int) -> None:
    release = data.resolve(str(write_release(folder / "v2", {"one": rows(TEXTS, 60)})))
    renderer = render.Renderer(folder / "student", "student")
    texts = ["".join(renderer.texts(row)) for batch in data.read(release, "one") for row in batch]

    def bare() -> None:
        for begin in range(0, len(texts), 512):
            renderer.tokenizer(texts[begin : begin + 512], add_special_tokens=False)

    def ours() -> None:
        path = folder / f"{len(counts)}.arrow"
        counts.append(render.tokens(data.read(release, "one"), renderer, path, stage="one", limit=None, drop=False)[1])

    counts: list[dict[str, int]] = []
    times = [(seconds(ours), seconds(bare)) for _ in range(rounds)]
    mine, theirs = (min(each) for each in zip(*times, strict=True))
    total = counts[0]["tokens"]
    ratio = f"{total / mine:>10,.0f} tokens/s, {total / theirs:,.0f} by bare batched calls: {theirs / mine:.3f}"
    print(f"preparation   {ratio} (rows {TEXTS:,}, templates, labels, checks and Arrow included)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="timed rounds of each arm")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        ratio = training(Path(folder), rounds)
        preparation(Path(folder), rounds)
    sys.exit(ratio < GOAL)


if __name__ == "__main__":
    main()
