"""Write docs/proof.md and its plots from what run.py left: `python tests/proof/page.py [--out proof]`.

Everything shown comes from the runs' own tables by the SQL files here. The same folder gives the same bytes.
"""

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any, Final

import duckdb
import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

HERE: Final = Path(__file__).resolve().parent
DRAWS: Final = 10_000
STUDENT_T: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""The 97.5th percentile by degrees of freedom."""
Verdicts = Mapping[int, Mapping[str, bool]]
"""Whether the reply to a question was correct, by seed and question."""


@dataclass(frozen=True)
class Interval:
    """A share, or a difference of two, with its 95% interval and the values of the single seeds; all in [−1, 1]."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def sign(self) -> int:
        """1 or −1 where the interval leaves out 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def bootstrap(values: Sequence[Sequence[int]]) -> Interval:
    """Mean over seeds of the means over questions, and its expanded percentile interval.

    `values` are −1, 0 or 1 by seed and question: verdicts, or differences of two verdicts on one question. The plain
    percentiles of so few seeds are too narrow, so those are taken that hold 95% for a mean of normal values, n seeds
    wide: Φ(−√(n/(n−1)) t) and its complement (Hesterberg, The American Statistician 69, 2015, section 5.3), which for
    two and three seeds are the ends of all draws. Of one seed nothing is known about another, so its interval is that
    of its questions.
    """
    means, seeds = resampled(values), len(values)
    level = NormalDist().cdf(-math.sqrt(seeds / (seeds - 1)) * STUDENT_T[seeds - 1]) if seeds > 1 else 0.025
    low, high = np.quantile(means, [level, 1 - level])
    own = tuple(sum(one) / len(one) for one in values)
    return Interval(sum(own) / seeds, float(low), float(high), own)


def resampled(values: Sequence[Sequence[int]]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """The mean of each of 10,000 draws: as many seeds with replacement, and of each as many questions.

    Of three values, the questions of a draw are a multinomial count.
    """
    rng = np.random.default_rng(0)
    sizes = np.array([len(one) for one in values])
    shares = np.array([[one.count(value) / len(one) for value in (-1, 0, 1)] for one in map(list, values)])
    drawn = rng.integers(len(values), size=(DRAWS, len(values)))
    counts = rng.multinomial(sizes[drawn], shares[drawn])
    found: np.ndarray[Any, np.dtype[np.float64]] = ((counts[..., 2] - counts[..., 0]) / sizes[drawn]).mean(axis=1)
    return found


def alone(arm: Verdicts) -> Interval:
    """pass@1 of an arm."""
    return bootstrap([[int(correct) for correct in arm[seed].values()] for seed in sorted(arm)])


def paired(arm: Verdicts, control: Verdicts) -> Interval:
    """pass@1 of an arm less that of its control, on the seeds and questions that both have."""
    seeds = sorted(arm.keys() & control.keys())
    if different := [seed for seed in seeds if arm[seed].keys() != control[seed].keys()]:
        raise SystemExit(f"Seed {different[0]}: the two arms answered different questions, so they are not paired.")
    return bootstrap(
        [[int(arm[s][question]) - int(control[s][question]) for question in sorted(arm[s])] for s in seeds]
    )


def table(root: Path, name: str, copy: Path | None = None) -> list[dict[str, Any]]:
    """Rows of a SQL file of this folder on what is below `root`, and in a file `copy`; none where there is nothing."""
    connection = duckdb.connect()
    connection.execute("set threads = 1")
    connection.execute("set file_search_path = $root", {"root": str(root.resolve())})
    try:
        found = connection.sql((HERE / f"{name}.sql").read_text(encoding="utf-8").rstrip().rstrip(";"))
        if copy:
            found.write_csv(str(copy)) if copy.suffix == ".csv" else found.write_parquet(str(copy), compression="zstd")
    except duckdb.IOException as error:
        if "No files found" in str(error):
            return []
        raise
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def verdicts(root: Path) -> dict[tuple[str, str], dict[int, dict[str, bool]]]:
    """By task and arm; a box of the R1 ladder is an arm of task `r1` and, by its stories, of `r1 stories`."""
    found: dict[tuple[str, str], dict[int, dict[str, bool]]] = defaultdict(lambda: defaultdict(dict))
    for row in table(root, "verdicts"):
        task = "r1 stories" if row["verifier"] == "ifeval" else row["task"]
        answered = found[task, row["arm"]][row["seed"]]
        if row["prompt_id"] in answered:
            raise SystemExit(
                f"{row['task']}-{row['seed']}: arm {row['arm']} was evaluated twice, with other weights or "
                "settings, and nothing says which counts. Remove one of the two folders below eval/."
            )
        answered[row["prompt_id"]] = row["correct"]
    return found


def section(claim: Mapping[str, Any], known: Mapping[tuple[str, str], Verdicts], rows: list[dict[str, Any]]) -> Any:
    """A claim with its arms and comparisons, as far as they were run."""
    arms, compared = [], []
    for task in claim["task"]:
        for name in claim["arms"]:
            if (task, name) in known:
                stages = [row for row in rows if (row["task"], row["arm"]) == (task, name) and row["tokens"]]
                seeds = len({row["seed"] for row in stages}) or 1
                counted = {key: sum(row[key] for row in stages) / seeds for key in ("rows", "tokens")}
                arms.append({"task": task, "arm": name, "share": alone(known[task, name]), **counted})
        for name, control, paper in claim["compare"]:
            if {(task, name), (task, control)} <= known.keys():
                difference, theirs = paired(known[task, name], known[task, control]), sign_of(paper)
                one = {"task": task, "arm": name, "control": control, "paper": paper, "theirs": theirs}
                one["seeds"] = sorted(known[task, name].keys() & known[task, control].keys())
                compared.append(one | {"difference": difference, "reading": reading(difference.sign, theirs)})
    return dict(claim) | {"arms": arms, "compared": compared, "reading": in_one_sentence(compared)}


def sign_of(paper: str) -> int:
    """The sign of the first number that is told of a paper; 0 where none is."""
    found = re.search("[+−]", paper)
    return 0 if found is None else 1 if found[0] == "+" else -1


def reading(ours: int, theirs: int) -> str:
    """What an interval allows to say beside the paper's sign, by rule."""
    if not ours:
        return "cannot be told at this size"
    said = "helps" if ours > 0 else "hurts"
    return f"{said}, {'as reported' if ours == theirs else 'against the report'}" if theirs else said


