from pathlib import Path
from typing import Any

import pytest
import yaml

from builder.config import Recipe
from builder.errors import UsageError
from builder.recipe import find_recipe, load_recipe

TOY: dict[str, Any] = {
    "name": "toy",
    "prompts": [{"source": "q.jsonl"}],
    "teacher": {"model": "m", "endpoints": [{"url": "http://localhost:1/v1"}]},
    "stages": {"low": {"where": "temperature = 0.6"}},
}


def write(folder: Path, recipe: Any) -> Path:
    path = folder / "toy.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, sort_keys=False))
    return path


def load(folder: Path, *overrides: str, recipe: Any = None) -> Recipe:
    return load_recipe(write(folder, TOY if recipe is None else recipe), list(overrides))


def refused(folder: Path, *overrides: str, recipe: Any = None) -> str:
    with pytest.raises(UsageError) as caught:
        load(folder, *overrides, recipe=recipe)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_defaults_stand_under_the_file_and_the_file_under_overrides(tmp_path: Path) -> None:
    recipe = TOY | {"generation": {"samples": 8, "seed": 3}}
    generation = load(tmp_path, "generation.samples=2", "generation.samples=16", recipe=recipe).generation
    assert (generation.samples, generation.seed, generation.max_tokens) == (16, 3, 65536)


def test_overrides_reach_lists_and_make_what_is_not_there(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "prompts.0.source=other.jsonl",
        "prompts.1.source=more.jsonl",
        "generation.temperatures=[0.3, 0.9]",
        "generation.temperatures.0=0.5",
        "teacher.endpoints.1.url=http://two:2/v1/",
        "student.model=s",
        "selection.params.teacher_margin=0.2",
        "generation.system_prompt=null",
        "stages.low.where=temperature = 0.5",
    )
    assert [source.source for source in recipe.prompts] == ["other.jsonl", "more.jsonl"]
    assert recipe.generation.temperatures == [0.5, 0.9]
    assert recipe.require_teacher().endpoints[1].url == "http://two:2/v1"
    assert recipe.require_student().model == "s"
    assert recipe.selection.params == {"teacher_margin": 0.2}
    assert recipe.stages["low"].where == "temperature = 0.5"


def test_one_source_needs_no_list_and_takes_overrides_all_the_same(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "prompts.0.source=b.jsonl", recipe=TOY | {"prompts": {"source": "a.jsonl", "domain": "math"}}
    )
    assert [(source.source, source.domain) for source in recipe.prompts] == [("b.jsonl", "math")]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("generatoin.samples=8", "generatoin: unknown key; did you mean 'generation'?"),
        ("generation.sampels=8", "generation.sampels: unknown key; did you mean 'samples'?"),
        ("prompts.0.sourc=x", "prompts.0.sourc: unknown key; did you mean 'source'?"),
        ("prompts.0.gold.colum=x", "prompts.0.gold.colum: unknown key; did you mean 'column'?"),
        ("teacher.endpoints.0.max_inflight=4", "max_inflight: unknown key; did you mean 'max_in_flight'?"),
        ("teacher.prices.inputs=1", "teacher.prices.inputs: unknown key; did you mean 'input'?"),
        ("stages.low.order-by=x", "stages.low.order-by: unknown key; did you mean 'order_by'?"),
        ("release.licence=mit", "release.licence: unknown key; did you mean 'license'?"),
        ("xyz=1", "xyz: unknown key"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one_at_every_depth(
    tmp_path: Path, override: str, line: str
) -> None:
    said = refused(tmp_path, override)
    assert line in said
    assert "gold.str" not in said


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "generation.samples=0", "generation.top_p=2", "teacher.model=null", "nmae=x")
    assert said.count("\n") == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generation.samples", "is no override; write key=value"),
        ("=8", "is no override"),
        ("generation.samples=[", "is not YAML"),
        ("name.x=1", "has no key 'x'"),
        ("prompts.7.source=x", "'7' is no index of a list with 1 entries"),
        ("prompts.²=x", "is no index"),
        ("name.x.y=1", "there is no key 'x' inside 'toy'"),
        ("generation.temperatures=[]", "needs at least one temperature"),
        ("generation.temperatures=[0.6, 0.6]", "names a temperature twice"),
        ("generation.temperatures=[-1]", "negative or not finite"),
        ("generation.temperatures=[.nan]", "negative or not finite"),
        ("generation.samples=many", "valid integer, unable to parse string as an integer (got 'many')"),
        ("name=../up", "names a directory"),
        ("stages.logprobs={}", "cannot be a dataset config"),
        ("stages.low.init=high", "nor an earlier stage"),
        ("prompts.0.gold={column: a, pattern: '#### .+'}", "needs exactly one group"),
        ("prompts.0={source: q, prompt: a, messages: b}", "not both"),
        (
            "student={model: s, backend: endpoint}",
            "student: backend is endpoint, but there is none; add student.endpoint",
        ),
        ("student={model: s, endpoint: {url: 'http://h/v1'}}", "student: there is an endpoint, but no backend"),
    ],
)
def test_a_wrong_override_says_what_is_wrong_with_it(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(tmp_path, override)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "cannot be read"),
        ("", "holds no keys"),
        ("- a", "holds no keys"),
        ("name: toy\nprompts: 3", "prompts"),
        ("prompts: []", "name: is missing"),
    ],
)
def test_bad_yaml_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    message = refused(tmp_path, recipe=text)
    assert said in message
    assert "toy.yaml" in message


