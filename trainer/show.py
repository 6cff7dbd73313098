"""The plan in print: a table of 80 columns on a terminal, plain aligned text elsewhere."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.render import IGNORED

HEAD, TAIL = 160, 40  # tokens shown of each end of a long part
DIRECTORY = "none, a directory"
NUMBERS = ("rows", "tokens", "epochs", "steps", "lr")


def plan(console: Console, content: dict[str, Any]) -> None:
    """Print the schedule and what to know about it."""
    dataset, model = content["dataset"], content["model"]
    say(console, f"dataset {dataset['source']}, {dataset['version']}, commit {dataset['commit'] or DIRECTORY}")
    say(console, f"model   {model['name']}, commit {model['revision'] or DIRECTORY}")
    say(console, f"recipe  {content['recipe']}")
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("", "stage", "kind", "from", *NUMBERS, "state"):
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=True, overflow="fold")
    order = {line["stage"]: str(line["number"]) for line in content["stages"]}
    for line in content["stages"]:
        name = line["stage"] if line["config"] == line["stage"] else f"{line['stage']} < {line['config']}"
        numbers = short(line["rows"]), short(line["tokens"]), f"{line['epochs']:g}", short(line["steps"])
        rate, start = f"{line['learning_rate']:.3g}", order.get(line["init"], line["init"])
        table.add_row(str(line["number"]), name, line["kind"], start, *numbers, rate, line["state"])
    console.print(table)
    for line in content["stages"]:
        if "device_hours" in line:
            gib = f"{line['state_bytes'] / 2**30:.1f} + {line['activation_bytes'] / 2**30:.1f} GiB"
            say(console, f"{line['stage']}: {gib} before sharding, {line['device_hours']:.1f} h at 400 TFLOP/s")
    for line in content["stages"]:
        for warning in line["warnings"] + [f"trained otherwise: {text}" for text in line["differs"]]:
            say(console, f"! {line['stage']}: {warning}", "yellow")
    for warning in content["warnings"]:
        say(console, f"! {warning}", "yellow")


def row(console: Console, tokenizer: Any, title: str, ids: Sequence[int], labels: Sequence[int]) -> None:
    """One rendered row: masked tokens dim and trained ones green, in brackets where there is no colour."""
    cut = next(index for index, label in enumerate(labels) if label != IGNORED)
    say(console, f"\n{title}: {cut:,} tokens masked, {len(ids) - cut:,} trained", "bold")
    text = Text()
    for name, style, tokens in (("masked", "dim", ids[:cut]), ("trained", "green", ids[cut:])):
        hidden = len(tokens) - HEAD - TAIL
        ends = [tokens] if hidden <= 0 else [tokens[:HEAD], tokens[-TAIL:]]
        shown = f" … {hidden:,} tokens … ".join(tokenizer.decode(part) for part in ends)
        text.append(shown if console.is_terminal else f"[{name}]{shown}[/{name}]", style)
    console.print(text, soft_wrap=True)


def say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style))


def short(number: int | None) -> str:
    """`12,345`; from ten million on `14.5M`, `1450.0M`; `-` where unknown."""
    return "-" if number is None else f"{number:,}" if number < 10**7 else f"{number / 10**6:.1f}M"
