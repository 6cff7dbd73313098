"""Numbers of a release, by hand: a run of three questions with literal scores and verdicts."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from release_toys import STUDENT, Selected, fill, recipe, replies_of, score_of, selected, verdict_of
from score_toys import prompt, reply

from builder.config import Recipe, Stage
from builder.errors import SourceError
from builder.models import student_id
from builder.release_statistics import statistics
from builder.resources import resource
from builder.selection import select
from builder.store import Run, columns_table


def config(found: dict[str, Any], name: str, temperature: float | None) -> dict[str, Any]:
    return next(one for one in found["configs"] if (one["config"], one["temperature"]) == (name, temperature))


def is_by_schema(found: dict[str, Any]) -> bool:
    schema = json.loads(resource("data_cards", "manifest.schema.json").read_text("utf-8"))
    part = {**schema["properties"]["statistics"], "$defs": schema["$defs"]}
    jsonschema.validate(json.loads(json.dumps(found)), part)
    return True


def test_rows_prompts_and_quantiles_of_every_config(made: Selected) -> None:
    found = statistics(made[0], recipe())
    assert [(one["config"], one["temperature"], one["rows"], one["prompts"]) for one in found["configs"]] == [
        ("low-temperature", 0.6, 3, 3),
        ("high-temperature", 1.0, 3, 3),
        ("candidates", 0.6, 6, 3),
        ("candidates", 1.0, 6, 3),
    ]
    low = config(found, "low-temperature", 0.6)
    assert low["domains"] == [{"domain": "math", "rows": 3}]
    spread = {"known": 3, "missing": 0} | dict.fromkeys(("p5", "p25", "p50", "p75", "p95", "max"), 41)
    assert low["student_tokens"] == spread
    # the margin is 0.2: the fourth count, and one more for the second sample
    assert low["teacher_sentences"]["p50"] == 7
    assert low["mean_delta"]["max"] == 0.25
    of_both = config(found, "candidates", 0.6)["student_tokens"]
    assert [of_both[name] for name in ("p5", "p25", "p50", "p75", "p95", "max")] == [40, 40, 40, 41, 41, 41]
    assert found["replies"] == {"candidates": 12, "released": 6}
    assert is_by_schema(found)


def test_verdicts_are_counted_by_verifier_and_by_what_decides(made: Selected) -> None:
    run, _ = made
    judged = [verdict_of(row, "a-judge", "unscorable") for row in replies_of("p", (0.6,))]
    run.append("verdicts", columns_table("verdicts", judged))
    found = {(line.pop("config"), line.pop("verifier")): line for line in statistics(run, recipe())["verdicts"]}
    none = dict.fromkeys(("correct", "wrong", "unscorable", "timeout", "error", "unverified"), 0)
    assert found == {
        ("low-temperature", None): none | {"correct": 3},
        ("low-temperature", "a-judge"): none | {"unscorable": 1, "unverified": 2},
        ("low-temperature", "number"): none | {"correct": 3},
        ("high-temperature", None): none | {"correct": 3},
        ("high-temperature", "number"): none | {"correct": 3},
        ("candidates", None): none | {"correct": 9, "wrong": 3},
        ("candidates", "a-judge"): none | {"unscorable": 2, "unverified": 10},
        ("candidates", "number"): none | {"correct": 9, "wrong": 3},
    }


def test_replies_without_a_verdict_are_unverified(made: Selected) -> None:
    run, _ = made
    run.replace("verdicts", columns_table("verdicts", []))
    found = statistics(run, recipe())
    assert [(line["config"], line["verifier"], line["unverified"]) for line in found["verdicts"]] == [
        ("low-temperature", None, 3),
        ("high-temperature", None, 3),
        ("candidates", None, 12),
    ]
    assert found["pass_rate"] is None


def test_pass_rates_count_prompts_and_only_what_is_right_or_wrong(made: Selected) -> None:
    run, _ = made
    assert statistics(run, recipe())["pass_rate"] == {
        "prompts": 3, "none_correct": 0, "all_correct": 0, "edges": [round(0.1 * step, 1) for step in range(11)],
        "counts": [0, 0, 0, 0, 0, 0, 0, 3, 0, 0],
    }  # fmt: skip
    others = {"p": ["correct", "unscorable", "error", "timeout"], "q": ["wrong"] * 4, "s": ["unscorable"] * 4}
    rows = [
        verdict_of(row, verdict=verdict)
        for name, verdicts in others.items()
        for row, verdict in zip(replies_of(name), verdicts, strict=True)
    ]
    run.replace("verdicts", columns_table("verdicts", rows))
    rate = statistics(run, recipe())["pass_rate"]
    assert (rate["prompts"], rate["none_correct"], rate["all_correct"]) == (2, 1, 1)
    assert rate["counts"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


def test_a_share_on_an_edge_falls_into_the_bin_above(tmp_path: Path) -> None:
    run = Run(tmp_path)
    replies = [reply(f"r{number}", "p", sample_index=number) for number in range(10)]
    run.append("prompts", columns_table("prompts", [prompt("p")]))
    run.append("responses", columns_table("responses", replies))
    given = [verdict_of(row, verdict="correct" if number < 3 else "wrong") for number, row in enumerate(replies)]
    run.append("verdicts", columns_table("verdicts", given))
    assert statistics(run, recipe())["pass_rate"]["counts"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_what_was_not_scored_is_missing_never_zero(made: Selected) -> None:
    run, _ = made
    every = [score_of(row) for name in "pqs" for row in replies_of(name)]
    bad = {"status": "align_error", "teacher_counts": None, "mean_delta": None, "sentence_count": None}
    run.replace(
        "scores", columns_table("scores", [one | bad if one["response_id"] == "p-0.6-1" else one for one in every])
    )
    low = config(statistics(run, recipe()), "low-temperature", 0.6)
    assert (low["teacher_sentences"]["known"], low["teacher_sentences"]["missing"]) == (2, 1)
    assert (low["mean_delta"]["known"], low["mean_delta"]["missing"]) == (2, 1)
    run.replace("scores", columns_table("scores", [one | {"mean_delta": float("nan")} for one in every]))
    assert config(statistics(run, recipe()), "low-temperature", 0.6)["mean_delta"] is None
    run.replace("scores", columns_table("scores", [one | {"student_id": "another"} for one in every]))
    found = statistics(run, recipe())
    low = config(found, "low-temperature", 0.6)
    assert low["student_tokens"] is low["teacher_sentences"] is low["mean_delta"] is None
    assert low["completion_tokens"]["known"] == 3
    assert [one["quantity"] for one in found["histograms"]] == ["completion_tokens"]


def test_a_margin_between_the_stored_ones_counts_released_rows_only(made: Selected) -> None:
    run, _ = made
    sentences = [
        {
            "response_id": row["response_id"], "student_id": student_id(STUDENT), "byte_end": [1, 2, 3],
            "teacher_tokens": [5, 5, 2], "student_tokens": [5, 5, 5], "p_teacher": [0.9, 0.9, 0.9],
            "p_student": [0.5, 0.7, 0.1],
        }
        for name in "pqs"
        for row in replies_of(name)
    ]  # fmt: skip
    run.append("sentences", columns_table("sentences", sentences))
    odd = recipe(selection={"rules": ["answer_wrong"], "params": {"teacher_margin": 0.33}})
    found = statistics(run, odd)
    assert config(found, "low-temperature", 0.6)["teacher_sentences"]["max"] == 1
    assert config(found, "candidates", 0.6)["teacher_sentences"] is None


def test_histograms_hold_every_row_once(made: Selected) -> None:
    lengths, shares = statistics(made[0], recipe())["histograms"]
    assert [sum(series["counts"]) for series in lengths["series"]] == [3, 3, 6, 6]
    assert lengths["edges"] == [40, 41, 42]
    assert lengths["series"][2]["counts"] == [3, 3]
    # 7 of the 19 sentences that are long enough
    assert [place for place, count in enumerate(shares["series"][0]["counts"]) if count] == [int(7 / 19 / 0.05)]


def benchmark(path: Path, *questions: str) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in questions), encoding="utf-8")
    return {"benchmarks": {"toys": {"source": str(path)}}}


def asking(decontamination: dict[str, Any], *, is_rule: bool = True, **params: float) -> Recipe:
    rules = ["answer_wrong", *(["benchmark_contaminated"] if is_rule else [])]
    return recipe(decontamination=decontamination, selection={"rules": rules, "params": params})


def test_benchmarks_are_named_with_what_they_hit(made: Selected, tmp_path: Path) -> None:
    run, _ = made
    toys = benchmark(tmp_path / "toys.jsonl", "what is 1 + 2, Q", "Who?", "When?")
    select(run, asking(toys))
    found = statistics(run, asking(toys))["decontamination"]
    revision = found["benchmarks"][0].pop("revision")
    assert len(revision) == 64
    assert found == {
        "is_rule": True, "ngram_words": 10, "min_row_share": 0.0, "prompts_compared": 3, "prompts_hit": 1,
        "rows_hit": {"low-temperature": 0, "high-temperature": 0, "candidates": 4},
        "benchmarks": [{"name": "toys", "source": "toys.jsonl", "rows": 3, "prompts_hit": 1}],
    }  # fmt: skip
    assert is_by_schema(statistics(run, asking(toys)))
    again = asking(toys, is_rule=False, ngram_words=12)
    select(run, recipe())
    kept = statistics(run, again)["decontamination"]
    assert (kept["is_rule"], kept["ngram_words"]) == (False, 12)
    assert kept["rows_hit"] == {"low-temperature": 1, "high-temperature": 1, "candidates": 4}


def test_the_parameters_of_the_rule_decide_what_is_a_hit(tmp_path: Path) -> None:
    words = "one two three four five six seven eight nine"
    run = Run(tmp_path / "run")
    run.append("prompts", columns_table("prompts", [prompt("p", f"First {words} last")]))
    run.append("responses", columns_table("responses", [reply("r", "p")]))
    toys = benchmark(tmp_path / "toys.jsonl", f"{words} and then one that goes on")
    select(run, asking(toys))
    hits = [
        statistics(run, asking(toys, **params))["decontamination"]["prompts_hit"]
        for params in ({}, {"ngram_words": 9}, {"ngram_words": 9, "min_row_share": 0.9})
    ]
    assert hits == [0, 1, 0]


def test_benchmarks_that_nothing_was_compared_with_claim_nothing(made: Selected, tmp_path: Path) -> None:
    run, _ = made
    found = statistics(run, asking(benchmark(tmp_path / "toys.jsonl", "Who?")))["decontamination"]
    assert (found["prompts_compared"], found["benchmarks"][0]["rows"]) == (0, None)
    assert statistics(run, recipe())["decontamination"] is None


def test_a_benchmark_that_is_gone_is_an_error_not_a_number(made: Selected, tmp_path: Path) -> None:
    run, _ = made
    toys = benchmark(tmp_path / "toys.jsonl", "Who?")
    select(run, asking(toys))
    (tmp_path / "toys.jsonl").unlink()
    with pytest.raises(SourceError, match=r"toys\.jsonl does not exist"):
        statistics(run, asking(toys))


def test_copies_are_counted_beyond_the_first(made: Selected) -> None:
    run, _ = made
    assert statistics(run, recipe())["duplicates"] == {"same_text": {"candidates": 0, "released": 0}, "near": None}
    twins = [reply(f"t{number}", "p", temperature=0.6, sample_index=number + 5) for number in range(3)]
    run.append("responses", columns_table("responses", twins))
    chosen = recipe(selection={"rules": [], "selector": "random", "keep": 5})
    select(run, chosen)
    compared = [
        {"response_id": name, "earlier_ids": earlier, "jaccards": [0.9] * len(earlier)}
        for name, earlier in {"t0": [], "t1": ["t0"], "t2": ["t0", "t1"]}.items()
    ]
    run.append("duplicates", columns_table("duplicates", compared))
    found = statistics(run, chosen)["duplicates"]
    assert found["same_text"] == {"candidates": 2, "released": 2}
    assert found["near"] == {"compared": 3, "alike": 2, "floor": 0.7}


def test_prompts_and_pairs_are_counted_as_rows_of_their_kind(tmp_path: Path) -> None:
    run = fill(Run(tmp_path), ("p", "q"))
    pairs = [
        {"prompt_id": name, "chosen_id": f"{name}-0.6-0", "rejected_id": f"{name}-0.6-1", "votes": [], "gap": 1.0}
        for name in "pq"
    ]
    run.append("pairs", columns_table("pairs", pairs))
    kinds = recipe(stages={"rl": Stage(kind="grpo"), "judge": Stage(kind="reward")})
    select(run, kinds)
    found = statistics(run, kinds)
    assert [(one["config"], one["kind"], one["temperature"], one["rows"]) for one in found["configs"][:2]] == [
        ("rl", "grpo", None, 2),
        ("judge", "reward", None, 2),
    ]
    assert found["configs"][1]["prompts"] == 2
    assert found["configs"][0]["domains"] == [{"domain": "math", "rows": 2}]
    assert found["configs"][0]["student_tokens"] is None
    assert {line["config"] for line in found["verdicts"]} == {"candidates"}
    assert is_by_schema(found)


def test_many_domains_are_cut_to_the_largest(tmp_path: Path) -> None:
    run = Run(tmp_path)
    names = [f"p{number:02}" for number in range(30)]
    rows = [prompt(name, f"Question {name}?") | {"domain": f"d{int(name[1:]) % 25:02}"} for name in names]
    run.append("prompts", columns_table("prompts", rows))
    run.append("responses", columns_table("responses", [reply(f"r{name}", name) for name in names]))
    domains = statistics(run, recipe())["configs"][0]["domains"]
    assert len(domains) == 20
    assert domains[0] == {"domain": "d00", "rows": 2}
    assert [one["rows"] for one in domains] == [2] * 5 + [1] * 15


def test_the_same_run_gives_the_same_numbers_in_whatever_parts(made: Selected, tmp_path: Path) -> None:
    backwards = fill(Run(tmp_path / "backwards"), ("s", "q", "p"), backwards=True)
    select(backwards, recipe())
    one, other = statistics(made[0], recipe()), statistics(backwards, recipe())
    assert json.dumps(one) == json.dumps(other)


def test_no_text_of_a_row_gets_into_the_numbers(tmp_path: Path) -> None:
    run, _ = selected(tmp_path)
    said = json.dumps(statistics(run, recipe()))
    assert "Thinking" not in said
    assert "What is" not in said
    for name in pl.concat(
        [run.read("responses", ["response_id"]).to_series(), run.read("prompts", ["prompt_id"]).to_series()]
    ):
        assert f'"{name}"' not in said
