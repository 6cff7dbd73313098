"""What `builder diff` prints: at most 80 columns but for lines of recipe and SQL, which are printed whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from builder.console import Reporter
from builder.diff import ConfigDiff, Diff
from builder.grid import cut, folded, grid, one_line, plain, text_of

_SHOWN: Final = 8
"""Values of a column, and entries of a list, that are printed; --json has all."""


def show_diff(reporter: Reporter, found: Diff) -> None:
    """Releases, verdict, bytes, rows, schema, shifts, manifest, schedule, funnel, texts, quoted rows."""
    for warning in found.warnings:
        reporter.warn(one_line(warning))
    for line in _lines(found, reporter.out.width):
        reporter.line(line)
    reporter.result({"diff": plain(asdict(found))})


def _lines(found: Diff, width: int) -> list[str]:
    lines = []
    for letter, side in (("A", found.a), ("B", found.b)):
        head, *rest = folded(str(side["name"]), width - 3)
        lines += [f"{letter}  {head}", *(f"   {line}" for line in rest)]
        commit = f", commit {side['commit'][:12]}" if side["commit"] else ""
        made = f"{side['version']} of {side['created']}{commit}, build {side['build_id'][:12]}"
        lines.append(f"   {cut(made, width - 3)}")
    got, whole = found.download["bytes"], found.download["all_bytes"]
    lines += ["", *folded(_verdict(found), width)]
    new, files = _size(got), found.download["files"]
    said = f"To download for B with A at hand: at most {new} in {files:,} files, of {_size(whole)}"
    lines += folded(f"{said} in {found.download['all_files']:,}.", width)
    lines += _configs(found.configs, width)
    for config in found.configs:
        lines += _shifts(config, width)
    lines += _fields(found, width)
    lines += _schedule(found.schedule, width)
    lines += _funnel(found.funnel, width)
    for text in found.texts:
        said = text["diff"] or f"{text['path']}: only the ends of its lines differ"
        lines += ["", *map(one_line, said.split("\n"))]
    for config in found.configs:
        lines += _quotes(config, width)
    return lines


def _verdict(found: Diff) -> str:
    if found.is_same:
        return "Same: rows, schema, schedule, funnel, recipe, SQL and licenses."
    configs = [config.config for config in found.configs if not config.is_same]
    parts = [f"config {name}" for name in configs]
    parts += ["manifest"] if found.fields else []
    parts += ["prompt sources"] if found.sources else []
    parts += [what for what in ("schedule", "funnel") if any(row["a"] != row["b"] for row in getattr(found, what))]
    parts += [row["path"].removeprefix(".builder/") for row in (*found.texts, *found.files)]
    return f"Different: {', '.join(parts)}."


def _configs(configs: Sequence[ConfigDiff], width: int) -> list[str]:
    rows = []
    for one in configs:
        if one.rows is not None:
            counts = [one.rows.added, one.rows.removed, one.rows.changed, one.rows.moved]
        elif one.rows_a is None or one.rows_b is None:
            counts = [one.rows_b or 0, one.rows_a or 0, 0, 0]
        else:
            counts = [0, 0, 0, 0]
        rows.append((one.config, one.rows_a, one.rows_b, *counts))
    lines = _table(("config", "rows A", "B", "added", "removed", "changed", "moved"), rows, width)
    for one in configs:
        if one.rows is not None:
            lines += _columns(one, width)
    return lines


def _columns(config: ConfigDiff, width: int) -> list[str]:
    assert config.rows is not None
    lines = []
    if config.rows.columns:
        said = ", ".join(f"{name} {rows:,}" for name, rows in config.rows.columns.items())
        lines += folded(f"{config.config}, rows by changed column: {said}", width)
    for row in config.rows.schema:
        name, before, after = row["column"], row["type_a"], row["type_b"]
        if before is None:
            said = f"column {name} added ({after})"
        elif after is None:
            said = f"column {name} removed ({before})"
        else:
            said = f"column {name} was {before}, is {after}"
        lines += folded(f"{config.config}: {said}", width)
    if config.rows.is_same:
        lines += folded(f"{config.config}: the same rows in other files", width)
    return ["", *lines] if lines else []


def _shifts(config: ConfigDiff, width: int) -> list[str]:
    """Means, medians and shares that differ; nothing where the rows are the same."""
    if config.rows is None or config.rows.is_same:
        return []
    numbers = [
        (row["column"], *(_short(row[name]) for name in ("mean_a", "mean_b", "median_a", "median_b")))
        for row in config.rows.numbers
        if (row["mean_a"], row["median_a"]) != (row["mean_b"], row["median_b"])
    ]
    lines = _table((config.config, "mean A", "B", "median A", "B"), numbers, width)
    groups = []
    for name in dict.fromkeys(row["column"] for row in config.rows.groups):
        rows = [row for row in config.rows.groups if row["column"] == name]
        if any(row["rows_a"] != row["rows_b"] for row in rows):
            totals = [sum(row[side] for row in rows) for side in ("rows_a", "rows_b")]
            rest = rows[_SHOWN:]
            shown = [(f"{name} {text_of(row['value'])}", row["rows_a"], row["rows_b"]) for row in rows[:_SHOWN]]
            if rest:
                more = (sum(row[side] for row in rest) for side in ("rows_a", "rows_b"))
                shown.append((f"{name}: {len(rest):,} more values", *more))
            groups += [(said, a, b, _share(a, totals[0]), _share(b, totals[1])) for said, a, b in shown]
    return lines + _table((config.config, "rows A", "B", "share A", "B"), groups, width)


def _fields(found: Diff, width: int) -> list[str]:
    values = [(row["field"], row["a"], row["b"]) for row in found.fields if "a" in row]
    lines = _table(("manifest", "A", "B"), values, width)
    for row in found.fields:
        if "a" not in row:
            said = f"{len(row['removed']):,} removed, {len(row['added']):,} added"
            lines += ["", f"{cut(row['field'], width - len(said) - 2)}: {said}"]
            for sign, items in (("-", row["removed"]), ("+", row["added"])):
                lines += [cut(f"  {sign} {text_of(item)}", width) for item in items[:_SHOWN]]
                lines += [f"  {sign} {len(items) - _SHOWN:,} more"] if len(items) > _SHOWN else []
    sources = [
        (row["source"], (row["revision"] or "")[:12], row["license"], row["rows_a"], row["rows_b"])
        for row in found.sources
    ]
    lines += _table(("prompt source", "revision", "license", "prompts A", "B"), sources, width)
    return lines + _table(
        ("other file", "bytes A", "B"), [(row["path"], row["bytes_a"], row["bytes_b"]) for row in found.files], width
    )


def _schedule(stages: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    if all(row["a"] == row["b"] for row in stages):
        return []
    empty: dict[str, Any] = {}
    lines = _table(
        ("stage", "place A", "B", "rows A", "B", "tokens A", "B"),
        [
            (row["stage"], *((row[side] or empty).get(name) for name in ("place", "rows", "tokens") for side in "ab"))
            for row in stages
        ],
        width,
    )
    for row in stages:
        if row["a"] and row["b"]:
            for name in ("kind", "init", "epochs"):
                if row["a"][name] != row["b"][name]:
                    said = f"{row['stage']}: {name} was {text_of(row['a'][name])}, is {text_of(row['b'][name])}"
                    lines.append(cut(said, width))
    return lines


def _funnel(rules: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    if all(row["a"] == row["b"] for row in rules):
        return []
    empty: dict[str, Any] = {}
    return _table(
        ("rule", "breaks A", "B", "only it A", "B", "tokens A", "B"),
        [
            (row["rule"],
             *((row[side] or empty).get(name) for name in ("breaks", "breaks_alone", "tokens") for side in "ab"))
            for row in rules
        ],
        width,
    )  # fmt: skip


def _quotes(config: ConfigDiff, width: int) -> list[str]:
    lines = []
    for row in config.rows.samples if config.rows is not None else config.samples:
        facts = ", ".join(f"{name} {text_of(value)}" for name, value in row["facts"].items() if value is not None)
        lines += ["", cut(f"only in {row['only_in'].upper()}, {config.config}: {facts}", width)]
        for name, text in row["texts"].items():
            if text is not None:
                lines.append(cut(f"    {name:<10} {' '.join(one_line(text).split())}", width))
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> list[str]:
    return ["", *grid(columns, rows, width).lines] if rows else []


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} GB"
