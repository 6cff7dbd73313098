"""`builder eval` as it is typed: tables of 80 columns, the no-harm table, the teacher's ceiling, and its refusals."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from endpoint import Ask, Endpoint, endpoint, reply_to
from typer.testing import CliRunner

from builder.cli import app

RECIPE = """
name: toy
prompts: [{source: words.jsonl}]
teacher: {model: teacher, prices: {input: 1, output: 1}}
generation: {max_tokens: 64, temperatures: [0.6, 1.0], samples: 2, logprobs: false, system_prompt: Be brief.}
selection: {selector: random, rules: []}
evaluation: {benchmarks: {words: {source: words.jsonl}, sums: {source: sums.jsonl}}, samples: 2}
"""
SKILL = {"weak": 2, "strong": 9, "teacher": 8}
"""Of ten seeds, so many are answered right."""


def answer(ask: Ask) -> bytes:
    """`4` as often as the model's skill, else a wrong number; the same for the same request."""
    draw = hashlib.sha256(f"{ask.question} {ask.body['seed']} {ask.body['model']}".encode()).digest()[0] % 10
    reply = reply_to(ask.body)
    reply["choices"][0]["message"]["content"] = "4" if draw < SKILL[ask.body["model"]] else f"1{draw}"
    return json.dumps(reply).encode()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint that serves all models, in a folder with a recipe and two benchmarks of 20 and 10 questions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    questions("words", 20)
    questions("sums", 10)
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    with endpoint(script=answer, model=None) as opened:
        monkeypatch.setenv("OPENAI_BASE_URL", opened.url)
        yield opened


