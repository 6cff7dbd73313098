"""Selection end to end on literal rows with winners worked by hand."""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from builder.config import Recipe, Selection, Stage, Student
from builder.decision import plan_selection
from builder.errors import BuilderError, SqlError, TableError, UsageError
from builder.identity import order_key
from builder.models import student_id
from builder.rules import catalogue
from builder.selection import RuleFunnel, SelectionResult, StageResult, select
from builder.show import decided
from builder.sqlrun import Limits
from builder.staging import build_staging, staging_variables
from builder.store import Run, columns_table

STUDENT = Student(model="org/student")
ALL_RULES = [name for name in catalogue("rules") if name != "benchmark_contaminated"]  # which needs a benchmark
STUDENT_ID = student_id(STUDENT)


def prompt(prompt_id: str, gold: str | None = None, domain: str = "math") -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "messages": [{"role": "user", "content": f"question {prompt_id}"}],
        "domain": domain,
        "gold": gold,
        "sources": [],
        "gold_conflicts": 0,
    }


def reply(response_id: str, prompt_id: str, temperature: float = 0.6, **changes: Any) -> dict[str, Any]:
    return {
        "response_id": response_id,
        "prompt_id": prompt_id,
        "role": "teacher",
        "model": "m",
        "sample_index": 0,
        "temperature": temperature,
        "reasoning": f"thinking of {response_id}",
        "answer": "4",
        "reasoning_format": "field",
        "finish_reason": "stop",
        "completion_tokens": 100,
        "max_tokens": 1000,
        "tool_calls": 0,
        "replaced_characters": 0,
        "prefix_chars": 0,
        **changes,
    }


def score(response_id: str, teacher_sentences: int, mean_delta: float, **changes: Any) -> dict[str, Any]:
    return {
        "response_id": response_id,
        "student_id": STUDENT_ID,
        "status": "ok",
        "teacher_counts": [teacher_sentences] * 10,
        "student_counts": [0] * 10,
        "mean_delta": mean_delta,
        "student_tokens": 120,
        **changes,
    }


# p at 0.6: c wins by count over a and b; d is cut, and would win. p at 1.0: e alone. q: f and g tie on count.
PROMPTS = [prompt("p", gold="4"), prompt("q", domain="code")]
REPLIES = [
    reply("a", "p"),
    reply("b", "p", completion_tokens=200),
    reply("c", "p", completion_tokens=300),
    reply("d", "p", finish_reason="length", completion_tokens=1000),
    reply("e", "p", 1.0),
    reply("f", "q"),
    reply("g", "q"),
    reply("h", "q", reasoning=None, finish_reason="length", completion_tokens=None),
    reply("s", "q", role="student", reasoning=None),
]
SCORES = [
    score("a", 1, 0.1),
    score("b", 2, 0.1),
    score("c", 3, 0.1),
    score("d", 9, 0.1),
    score("e", 1, 0.1),
    score("f", 2, 0.1),
    score("g", 2, 0.2),
    score("f", 99, 0.9, student_id="another student"),
]


def own_rule(folder: Path, violated: str) -> Path:
    """A folder with rule `only`, which teacher replies break where `violated` holds."""
    (folder / "only.sql").write_text(
        "select response_id, null as observed, null as threshold from stg_responses\n"
        f"where role = 'teacher' and ({violated});\n"
    )
    return folder


def make_run(root: Path, parts: int = 1, shuffle: int | None = None, changed: dict[str, float] | None = None) -> Run:
    """The literal rows; `changed` gives some replies another mean delta."""
    run = Run(root)
    for name, literal in (("prompts", PROMPTS), ("responses", REPLIES), ("scores", SCORES)):
        rows = [
            {**row, "mean_delta": (changed or {}).get(row["response_id"], row["mean_delta"])}
            if name == "scores"
            else row
            for row in literal
        ]
        if shuffle is not None:
            random.Random(shuffle).shuffle(rows)
        for start in range(parts):
            run.append(name, columns_table(name, rows[start::parts]))
    return run


