"""The rules of the filter benchmark by other libraries, each run as a process: `filter_arms.py ARM FOLDER CHANGED`.

All read the same Parquet files of a run's replies, and leave in FOLDER/decisions.json what they decided: the kept ids,
and by rule the ids that break it where the arm knows. CHANGED is JSON: parameters unlike their defaults.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import filter_plain as plain

COLUMNS = ["response_id", "reasoning", "answer", "finish_reason"]
Params = dict[str, float]


def parts(folder: Path) -> list[str]:
    """The files that every arm reads."""
    return sorted(map(str, folder.glob("tables/responses/part-*.parquet")))


def leave(folder: Path, kept: Iterable[str], rules: dict[str, list[str]] | None = None) -> None:
    """Write the decisions."""
    by_rule = rules and {rule: sorted(ids) for rule, ids in rules.items()}
    (folder / "decisions.json").write_text(json.dumps({"kept": sorted(kept), "rules": by_rule}), encoding="utf-8")


def keep(reasoning: str | None, answer: str | None, finish_reason: str | None, params: Params) -> bool:
    """Whether a reply breaks no rule."""
    return not plain.broken(plain.numbers(reasoning, answer), finish_reason, params)


def load(folder: Path) -> Any:
    """The replies as a dataset; made of the Parquet files once, as `load_dataset` does."""
    from datasets import load_dataset  # type: ignore[import-untyped,unused-ignore]

    files = parts(folder)
    return load_dataset("parquet", data_files=files, split="train", columns=COLUMNS, cache_dir=str(folder / "cache"))


def datasets_filter(folder: Path, params: Params) -> None:
    """One `filter` that measures and decides."""
    rows = load(folder).filter(keep, input_columns=COLUMNS[1:], fn_kwargs={"params": params})
    leave(folder, rows["response_id"])


def datasets_map(folder: Path, params: Params) -> None:
    """A `map` that measures, which `datasets` stores, and a `filter` of the numbers."""
    measured = load(folder).map(plain.numbers, input_columns=COLUMNS[1:3], remove_columns=COLUMNS[1:3])
    names = [name for name in measured.column_names if name not in COLUMNS]
    rows = measured.filter(keep_numbers, fn_kwargs={"params": params, "names": names})
    leave(folder, rows["response_id"])


def keep_numbers(row: dict[str, Any], params: Params, names: list[str]) -> bool:
    """Whether a reply whose numbers are columns breaks no rule."""
    return not plain.broken({name: row[name] for name in names}, row["finish_reason"], params)


def polars(folder: Path, params: Params) -> None:
    """Expressions; n-grams by explode and shift. By batches, so that memory stays bounded."""
    import polars as pl
    import pyarrow.parquet as pq
    from filter_polars import violations

    kept: list[str] = []
    rules: dict[str, list[str]] = defaultdict(list)
    for part in parts(folder):
        for batch in pq.ParquetFile(part).iter_batches(1000, columns=COLUMNS):
            found = violations(pl.DataFrame(batch), params)
            names = [name for name in found.columns if name != "response_id"]
            kept += found.filter(~pl.any_horizontal(names))["response_id"].to_list()
            for name in names:
                rules[name] += found.filter(pl.col(name))["response_id"].to_list()
    leave(folder, kept, rules)


def datatrove(folder: Path, params: Params) -> None:
    """A pipeline of one task: its Parquet reader, a filter of one's own, and a last step that keeps the ids."""
    from datatrove.executor import LocalPipelineExecutor  # type: ignore[import-not-found,unused-ignore]
    from datatrove.pipeline.filters.base_filter import BaseFilter  # type: ignore[import-not-found,unused-ignore]
    from datatrove.pipeline.readers import ParquetReader  # type: ignore[import-not-found,unused-ignore]

    class Rules(BaseFilter):  # type: ignore[misc,unused-ignore]
        name = "rules"

        def filter(self, doc: Any) -> bool:
            return keep(doc.text.strip("\0") or None, doc.metadata["answer"], doc.metadata["finish_reason"], params)

    kept: list[str] = []

    def ids(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for document in data:
            kept.append(document.id)
            yield document

    def document(_: Any, row: dict[str, Any], path: str, number: int) -> dict[str, Any]:
        # It drops documents without text before a filter sees them.
        return {"id": row["response_id"], "text": row["reasoning"] or "\0", "metadata": row}

    reader = ParquetReader(str(folder / "tables/responses"), glob_pattern="part-*.parquet", adapter=document)
    LocalPipelineExecutor(
        [reader, Rules(), ids], tasks=1, logging_dir=str(folder / "trove"), skip_completed=False
    ).run()
    leave(folder, kept)


ARMS: dict[str, Callable[[Path, Params], None]] = {
    "datasets-filter": datasets_filter,
    "datasets-map": datasets_map,
    "polars": polars,
    "datatrove": datatrove,
}

if __name__ == "__main__":
    ARMS[sys.argv[1]](Path(sys.argv[2]), plain.PARAMS | json.loads(sys.argv[3]))