def in_one_sentence(compared: Sequence[Mapping[str, Any]]) -> str:
    """What a table comes to: where intervals leave out 0, and how often signs are those of the paper."""
    told = [one for one in compared if one["difference"].sign]
    named = ", ".join(
        f"{one['arm']} {'helps' if one['difference'].sign > 0 else 'hurts'} against {one['control']} on {one['task']} "
        f"({_points(one['difference'].value)})"
        for one in told
    )
    reported = [one for one in compared if one["theirs"]]
    agreed, against = (sum(one["difference"].sign == sign * one["theirs"] for one in reported) for sign in (1, -1))
    first = f"of {len(compared)} comparisons {len(told)} can be told at this size" + (f": {named}" if told else "")
    return first + (
        f"; of the {len(reported)} whose sign is reported, {agreed} came out so, {against} the other way, "
        f"{len(reported) - agreed - against} cannot be told."
        if reported
        else "."
    )


def page(root: Path, *, quick: bool) -> tuple[str, dict[str, str]]:
    """The text of the page, and its plots by file name. Raises SystemExit where nothing was evaluated."""
    known, rows = verdicts(root), table(root, "arms")
    if not known:
        raise SystemExit(f"{root} holds no evaluation yet, so there is nothing to show. Run run.py first.")
    claims = yaml.safe_load((HERE / "claims.yaml").read_text(encoding="utf-8"))
    sections = [one for claim in claims if (one := section(claim, known, rows))["compared"]]
    seeds: dict[str, set[int]] = defaultdict(set)
    for task, arm in sorted(known, reverse=True):
        seeds[task.removesuffix(" stories")] |= known[task, arm].keys()
    settings = json.loads((root / "settings.json").read_text(encoding="utf-8"))
    text = _template("page.md.jinja").render(
        quick=quick, sections=sections, seeds=seeds, settings=settings, draws=DRAWS, overlap=table(root, "overlap"),
        seconds=_seconds(rows), luck=_luck(sections, rows), reached=_reached(known),
        comparisons=sum(len(one["compared"]) for one in sections),
    )  # fmt: skip
    plots = {}
    for one in sections:
        ends = [abs(end) for row in one["compared"] for end in (row["difference"].low, row["difference"].high)]
        reach = max(1, math.ceil(10 * max(ends))) / 10  # of the axis either way, in steps of ten points
        drawn = _template("plot.svg.jinja").render(title=one["title"], compared=one["compared"], reach=reach)
        plots[f"{one['name']}.svg"] = drawn + "\n"
    return text, plots


def _template(name: str) -> Template:
    jinja = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=name.endswith(".svg.jinja"),
    )  # fmt: skip
    jinja.filters |= {"points": _points, "percent": lambda share: f"{100 * share:.1f}"}
    return jinja.get_template(name)


def _luck(sections: Sequence[Mapping[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By task, how far apart two trainings came out that differ in a few rows; an arm that is its own cut is none."""
    builds = {(row["task"], row["arm"], row["seed"]): row["build_id"] for row in rows}
    apart: dict[str, list[float]] = defaultdict(list)
    for row in (row for one in sections if one["name"] == "chance" for row in one["compared"]):
        for seed, difference in zip(row["seeds"], row["difference"].seeds, strict=True):
            if builds[row["task"], row["arm"], seed] != builds[row["task"], row["control"], seed]:
                apart[row["task"]].append(abs(difference))
    return [{"task": task, "pairs": len(one), "median": median(one), "most": max(one)} for task, one in apart.items()]


def _reached(known: Mapping[tuple[str, str], Verdicts]) -> list[dict[str, Any]]:
    """By task that has a teacher, the least and most pass@1 of a trained student on one seed."""
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (task, arm), by_seed in known.items():
        if (task, "teacher") in known and arm not in ("base", "teacher"):
            found[task] += [(sum(one.values()) / len(one), arm) for one in by_seed.values()]
    return [{"task": task, "least": min(one), "most": max(one)} for task, one in sorted(found.items())]


def _seconds(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of one thread, by task."""
    cells = {(row["task"], row["seed"], row["arm"]): row["total_seconds"] for row in rows}
    return {
        task: sum(spent for key, spent in cells.items() if key[0] == task) for task in sorted({key[0] for key in cells})
    }


def _points(difference: float) -> str:
    """Percentage points with a sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("proof"), help="what run.py left")
    parser.add_argument("--page", type=Path, default=Path("docs/proof.md"), help="where the page goes, plots beside it")
    given = parser.parse_args()
    text, plots = page(given.out, quick=json.loads((given.out / "settings.json").read_text("utf-8"))["size"] == "quick")
    folder = given.page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in plots.items():
        (folder / name).write_text(svg, encoding="utf-8")
    table(given.out, "verdicts", folder / "verdicts.parquet")
    table(given.out, "arms", folder / "arms.csv")
    given.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