def recipe(stages: dict[str, Stage] | None = None, **selection: Any) -> Recipe:
    defaults = {"rules": ["response_truncated", "reasoning_missing"]}
    return Recipe(name="test", student=STUDENT, selection=Selection(**defaults | selection), stages=stages or {})


def kept(run: Run, stage: str = "train") -> list[str]:
    """Ids of a stage in order of position."""
    rows = run.read("selection").filter(pl.col("stage") == stage).sort("position")
    assert rows["position"].to_list() == list(range(rows.height))
    return rows["grain_id"].to_list()


def shuffled(ids: str | list[str], seed: int = 0) -> list[str]:
    return sorted(ids, key=lambda name: order_key(name, seed))


def test_rules_first_keeps_the_best_survivor_of_each_prompt_and_temperature(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = select(run, recipe())
    assert kept(run) == shuffled("ceg")
    assert run.read("rejections").sort("response_id", "rule_name").rows() == [
        ("d", "response_truncated", 1000.0, 1000.0, 3),
        ("h", "reasoning_missing", 0.0, 1.0, 7),
        ("h", "response_truncated", None, 1000.0, 7),
    ]
    assert result == SelectionResult(
        selection_id=result.selection_id,
        replies=8,
        survivors=6,
        kept=3,
        funnel=(
            RuleFunnel("response_truncated", breaks=2, breaks_alone=1, tokens=1000),
            RuleFunnel("reasoning_missing", breaks=1, breaks_alone=0, tokens=0),
        ),
        stages=(StageResult("train", "sft", rows=3, tokens=500),),
        mean_tokens_kept=500 / 3,
        mean_tokens_dropped=(100 + 200 + 1000 + 100) / 4,
        mean_tokens_outranked=400 / 3,
        median_tokens_kept=100,
        median_tokens_dropped=150,
        median_tokens_outranked=100,
        selector="teacher_sentence_count",
        prompts=2,
        prompts_without=0,
        prompts_single=0,
        prompts_tied=1,
        prompts_with_spread=1,
        new_features=9,
        warnings=(),
    )
    selection = run.read("selection")
    assert set(selection["selection_id"]) == {result.selection_id}
    assert set(selection["rank"]) == {1}


def test_selector_first_lets_a_broken_winner_go_without_a_runner_up(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = select(run, recipe(order="selector-first"))
    assert kept(run) == shuffled("eg")
    assert (result.survivors, result.kept) == (6, 2)


def test_without_rules_every_teacher_reply_is_ranked(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = select(run, recipe(rules=[]))
    assert kept(run) == shuffled("deg")
    assert (result.funnel, result.survivors) == ((), 8)
    assert run.read("rejections").height == 0


def test_keep_two_takes_the_runners_up(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    select(run, recipe(keep=2))
    assert kept(run) == shuffled("bcefg")
    ranks = dict(run.read("selection").select("grain_id", "rank").iter_rows())
    assert ranks == {"c": 1, "b": 2, "e": 1, "g": 1, "f": 2}


def test_stages_pick_order_and_may_share_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stages = {
        "low": Stage(where="temperature = 0.6"),
        "sorted": Stage(where="mean_delta >= 0.1 and domain is not null -- all", order_by="completion_tokens desc"),
        "rl": Stage(kind="grpo", where="domain = 'math'"),
        "nothing": Stage(where="null"),
    }
    result = select(run, recipe(stages))
    assert kept(run, "low") == shuffled("cg")
    assert kept(run, "sorted") == ["c", "e", "g"]
    assert kept(run, "rl") == ["p"]
    assert [(stage.name, stage.rows, stage.tokens) for stage in result.stages] == [
        ("low", 2, 400),
        ("sorted", 3, 500),
        ("rl", 1, None),
        ("nothing", 0, 0),
    ]
    assert result.warnings == ("Stage nothing is empty.",)
    assert list(dict.fromkeys(run.read("selection")["stage"])) == ["low", "sorted", "rl"]


def test_a_reward_stage_reads_pairs_and_needs_some(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    stages = {"judge": Stage(kind="reward", where="gap > 0")}
    with pytest.raises(TableError, match="no preference pairs"):
        select(run, recipe(stages))
    pairs = [
        {"prompt_id": "p", "chosen_id": "a", "rejected_id": "b", "gap": 1.0},
        {"prompt_id": "p", "chosen_id": "b", "rejected_id": "c", "gap": 0.0},
    ]
    run.append("pairs", columns_table("pairs", pairs))
    select(run, recipe(stages))
    assert kept(run, "judge") == ["a:b"]


def test_same_rows_whatever_the_order_of_parts(tmp_path: Path) -> None:
    stages = {"low": Stage(where="temperature = 0.6"), "all": Stage(order_by="domain")}
    outcomes = []
    for index, (parts, shuffle) in enumerate([(1, None), (3, 1), (5, 2)]):
        run = make_run(tmp_path / str(index), parts, shuffle)
        result = select(run, recipe(stages, rules=ALL_RULES, keep=2))
        outcomes.append((result, run.read("rejections"), run.read("selection")))
    for result, rejections, selection in outcomes[1:]:
        assert result == outcomes[0][0]
        assert rejections.equals(outcomes[0][1])
        assert selection.equals(outcomes[0][2])


def test_selecting_again_changes_nothing_and_computes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = select(run, recipe())
    before = run.read("selection")
    second = select(run, recipe())
    assert second.new_features == 0
    assert second.selection_id == first.selection_id
    assert run.read("selection").equals(before)


def test_replies_that_another_command_staged_without_features_get_theirs(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    select(run, recipe())
    run.append("responses", columns_table("responses", [reply("z", "p", reasoning="")]))
    build_staging(run, staging_variables(recipe()))
    assert select(run, recipe()).new_features == 1
    assert "z" in set(run.read("rejections")["response_id"])


def test_selection_id_follows_what_decides() -> None:
    changed = [
        recipe(),
        recipe(keep=2),
        recipe(order="selector-first"),
        recipe(selector="longest"),
        recipe(rules=["response_truncated"]),
        recipe(params={"teacher_margin": 0.2}),
        recipe({"train": Stage(where="true")}),
        recipe().model_copy(update={"generation": recipe().generation.model_copy(update={"seed": 1})}),
    ]
    assert len({plan_selection(one, None).selection_id for one in changed}) == len(changed)


def test_seed_moves_positions(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    orders = []
    for seed in range(2):
        seeded = recipe(keep=4).model_copy(update={"generation": recipe().generation.model_copy(update={"seed": seed})})
        select(run, seeded)
        assert kept(run) == shuffled("abcefg", seed)
        orders.append(tuple(kept(run)))
    assert len(set(orders)) > 1


def test_missing_scores_reject_everything_with_a_warning_and_never_crash(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.append("responses", columns_table("responses", REPLIES))
    result = select(run, recipe(rules=ALL_RULES))
    assert (result.kept, result.survivors) == (0, 0)
    assert "Rule score_missing rejects every one of the 8 replies." in result.warnings
    (idle,) = [warning for warning in result.warnings if warning.startswith("Nothing is rejected by ")]
    assert "answer_wrong" in idle and "score_missing" not in idle
    assert "Nothing is kept: no reply survives the rules and the selector." in result.warnings
    assert "Stage train is empty." in result.warnings
    assert run.read("selection").height == 0


def test_a_run_without_replies_says_so(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="builder generate"):
        select(Run(tmp_path), recipe())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rules": ["answer_wrnog"]}, UsageError, "did you mean 'answer_wrong'"),
        ({"rules": ["tail_loop", "tail_loop"]}, UsageError, "twice"),
        ({"selector": "longset"}, UsageError, "did you mean 'longest'"),
        ({"params": {"teacher_margn": 0.1}}, UsageError, "did you mean 'teacher_margin'"),
        ({"params": {"teacher_margin": "high"}}, UsageError, "teacher_margin is double"),
        (
            {"params": {"teacher_margin": 1.2}},
            SqlError,
            r"selector teacher_sentence_count.*difference of probabilities",
        ),
        ({"params": {"teacher_margin": 0.12}}, SqlError, r"no row in stg_sentences.*rerun builder score"),
    ],
)
def test_a_recipe_that_asks_for_what_does_not_exist_fails_and_writes_nothing(
    tmp_path: Path, changes: dict[str, Any], error: type[BuilderError], message: str
) -> None:
    run = make_run(tmp_path)
    with pytest.raises(error, match=message):
        select(run, recipe(**changes))
    assert run.parts("selection") == []
    assert run.parts("rejections") == []


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage(where="temperatur = 0.6"), r'(?s)stage a.*Candidate bindings: "temperature"'),
        (Stage(where="1 = 1) or (1 = 1"), r"stages\.a\.where"),
        (Stage(where="exists (from read_text('/etc/passwd'))"), r"stages\.a\.where uses read_text"),
        (Stage(order_by="random()"), r"stages\.a\.order_by uses random"),
        (Stage(where="domain"), "(?s)stage a.*Could not convert string"),
    ],
)
def test_a_stage_that_is_wrong_is_named(tmp_path: Path, stage: Stage, message: str) -> None:
    with pytest.raises(SqlError, match=message):
        select(make_run(tmp_path), recipe({"a": stage}))


def test_an_endless_where_is_stopped_and_leaves_the_selection_as_it_was(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    select(run, recipe())
    before = run.read("selection")
    endless = "(with recursive r as (select 1 as n union all select n from r) select count(*) from r) > 0"
    with pytest.raises(SqlError, match=r"longer than 2 s|memory"):
        select(run, recipe({"a": Stage(where=endless)}), limits=Limits(memory_mb=256, threads=1, seconds=2, temp_mb=16))
    assert run.read("selection").equals(before)


def test_a_misspelt_column_is_found_before_features_are_computed_for_many_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.decision._MANY", 2)
    run = make_run(tmp_path)
    for wrong in (recipe({"a": Stage(where="temperatur = 0.6")}), recipe(rules=["only.sql"])):
        with pytest.raises(SqlError, match=r'(?s)(stage a|rule only).*Candidate bindings: "temperature"'):
            select(run, wrong, recipe_dir=own_rule(tmp_path, "temperatur = 0.6"))
        assert run.parts("features") == [] and not run.database.exists()
    assert select(run, recipe(rules=ALL_RULES)).new_features == len(REPLIES)


def test_rules_and_selectors_of_ones_own_join_the_funnel(tmp_path: Path) -> None:
    folder = tmp_path / "recipe"
    (folder / "sql" / "rules").mkdir(parents=True)
    (folder / "too_short.sql").write_text(
        "-- too_short\n-- Parameters  min_tokens: completion tokens, default 150\n"
        "with params as (select coalesce(getvariable('min_tokens'), 150)::integer as min_tokens)\n"
        "select response_id, completion_tokens as observed, min_tokens as threshold\n"
        "from stg_responses cross join params where completion_tokens < min_tokens;\n"
    )
    (folder / "shortest.sql").write_text(
        "select s.response_id, row_number() over (partition by s.prompt_id, s.temperature\n"
        "order by r.completion_tokens, s.response_id) as rank\n"
        "from survivors as s join stg_responses as r using (response_id) where r.completion_tokens < 1000;\n"
    )
    run = make_run(tmp_path / "run")
    own = recipe(rules=["too_short.sql"], selector="shortest.sql")
    result = select(run, own, recipe_dir=folder)
    assert kept(run) == ["b"]
    assert result.funnel == (RuleFunnel("too_short", breaks=4, breaks_alone=4, tokens=400),)
    assert result.warnings == ("Selector shortest leaves 2 of 4 survivors without a rank.",)
    lower = recipe(rules=["too_short.sql"], selector="shortest.sql", params={"min_tokens": 50})
    select(run, lower, recipe_dir=folder)
    assert kept(run) == shuffled("aef")


def test_the_files_run_unchanged_on_the_database_that_select_leaves(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = select(run, recipe())
    with duckdb.connect(str(run.database), read_only=True) as connection:
        assert dict(connection.execute("select response_id, 1 from survivors").fetchall()).keys() == set("abcefg")
        for kind in ("rules", "selectors", "reports"):
            for path in catalogue(kind).values():
                text = path.read_text(encoding="utf-8")
                if "stg_duplicates" not in text and "stg_contaminations" not in text:  # which no rule here reads
                    connection.execute(text).fetchall()
        ranked = connection.sql(catalogue("selectors")["teacher_sentence_count"].read_text(encoding="utf-8"))
        assert sorted(ranked.filter("rank = 1").fetchall()) == [("c", 1), ("e", 1), ("g", 1)]
        funnel = connection.sql(catalogue("reports")["funnel"].read_text(encoding="utf-8")).filter("domain is null")
        assert {row[0]: row[3:] for row in funnel.fetchall()} == {
            **{
                rule.rule_name: (rule.breaks, rule.breaks_alone, rule.tokens, *lengths)
                for rule, lengths in zip(result.funnel, [(1000, 1000), (None, None)], strict=True)
            },
            "(kept)": (3, None, 500, result.mean_tokens_kept, result.median_tokens_kept),
            "(outranked)": (3, None, 400, result.mean_tokens_outranked, result.median_tokens_outranked),
            "(not kept)": (5, None, 1400, result.mean_tokens_dropped, result.median_tokens_dropped),
        }


def test_sentence_lists_are_read_at_a_margin_off_the_grid_and_only_then(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    lists = {"teacher_tokens": [5, 5], "student_tokens": [5, 5], "p_student": [0.1, 0.1], "byte_end": [1, 2]}
    # at 0.12 a has both sentences and b one; the counts at 0.1 say that b has more
    rows = [
        {"response_id": name, "student_id": STUDENT_ID, "p_teacher": p, **lists}
        for name, p in {"a": [0.9, 0.9], "b": [0.9, 0.1], "c": [0.1, 0.1], "d": [0.1, 0.1],
                        "e": [0.1, 0.1], "f": [0.1, 0.1], "g": [0.1, 0.1]}.items()
    ]  # fmt: skip
    run.append("sentences", columns_table("sentences", rows))
    select(run, recipe(params={"teacher_margin": 0.12}))
    assert "a" in kept(run) and "c" not in kept(run)
    (part,) = run.parts("sentences")
    part.write_bytes(part.read_bytes()[:-200] + b"x" * 196 + b"PAR1")
    select(run, recipe(params={"teacher_margin": 0.1}))
    assert "c" in kept(run)


@pytest.mark.parametrize(
    ("selector", "spread"),
    [
        ("fewest_teacher_sentences", (0, 1, 1)),
        ("length_matched", (0, 1, 1)),
        ("mean_delta", (0, 0, 2)),
        ("longest", (0, 1, 1)),
        ("random", (0, None, None)),
    ],
)
def test_a_prompt_is_decided_by_what_its_selector_ranks_by(
    tmp_path: Path, selector: str, spread: tuple[int | None, ...]
) -> None:
    # counts differ for p only, delta for q and, since a is changed, for p; lengths for p only
    run = make_run(tmp_path, changed={"a": 0.3})
    result = select(run, recipe(selector=selector))
    assert (result.prompts_single, result.prompts_tied, result.prompts_with_spread) == spread
    words, number = decided(asdict(result))[0]
    assert number == (2 if spread[2] is None else spread[2])
    assert ("is not measured" in words) == (selector == "random")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margin", [0.1, 0.5])
def test_what_a_selector_decided_is_what_the_report_on_spread_says(tmp_path: Path, seed: int, margin: float) -> None:
    draw = random.Random(seed)
    run = Run(tmp_path)
    run.append("prompts", columns_table("prompts", [prompt(f"p{index}") for index in range(12)]))
    replies = [
        reply(
            f"r{index}", f"p{draw.randrange(12)}", draw.choice([0.6, 1.0]), completion_tokens=draw.choice([1, 2, None])
        )
        for index in range(40)
    ]
    run.append("responses", columns_table("responses", replies))
    scores = [
        score(row["response_id"], draw.randrange(2), draw.choice([0.1, 0.2]), sentence_count=9,
              short_sentences=draw.randrange(2), status=draw.choice(["ok", "ok", "align_error"]))
        for row in replies if draw.random() < 0.8
    ]  # fmt: skip
    run.append("scores", columns_table("scores", scores))
    (tmp_path / "own").mkdir()
    for selector in catalogue("selectors"):
        mine = recipe(rules=["only.sql"], selector=selector, params={"teacher_margin": margin})
        result = select(run, mine, recipe_dir=own_rule(tmp_path / "own", "response_id like '%3'"))
        with duckdb.connect(str(run.database), read_only=True) as connection:
            connection.execute("set variable teacher_margin = ?", [margin])
            connection.execute("set variable ranked_by = ?", [selector])
            report = connection.sql(catalogue("reports")["spread"].read_text(encoding="utf-8"))
            (row,) = report.filter("temperature is null").fetchall()
        numbers = (result.prompts, result.prompts_without, result.prompts_single)
        assert (*numbers, result.prompts_tied, result.prompts_with_spread) == row[2:]


def test_prompts_without_candidates_and_with_one_are_not_decided(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    strict = select(run, recipe({}, rules=["only.sql"]), recipe_dir=own_rule(tmp_path, "response_id <> 'g'"))
    assert (strict.prompts_single, strict.prompts_without, strict.prompts_with_spread) == (1, 1, 0)
    assert decided(asdict(strict))[2:] == [("with a single candidate", 1), ("without one", 1)]


def test_a_selector_of_ones_own_claims_no_spread_whatever_its_name(tmp_path: Path) -> None:
    own = tmp_path / "recipe" / "sql" / "selectors" / "longest.sql"
    own.parent.mkdir(parents=True)
    own.write_text(catalogue("selectors")["random"].read_text(encoding="utf-8"))
    result = select(make_run(tmp_path / "run"), recipe(selector="longest"), recipe_dir=tmp_path / "recipe")
    assert (result.selector, result.prompts_with_spread) == ("longest", None)


def test_any_margin_counts_the_sentences_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    wide = {"a": [0.75, 0.75], "b": [0.625], "c": [0.5], "d": [0.5], "e": [0.5], "f": [0.5], "g": [0.75, 0.75]}
    rows = [
        {
            "response_id": name, "student_id": STUDENT_ID, "byte_end": [1] * len(p), "teacher_tokens": [3] * len(p),
            "student_tokens": [3] * len(p), "p_teacher": p, "p_student": [0.5] * len(p),
        }
        for name, p in wide.items()
    ]  # fmt: skip
    run.append("sentences", columns_table("sentences", rows))
    result = select(run, recipe(params={"teacher_margin": 0.125}))
    assert kept(run) == shuffled("aeg")  # 0.125 itself is no teacher sentence of b; by the stored counts c wins
    assert (result.prompts_tied, result.prompts_with_spread) == (0, 2)
