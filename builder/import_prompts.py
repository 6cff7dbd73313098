"""Prompts of imported replies, merged into table `prompts` as the recipe's own sources merge."""

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from builder.store import Run, columns_table
from builder.verifiers import default_verifier

_CHUNK: Final = 4096
"""Rows made into columns at once: on the way each message and source takes 5 kB."""
_FILLED: Final = ("gold", "gold_type", "verifier", "domain", "language")


class PromptTable:
    """The run's prompts in memory; `write` replaces the table. `added` counts those that were not there."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rows = {row["prompt_id"]: row for row in run.read("prompts").iter_rows(named=True)}
        self._golds: dict[str, set[str]] = {}
        self.added = 0

    def add(
        self,
        prompt_id: str,
        messages: list[dict[str, str]],
        columns: Mapping[str, str | None],
        *sources: Mapping[str, str | None],
    ) -> None:
        """Add a prompt; one that is there gains sources and what it lacks. Two golds that differ are no gold."""
        gold_type = columns.get("gold_type")
        given: dict[str, Any] = {name: columns.get(name) for name in _FILLED}
        given["verifier"] = given["verifier"] or default_verifier(gold_type)
        known = self._rows.get(prompt_id)
        if known is None:
            known = {"prompt_id": prompt_id, "messages": messages, "sources": [], "gold_conflicts": 0, **given}
            self._rows[prompt_id] = known
            self.added += 1
        known["sources"].extend(source for source in sources if source not in known["sources"])
        golds = self._golds.setdefault(prompt_id, {known["gold"]} - {None})
        golds.update({given["gold"]} - {None})
        if len(golds) > 1:
            known["gold_conflicts"] = max(known["gold_conflicts"], len(golds) - 1)
        for name in _FILLED:
            known[name] = known[name] if known[name] is not None else given[name]
        if known["gold_conflicts"]:
            known["gold"] = None

    def write(self) -> None:
        """Make them the table `prompts`."""
        rows = list(self._rows.values())
        parts = [columns_table("prompts", rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK)]
        if parts:
            self._run.replace("prompts", pa.concat_tables(parts))