@pytest.mark.parametrize("revision", ["main", "v1.0", "0" * 39, "g" * 40, "0123ABCD" * 5])
def test_a_revision_is_a_full_commit(tmp_path: Path, revision: str) -> None:
    said = refused(tmp_path, "prompts.0.source=hf://datasets/org/name", f"prompts.0.revision='{revision}'")
    assert "is not a full commit id (40 hex digits)" in said


@pytest.mark.parametrize("source", ["hf://org/name", "hf://datasets/name", "hf://datasets/org/name@main"])
def test_a_hub_source_names_a_dataset_and_nothing_else(tmp_path: Path, source: str) -> None:
    assert "hf://datasets/org/name" in refused(tmp_path, f"prompts.0.source={source}")


@pytest.mark.parametrize(
    "key", ["n", "stream", "max_tokens", "max_completion_tokens", "seed", "temperature", "messages"]
)
def test_extra_body_cannot_say_what_the_request_itself_says(tmp_path: Path, key: str) -> None:
    assert f"{key} cannot be set here" in refused(tmp_path, f"generation.extra_body={{{key}: 2, top_k: 20}}")


@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1", "https://host/v1?key=hunter2", "ftp://me:hunter2@host"])
def test_a_secret_in_an_address_is_refused_and_never_repeated(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, f"teacher.endpoints.0.url={url}")
    assert "put the key into the environment" in said
    assert "hunter2" not in said


def test_a_key_in_place_of_its_variable_is_refused_and_never_repeated(tmp_path: Path) -> None:
    said = refused(tmp_path, "teacher.endpoints.0.api_key_env=sk-hunter2-hunter2")
    assert "name of an environment variable" in said
    assert "hunter2" not in said


def test_keys_stay_out_of_repr_and_of_the_resolved_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    monkeypatch.setenv("TEACHER_KEY", "sk-hunter2")
    recipe = load(tmp_path, "teacher.endpoints.0.api_key_env=TEACHER_KEY")
    assert "hunter2" not in repr(recipe) + yaml.safe_dump(recipe.resolved())


def test_a_recipe_is_a_path_else_a_packaged_name_else_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path, TOY)
    assert find_recipe(str(path)) == path
    assert find_recipe("gsm8k").name == "gsm8k.yaml"
    path.rename(tmp_path / "recipe.yaml")
    assert find_recipe(str(tmp_path)) == tmp_path / "recipe.yaml"
    with pytest.raises(UsageError, match="did you mean 'gsm8k'"):
        find_recipe("gsm8")


def test_a_student_may_keep_an_endpoint_that_it_does_not_use(tmp_path: Path) -> None:
    recipe = load(tmp_path, "student={model: s, backend: endpoint, endpoint: {url: 'http://h/v1'}}")
    assert Recipe.model_validate(recipe.resolved()) == recipe
    local = load(tmp_path, "student={model: s, backend: local, endpoint: {url: 'http://h/v1'}}")
    assert local.require_student().backend == "local"
    assert local.hash() == recipe.hash()


def test_endpoints_and_folders_do_not_change_the_hash_of_a_recipe(tmp_path: Path) -> None:
    here = write(tmp_path, "").with_name("q.jsonl")
    here.write_text("{}")
    plain = load(tmp_path, f"prompts.0.source={here}").hash()
    assert load(tmp_path, f"prompts.0.source={here}", "teacher.endpoints.0.max_in_flight=7").hash() == plain
    assert load(tmp_path, f"prompts.0.source={here}", "generation.samples=5").hash() != plain
    (tmp_path / "sub").mkdir()
    moved = here.rename(tmp_path / "sub" / "q.jsonl")
    assert load(tmp_path, f"prompts.0.source={moved}").hash() == plain
