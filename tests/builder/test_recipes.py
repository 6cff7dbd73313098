import re
from pathlib import Path

import pytest

from builder.config import Recipe
from builder.decision import plan_selection
from builder.recipe import load_recipe, packaged_recipes
from builder.resources import resource

RECIPES = packaged_recipes()


def header(path: Path) -> str:
    """The comment lines before the first key, as one text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first_key = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:first_key])


def test_the_promised_recipes_are_packaged() -> None:
    assert set(RECIPES) >= {
        "gsm8k",
        "gsm8k-smoke",
        "dasd",
        "dasd-smoke",
        "r1-cold-start",
        "r1-cold-start-smoke",
        "r1-reasoning",
        "r1-reasoning-smoke",
        "r1-general",
        "r1-general-smoke",
        "r1-mix",
        "r1-mix-smoke",
        "r1-preference",
        "r1-preference-smoke",
        "r1-rl",
        "r1-rl-smoke",
        "r1-zero",
        "r1-zero-smoke",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_packaged_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.prompts and recipe.stages


@pytest.mark.parametrize("name", RECIPES)
def test_every_header_says_what_hardware_time_and_cost(name: str) -> None:
    text = header(RECIPES[name])
    assert text.startswith(f"{name}: ")
    assert re.search(r"\b[CG]PUs?\b|Hardware:", text)
    assert re.search(r"hour|minute|second|week", text)
    assert re.search(r"USD|[Cc]osts? nothing|no cost|H100 hours|this machine", text)


@pytest.mark.parametrize("name", RECIPES)
def test_every_rule_and_selector_exists_and_every_parameter_is_declared(name: str) -> None:
    selection = load_recipe(name).selection
    rules = [resource("sql", "rules", f"{rule}.sql") for rule in selection.rules]
    files = [*rules, resource("sql", "selectors", f"{selection.selector}.sql")]
    declared = {found for path in files for found in re.findall(r"getvariable\('(\w+)'\)", path.read_text("utf-8"))}
    assert set(selection.params) <= declared


@pytest.mark.parametrize(
    "name", ["gsm8k", "dasd", "r1-cold-start", "r1-reasoning", "r1-general", "r1-mix", "r1-rl", "r1-zero"]
)
def test_full_size_recipes_have_a_smoke_sibling_of_the_same_shape(name: str) -> None:
    full, smoke = load_recipe(name), load_recipe(f"{name}-smoke")
    assert list(smoke.stages) == list(full.stages)
    assert smoke.generation.temperatures == full.generation.temperatures
    assert smoke.selection.selector == full.selection.selector
    assert smoke.selection.order == full.selection.order
    assert set(smoke.selection.rules) <= set(full.selection.rules)
    assert (smoke.mixed_policy is None) == (full.mixed_policy is None)
    assert (smoke.rewrite is None) == (full.rewrite is None)


@pytest.mark.parametrize(
    "name",
    [
        "gsm8k-smoke",
        "dasd-smoke",
        "r1-cold-start-smoke",
        "r1-reasoning-smoke",
        "r1-general-smoke",
        "r1-mix-smoke",
        "r1-rl-smoke",
        "r1-zero-smoke",
    ],
)
def test_smoke_recipes_take_a_file_of_the_users(name: str) -> None:
    recipe = load_recipe(name, ["prompts.0.source=mine.jsonl"])
    assert [source.source for source in recipe.prompts] == ["mine.jsonl"]


@pytest.mark.parametrize("name", RECIPES)
def test_hub_sources_are_pinned_or_say_how(name: str) -> None:
    recipe = load_recipe(name)
    unpinned = [index for index, source in enumerate(recipe.prompts) if source.is_hub and source.revision is None]
    text = RECIPES[name].read_text(encoding="utf-8")
    assert all(f"prompts.{index}.revision=" in text for index in unpinned)


def test_dasd_has_the_numbers_of_the_paper() -> None:
    recipe: Recipe = load_recipe("dasd")
    assert [source.domain for source in recipe.prompts] == ["math", "code", "science", "instruction-following"]
    assert recipe.generation.temperatures == [0.6, 1.0]
    assert recipe.selection.params == {"max_student_tokens": 65536, "teacher_margin": 0.1}
    assert list(recipe.stages) == ["low-temperature", "high-temperature"]
    assert recipe.mixed_policy is not None
    assert (recipe.mixed_policy.prompts, recipe.mixed_policy.length_cap) == (50_000, 1.5)
    assert (recipe.mixed_policy.cut, recipe.mixed_policy.keep) == ((0.5, 1.0), "cap")


READABLE = {"mixed_language", "paragraph_too_long", "code_block_in_math"}


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("r1-")])
def test_r1_reasoning_data_passes_the_papers_filter_for_readability(name: str) -> None:
    """arXiv:2501.12948 section 2.3.3; general replies, preference pairs and prompts for RL are no such data."""
    is_reasoning = name.removesuffix("-smoke") in {"r1-cold-start", "r1-reasoning", "r1-mix"}
    assert set(load_recipe(name).selection.rules) & READABLE == (READABLE if is_reasoning else set())


@pytest.mark.parametrize("name", RECIPES)
def test_every_rule_and_parameter_of_a_packaged_recipe_passes_its_check(name: str) -> None:
    recipe = load_recipe(name)
    assert [rule.name for rule in plan_selection(recipe).rules] == recipe.selection.rules


@pytest.mark.parametrize("name", ["r1-mix", "r1-mix-smoke"])
def test_the_mix_has_the_proportions_of_the_paper(name: str) -> None:
    """arXiv:2501.12948v2 Table 5: 804,745 rows of five domains, of which these recipes bring two."""
    table = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}
    quotas = load_recipe(name).stages["mix"].quotas
    assert quotas is not None and {"math", "general"} <= set(quotas.weights)
    assert quotas.weights == {domain: table[domain] for domain in quotas.weights}