def questions(name: str, number: int) -> None:
    rows = [{"prompt": f"{name} {index}?", "gold": "4", "gold_type": "number"} for index in range(number)]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def builder(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == code, done.output
    return done


def found(*arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(builder(*arguments, "--json").stdout)
    return result


def test_every_model_is_measured_on_every_benchmark_in_a_table_of_80_columns(server: Endpoint) -> None:
    done = builder("eval", "r.yaml", "--model", "weak", "--model", "strong")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["model", "pass@1", "interval", "pass@2", "maj@2", "not", "judged", "cut"]
    assert [" ".join(line.split()[:2]).rstrip("0123456789. ") for line in lines[1:7]] == [
        "words,", "weak", "strong", "sums,", "weak", "strong"
    ]  # fmt: skip
    assert (lines[1], lines[4]) == ("words, 20 questions", "sums, 10 questions")
    assert max(map(len, lines)) <= 80
    assert len(server.asks) == 2 * 2 * 30
    again = found("eval", "r.yaml", "--model", "weak", "--model", "strong")
    assert len(server.asks) == 2 * 2 * 30
    files = {path.stem for path in Path("runs/toy/eval").glob("*.json")}
    assert files == {one["folder"] for one in again["evaluations"]} and len(files) == 4


def test_one_evaluation_has_a_line_and_its_fields_as_before(server: Endpoint) -> None:
    done = builder("eval", "r.yaml", "--model", "weak", "--questions", "sums.jsonl", "--samples", "1")
    assert done.stdout.startswith("eval: weak: pass@1 ") and len(done.stdout.splitlines()) == 1
    one = found("eval", "r.yaml", "--model", "weak", "--questions", "sums.jsonl", "--samples", "1")
    names = "model model_sha256 questions replies correct unscorable pass_at_1 low high mean_tokens cut temperature"
    assert set(names.split()) <= set(one["eval"]) and one["evaluations"] == [one["eval"]]
    assert (one["eval"]["benchmark"], one["eval"]["replies"], len(server.asks)) == ("sums", 10, 10)


def test_the_no_harm_table_says_what_got_worse(server: Endpoint) -> None:
    text = builder("eval", "r.yaml", "--model", "weak", "--against", "strong").stdout
    assert "weak less strong: pass@1 over the same questions" in text
    assert "harmed: 2 of 2 benchmarks (words, sums); by chance alone about 0.05 would be" in text
    assert max(map(len, text.splitlines())) <= 80
    one, other = found("eval", "r.yaml", "--model", "weak", "--against", "strong")["paired"]
    assert (one["benchmark"], other["benchmark"]) == ("words", "sums")
    assert (one["verdict"], one["model"], one["against"], one["questions"]) == ("worse", "weak", "strong", 20)
    assert one["low"] < one["difference"] < one["high"] < 0 and one["lost"] > one["won"]
    back = found("eval", "r.yaml", "--model", "strong", "--against", "weak")["paired"][0]
    assert (back["verdict"], back["won"], back["lost"]) == ("better", one["lost"], one["won"])
    assert back["difference"] == pytest.approx(-one["difference"])


def test_a_model_shows_no_difference_to_itself_and_what_would_have_been_seen(server: Endpoint) -> None:
    Path("r.yaml").write_text(RECIPE.replace("teacher: {model: teacher", "teacher: {model: weak"), encoding="utf-8")
    found("eval", "r.yaml", "--model", "weak", "--label", "first", "--questions", "words.jsonl")
    (row,) = found("eval", "r.yaml", "--model", "weak", "--against", "first", "--questions", "words.jsonl")["paired"]
    assert (row["difference"], row["won"], row["lost"], row["verdict"]) == (0, 0, 0, "no difference shown")
    assert 0.05 < row["would_see"] < 0.15


def test_a_stored_label_stands_for_a_model_that_is_no_longer_served(server: Endpoint) -> None:
    builder("eval", "r.yaml", "--model", "strong", "--label", "base", "--samples", "4", "--questions", "words.jsonl")
    paid = len(server.asks)
    one = found("eval", "r.yaml", "--model", "weak", "--against", "base", "--questions", "words.jsonl")
    assert len(server.asks) == paid + 40
    assert {ask.body["model"] for ask in server.asks[paid:]} == {"weak"}
    assert (one["paired"][0]["against"], one["paired"][0]["samples"]) == ("base", 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--temperature", "0.7"], "temperature 0.7 and 1.0"),
        (["--samples", "4"], "samples 4 and 2"),
        (["generation.top_p=0.5"], "top_p 0.5 and 1.0"),
        (["--limit", "5"], "other questions or other golds"),
    ],
)
def test_models_that_were_not_asked_alike_are_not_compared_and_nothing_is_sent(
    server: Endpoint, changes: list[str], said: str
) -> None:
    builder("eval", "r.yaml", "--model", "strong", "--label", "base", "--questions", "words.jsonl")
    paid = len(server.asks)
    asked = ("eval", "r.yaml", "--model", "weak", "--against", "base", "--questions", "words.jsonl", *changes)
    assert said in builder(*asked, code=2).stderr
    assert len(server.asks) == paid


def test_golds_that_changed_since_are_other_questions(server: Endpoint) -> None:
    builder("eval", "r.yaml", "--model", "strong", "--label", "base", "--questions", "sums.jsonl")
    Path("sums.jsonl").write_text(Path("sums.jsonl").read_text("utf-8").replace('"4"', '"5"'), encoding="utf-8")
    asked = ("eval", "r.yaml", "--model", "weak", "--against", "base", "--questions", "sums.jsonl")
    assert "other questions or other golds" in builder(*asked, code=2).stderr


def test_an_endpoint_that_dies_half_way_is_an_error_and_a_rerun_pays_the_rest(server: Endpoint) -> None:
    server.script = lambda ask: 401 if ask.question.startswith("sums") else answer(ask)
    error = builder("eval", "r.yaml", "--model", "weak", code=1).stderr
    assert "answered 401" in error and "Traceback" not in error
    server.script = answer
    before = len(server.asks)
    builder("eval", "r.yaml", "--model", "weak")
    assert sorted({ask.question.split()[0] for ask in server.asks[before:]}) == ["sums"]
    assert len(server.asks) - before == 20


def test_the_teachers_ceiling_is_counted_from_its_stored_replies_without_a_request(server: Endpoint) -> None:
    builder("eval", "r.yaml", "--teacher", code=1)
    builder("generate", "r.yaml")
    assert "80 of 80 replies" in builder("eval", "r.yaml", "--teacher", code=1).stderr  # no verdicts yet
    builder("verify", "r.yaml")
    paid = len(server.asks)
    rows = found("eval", "r.yaml", "--teacher")["teacher"]
    text = builder("eval", "r.yaml", "--teacher").stdout
    assert len(server.asks) == paid
    assert [(one["temperature"], one["questions"], one["replies"]) for one in rows] == [(0.6, 20, 40), (1.0, 20, 40)]
    for one in rows:
        assert one["low"] < one["pass_at_1"] < one["at_k"][-1]["pass_at_k"] <= 1
    assert text.startswith("Ceiling of the teacher, teacher") and max(map(len, text.splitlines())) <= 80


def test_the_teacher_is_asked_and_paid_only_on_benchmarks_that_are_named(server: Endpoint) -> None:
    asked = ("eval", "r.yaml", "--teacher", "--benchmark", "sums")
    refused = builder(*asked, "--max-tokens-total", "100", code=1).stderr
    assert "BudgetError: teacher on sums stopped at --max-tokens-total 100" in refused and not server.asks
    one = found(*asked)
    assert {(ask.body["model"], ask.body["messages"][0]["content"]) for ask in server.asks} == {
        ("teacher", "Be brief.")
    }
    assert (one["eval"]["role"], one["eval"]["replies"], len(server.asks)) == ("teacher", 20, 20)


def test_a_limit_on_the_teacher_counts_what_the_run_took_already(server: Endpoint) -> None:
    builder("generate", "r.yaml")
    paid = len(server.asks)
    took = 80 * (11 + 7)  # tokens of a scripted reply: prompt and completion
    asked = ("eval", "r.yaml", "--teacher", "--benchmark", "sums", "--max-tokens-total", f"{took + 100}")
    assert f"{took:,} are used" in builder(*asked, code=1).stderr
    assert len(server.asks) == paid


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "needs --model"),
        (("--teacher", "--against", "weak"), "--against compares models"),
        (("--model", "weak", "--model", "weak"), "names weak twice"),
        (("--model", "weak", "--model", "strong", "--label", "one"), "--label names one model"),
        (("--model", "weak", "--temperature", "nan"), "--temperature"),
        (("--model", "weak", "--samples", "0"), "--samples"),
        (("--model", "weak", "--benchmark", "sum"), "did you mean sums?"),
        (("--model", "weak", "--questions", "hf://datasets/org/aime"), "needs a revision"),
        (("--model", "weak", "--questions", "sums.jsonl", "--benchmark", "sums"), "Two benchmarks are called sums"),
        (("--model", "weak", "--max-cost", "1"), "limit what --teacher pays"),
        (("--model", "weak", "--against", "weak"), "is the model itself"),
        (("--model", "weak", "--endpoint", "host:8000"), "--endpoint is no address"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_sent(
    server: Endpoint, arguments: tuple[str, ...], said: str
) -> None:
    assert said in " ".join(builder("eval", "r.yaml", *arguments, code=2).stderr.split())
    assert not server.asks


def test_a_model_that_is_nowhere_is_one_message(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    assert "holds no weights" in builder("eval", "r.yaml", "--model", "empty", code=2).stderr
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert "models/typo is no folder" in builder("eval", "r.yaml", "--model", "models/typo", code=2).stderr
    assert "missing.jsonl does not exist" in builder(
        "eval", "r.yaml", "--model", "weak", "--questions", "missing.jsonl", code=1
    ).stderr  # fmt: skip


def test_what_was_merged_and_left_out_is_said_once(server: Endpoint) -> None:
    text = Path("sums.jsonl").read_text("utf-8")
    more = json.dumps({"prompt": "no gold?"}) + "\n" + text.splitlines()[0] + "\n"
    Path("sums.jsonl").write_text(text + more, encoding="utf-8")
    done = builder("eval", "r.yaml", "--model", "weak", "--model", "strong", "--questions", "sums.jsonl")
    said = " ".join(done.stderr.split())
    assert said.count("1 rows repeat a question") == said.count("1 questions have no gold") == 1
