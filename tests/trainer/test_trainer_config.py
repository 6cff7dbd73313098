"""Recipes: packaged ones parse, mistakes are refused with advice."""

import dataclasses
from pathlib import Path

import pytest

from trainer import config
from trainer.errors import RecipeError
from trainer.schedule import Stage

STAGES = [
    Stage(stage=name, config=name, kind="sft", init="base", rows=1, tokens=None, rowset_hash="0", epochs=epochs)
    for name, epochs in (("low-temperature", None), ("mixed-policy", 3.0))
]


def settle(how: config.Recipe) -> dict[str, dict[str, object]]:
    return config.settle(how, STAGES, STAGES)


@pytest.mark.parametrize("name", config.PACKAGED)
def test_packaged_recipe_settles_every_sft_stage(name: str) -> None:
    header = config.PACKAGED[name].read_text(encoding="utf-8")
    assert header.startswith(f"# {name}: ")
    for settings in settle(config.load(name)).values():
        assert settings["max_length"] and settings["model_init_kwargs"]["dtype"]  # type: ignore[index]


@pytest.mark.parametrize("kind", config.KINDS)
def test_known_arguments_are_those_of_trl_and_our_own_of_that_kind(kind: str) -> None:
    import trl

    fields = dataclasses.fields({"sft": trl.SFTConfig, "grpo": trl.GRPOConfig, "reward": trl.RewardConfig}[kind])
    known = {field.name for field in fields if not field.name.startswith("_")}
    assert set(config.arguments(kind)) - known == set(config.OURS[kind])
    assert known <= set(config.arguments(kind))


def test_layers_override_from_defaults_over_release_and_kind_to_stage(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "defaults: {max_length: 8, learning_rate: 5e-5, num_train_epochs: 6, model_init_kwargs: {dtype: float32}}\n"
        "stages:\n  sft: {learning_rate: 1e-5}\n  mixed-policy: {warmup_steps: 0.1}\n"
    )
    settled = settle(config.load(path, ["defaults.model_init_kwargs.attn_implementation=sdpa", "defaults.bf16=false"]))
    assert settled["low-temperature"]["num_train_epochs"] == 6
    assert settled["mixed-policy"]["num_train_epochs"] == 3.0  # the release asks
    assert settled["mixed-policy"]["learning_rate"] == 1e-5
    assert "warmup_steps" not in settled["low-temperature"]
    assert settled["low-temperature"]["model_init_kwargs"] == {"dtype": "float32", "attn_implementation": "sdpa"}


SIZES = {"1.5b": 1e-4, "7b": 8e-5, "14b": 7e-5, "32b": 6e-5, "8b": 5e-5, "70b": 2e-5}


@pytest.mark.parametrize(("size", "rate"), SIZES.items())
def test_r1_distill_has_a_recipe_for_each_student(size: str, rate: float) -> None:
    of_size = config.load(f"r1-distill-{size}")
    assert of_size.defaults == config.load("r1-distill").defaults | {"learning_rate": rate}


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: dasd\ndefaults: {seed: 7, model_init_kwargs: {dtype: float32}}\n")
    mine, theirs = config.load(path), config.load("dasd")
    init = theirs.defaults["model_init_kwargs"] | {"dtype": "float32"}
    assert mine.defaults == theirs.defaults | {"seed": 7, "model_init_kwargs": init}
    assert mine.stages == theirs.stages and mine.required == set()  # a stage that the base knows may be missing
    path.write_text("base: dast\n")
    with pytest.raises(RecipeError, match=r"Recipe dast is neither a file nor .* did you mean 'dasd'"):
        config.load(path)


def test_an_override_of_a_stage_wins_over_the_release() -> None:
    settled = settle(config.load("smoke", ["stages.mixed-policy.num_train_epochs=2"]))
    assert settled["mixed-policy"]["num_train_epochs"] == 2


@pytest.mark.parametrize("kind", ["grpo", "reward"])
def test_only_sft_stages_mask_prefixes(kind: str) -> None:
    stages = [STAGES[0], STAGES[1].model_copy(update={"kind": kind})]
    settled = config.settle(config.load("smoke", ["defaults.mask_prefix=true"]), stages, STAGES)
    assert ["mask_prefix" in settings for settings in settled.values()] == [True, False]
    with pytest.raises(RecipeError, match=f"stages.mixed-policy: there is no {kind} argument 'mask_prefix'"):
        config.settle(config.load("smoke", ["stages.mixed-policy.mask_prefix=true"]), stages, STAGES)


def test_a_packaged_recipe_may_know_stages_that_a_first_version_lacks() -> None:
    config.settle(config.load("dasd"), STAGES[:1], STAGES[:1])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("dast", [], "did you mean 'dasd'"),
        ("smoke", ["defaults.learning_rat=1"], "did you mean 'learning_rate'"),
        ("smoke", ["stages.mixed-policy.num_epochs=1"], "num_epochs"),
        ("smoke", ["stages.mixed_policy.seed=1"], "did you mean 'mixed-policy'"),
        ("smoke", ["defaults.learning_rate=fast"], "it wants float"),
        ("smoke", ["defaults.packing=1"], "it wants bool"),
        ("smoke", ["defaults.seed=true"], "it wants int"),
        ("smoke", ["defaults.max_length=long"], r"max_length is 'long'; it wants int \| None above 0"),
        ("smoke", ["defaults.max_length=0"], "above 0"),
        ("smoke", ["defaults.num_train_epochs=-1"], "it wants float above 0"),
        ("smoke", ["defaults.num_train_epochs=.inf"], "it wants float above 0"),
        ("smoke", ["defaults.gradient_accumulation_steps=0"], "it wants int above 0"),
        ("smoke", ["defaults.learning_rate=.nan"], "learning_rate is nan; it wants float"),
        ("smoke", ["defaults.model_init_kwargs=3"], "model_init_kwargs is 3; it wants dict"),
        ("smoke", ["defaults.save_strategy=no"], "save_strategy is False; it wants .*, in quotes"),
        ("smoke", ["defaults.hub_token=hf_x"], "hub_token cannot be set: .* HF_TOKEN decide"),
        ("smoke", ["defaults.packing=true", "defaults.max_length=null"], "packing needs one"),
        ("smoke", ["defaults.shuffle_dataset=true"], "position"),
        ("smoke", ["learning_rate=1e-4"], "an override is"),
        ("smoke", ["defaults.seed"], "an override is"),
        ("smoke", ["stages.sft=1"], "an override is"),
        ("smoke", ["defaults.seed={"], "not valid YAML"),
        ("smoke", ["stages.sft.beta=0.1"], "no sft argument 'beta'"),
        ("smoke", ["stages.mixed-policy.mask_prefix=1"], "mask_prefix is 1; it wants bool"),
        ("smoke", ["defaults.mask_prefix=yes please"], "it wants bool"),
        ("smoke", ["defaults.mask_prefix=null"], "it wants bool"),
        ("smoke", ["defaults.mask_prefixes=true"], "did you mean 'mask_prefix'"),
        ("smoke", ["stages.grpo.mask_prefix=true"], "no grpo argument 'mask_prefix'"),
    ],
)
def test_mistakes_are_refused_with_advice(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        settle(config.load(name, overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default: {}", "did you mean 'defaults'"),
        ("- a", "unknown key"),
        ("bases: sft", "did you mean 'base'"),
        ("base: mine.yaml", r"mine.yaml stands on itself: mine.yaml on mine.yaml\."),
        ("base: ./mine.yaml", r"stands on itself: mine.yaml on ./mine.yaml on ./mine.yaml"),
        ("base: [sft]", r"base is \['sft'\]"),
        ("base: null", "base is None"),
        ("stages: [sft]", r"stages is \['sft'\]"),
        ("defaults: 3", "defaults is 3"),
        ("defaults: {1: 2}", "no training argument 1"),
        ("stages: {1: {seed: 1}, a: {seed: 1}}\ndefaults: {max_length: 8}", "stages.1 is a stage of neither"),
        ("stages: {low-temperatur: {seed: 1}}\ndefaults: {max_length: 8}", "did you mean 'low-temperature'"),
        ("stages: {sft: 3}", "3 stands where"),
        ("defaults: {learning_rate: 1e-4}", "max_length"),
        ("defaults: [", "not valid YAML"),
    ],
)
def test_a_recipe_file_with_mistakes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("mine.yaml")
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        settle(config.load(path))


@pytest.mark.parametrize("number", ["5e-5", "5.0e-05", "0.00005", "+5E-5", ".5e-4"])
def test_a_number_is_one_however_it_is_written(number: str) -> None:
    assert config.load("smoke", [f"defaults.learning_rate={number}"]).defaults["learning_rate"] == 5e-5
