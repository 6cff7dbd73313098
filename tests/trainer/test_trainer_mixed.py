"""Mixed rows: the part that the student wrote can go without loss, and another student's rollouts are told."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from trainer_toys import CHATML, edit_manifest, reply, save_student, stage_rows, train_tokenizer, write_release

from trainer import data, lineage, plan, render, train
from trainer.errors import ReleaseError, RenderError, StageError

MASK = "stages.mixed-policy.mask_prefix=true"
THINKING = CHATML.replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")
MESSAGE = "<think>\nnaïve: 7 and one 🦊 is 9, no: so  the answer is 8 ✓\n</think>\n\n8, 八"


def mixed(number: int, position: int, prefix: int | None, message: str = MESSAGE) -> dict[str, Any]:
    completion = [{"role": "assistant", "content": message}]
    return reply(number, position, completion=completion, policy="mixed" if prefix else "teacher", prefix_chars=prefix)


def make_release(root: Path, rows: list[dict[str, Any]] | None = None, **rollout: str | None) -> Path:
    rows = rows or [mixed(50 + i, i, 12 * i) for i in range(4)]
    write_release(root, {"low-temperature": stage_rows(0, 4), "mixed-policy": rows})
    if rollout:
        edit_manifest(root, lambda manifest: manifest.update(rollout={"dataset": "0" * 64, "stage": "s"} | rollout))
    return root


def prepare(release: Path, student: Path, output: Path, *overrides: str, **options: Any) -> plan.Job:
    return plan.Job(str(release), str(student), output, "smoke", overrides, **({"quiet": False} | options))


@pytest.fixture(scope="module", params=["chatml", "thinking", "spaces trimmed off offsets"])
def renderer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> render.Renderer:
    tokenizer = train_tokenizer(THINKING if request.param == "thinking" else CHATML)
    if "trimmed" in request.param:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return render.Renderer(save_student(tmp_path_factory.mktemp("student"), tokenizer), request.param)


def write(renderer: render.Renderer, row: dict[str, Any], folder: Path) -> tuple[list[int], list[int]]:
    rendered = render.tokens(
        [[row]], renderer, folder / f"{row.get('prefix_chars')}.arrow", stage="s", limit=None, drop=False
    )
    item = rendered[0][0]
    assert rendered[1]["trained_tokens"] == sum(label != -100 for label in item["labels"])
    return item["input_ids"], item["labels"]


@pytest.mark.parametrize("prefix", [1, 8, 9, 11, 13, 14, 24, 25, 26, 27, 40, 41, 58, 70, len(MESSAGE) - 1])
def test_exactly_the_tokens_that_begin_in_the_prefix_lose_their_labels(
    renderer: render.Renderer, tmp_path: Path, prefix: int
) -> None:
    unmasked = {name: value for name, value in mixed(7, 0, prefix).items() if name != "prefix_chars"}
    ids, labels = write(renderer, unmasked, tmp_path)
    masked_ids, masked_labels = write(renderer, mixed(7, 0, prefix), tmp_path)
    assert masked_ids == ids

    # In these byte-level vocabularies a token has one character for each byte that it stands for.
    prompt, text = renderer.texts(unmasked)
    written = text[: max(0, prefix - (len(MESSAGE) - len(text)))]  # of the student, after the generation prompt
    begin, expected = -len(prompt), list(labels)
    for index, token in enumerate(renderer.tokenizer.convert_ids_to_tokens(ids)):
        if 0 <= begin < len(written.encode()):
            expected[index] = -100
        begin += len(token)
    assert masked_labels == expected
    assert (masked_labels == labels) == (written == "")


def test_rows_without_a_prefix_lose_nothing(renderer: render.Renderer) -> None:
    rows = [mixed(7, 0, prefix) for prefix in (0, None)]
    assert renderer.encode(rows) == renderer.encode([{**row, "prefix_chars": 0} for row in rows])


@pytest.mark.parametrize("prefix", [len(MESSAGE), len(MESSAGE) + 5])
def test_a_row_that_the_student_wrote_whole_is_refused_by_name(renderer: render.Renderer, prefix: int) -> None:
    with pytest.raises(RenderError, match=rf"Reply r7: the student wrote {prefix} characters, its whole completion"):
        renderer.encode([mixed(7, 0, prefix)])


def test_the_plan_counts_masked_tokens_and_sees_a_difference(student: Path, tmp_path: Path) -> None:
    release, output = make_release(tmp_path / "v1"), tmp_path / "out"
    plain, masked = prepare(release, student, output), prepare(release, student, output, MASK)
    counts = []
    for number, job in enumerate((plain, masked)):
        (tmp_path / str(number)).mkdir()
        counts.append({stage.name: plan.rendered(job, stage, tmp_path / str(number))[0][1] for stage in job.stages})
    assert counts[0]["low-temperature"] == counts[1]["low-temperature"]
    before, after = (rows["mixed-policy"] for rows in counts)
    assert before["tokens"] == after["tokens"] and before["trained_tokens"] - after["trained_tokens"] > 36
    line = plan.report(masked, counts[1])["stages"][1]
    assert line["trained_tokens"] == after["trained_tokens"] and line["settings"]["mask_prefix"] is True

    train.run(masked)
    record = json.loads((output / "final" / "training.json").read_text(encoding="utf-8"))
    assert record["settings"]["mask_prefix"] is True and record["trained_tokens"] == after["trained_tokens"]
    assert all(plan.held(masked, stage) for stage in masked.stages) and plan.held(plain, plain.stages[0])
    with pytest.raises(StageError, match="mask_prefix True, now None"):
        plan.held(plain, plain.stages[1])
    with pytest.raises(StageError, match="mask_prefix True, now None"):
        train.run(plain)


def test_false_is_the_default(student: Path, tmp_path: Path) -> None:
    release = make_release(tmp_path / "v1")
    spoken = prepare(release, student, tmp_path / "out", "defaults.mask_prefix=false")
    assert spoken.settings == prepare(release, student, tmp_path / "out").settings
    over = prepare(release, student, tmp_path / "out", "defaults.mask_prefix=true", MASK.replace("true", "false"))
    assert ["mask_prefix" in settings for settings in over.settings.values()] == [True, False]


@pytest.mark.parametrize("change", [{}, {"prefix_chars": "12"}])
def test_only_masking_needs_the_column(student: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    rows = [{name: value for name, value in row.items() if name != "prefix_chars"} | change for row in stage_rows(0, 2)]
    release = make_release(tmp_path / "v1", rows)
    with pytest.raises(ReleaseError, match=r"prefix_chars: (missing|string).*It needs .*prefix_chars"):
        prepare(release, student, tmp_path / "out", MASK)
    assert len(train.run(prepare(release, student, tmp_path / "out"))) == 2


@pytest.fixture
def rolled(student: Path, tmp_path: Path) -> Path:
    """A release whose rollouts are of the weights that training its first stage here gives."""
    release = make_release(tmp_path / "v1")
    finished = train.run(prepare(release, student, tmp_path / "first", until="low-temperature"))
    rollout = {"base": lineage.weights_sha256(student), "weights_sha256": finished[0].weights_sha256}
    edit_manifest(release, lambda manifest: manifest.update(rollout={"dataset": None, "stage": "s"} | rollout))
    return release


def rollout_warnings(job: plan.Job) -> list[list[str]]:
    return [plan.notes(job, stage) for stage in job.stages]


def test_rollouts_of_the_very_weights_go_without_warning(
    student: Path, rolled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = prepare(rolled, student, tmp_path / "first")
    assert rollout_warnings(job) == [[], []]
    train.run(job)
    assert "rolled out" not in capsys.readouterr().err
    assert rollout_warnings(prepare(rolled, student, tmp_path / "new")) == [[], []]  # not known yet


def test_rollouts_of_another_base_are_told_before_training(
    rolled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_student(tmp_path / "other", train_tokenizer(CHATML), seed=1)
    job = prepare(rolled, other, tmp_path / "out")
    none, (warning,) = rollout_warnings(job)
    assert none == [] and f", of {lineage.weights_sha256(other)}: off-policy, another student's mistakes" in warning
    assert "builder mix" in warning
    (tmp_path / "rows").mkdir()
    rows = {stage.name: plan.rendered(job, stage, tmp_path / "rows")[0][1] for stage in job.stages}
    assert [line["warnings"] for line in plan.report(job, rows)["stages"]] == [[], [warning]]
    train.run(job)
    err = capsys.readouterr().err
    assert err.count("rolled out") == 1


def test_rollouts_of_other_weights_of_the_same_base_are_told_once_they_are_known(
    student: Path, rolled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = prepare(rolled, student, tmp_path / "out", "defaults.learning_rate=0.01")
    assert rollout_warnings(job) == [[], []]
    train.run(job)
    err = capsys.readouterr().err
    assert err.count("near, but not on-policy") == 1
    assert err.index("stage low-temperature: 4 rows") < err.index("stage mixed-policy: its mixed rows")
    train.run(job)
    assert capsys.readouterr().err == ""
    assert ": near, but not on-policy" in rollout_warnings(job)[1][0]


def hub(student: Path, weights: str | None, commit: str = "b" * 40) -> lineage.Base:
    return lineage.Base("org/name", commit, student, weights)


@pytest.mark.parametrize(
    ("base", "weights", "told"),
    [
        (f"org/name@{'b' * 40}", None, False),
        (f"org/name@{'c' * 40}", None, True),
        (f"org/name@{'c' * 40}", "1" * 64, True),
        ("1" * 64, "1" * 64, False),
        ("2" * 64, "1" * 64, True),
        ("2" * 64, None, False),  # a Hub model whose weights a plan does not fetch
        (None, "1" * 64, False),
    ],
)
def test_bases_are_compared_by_commit_or_by_weights(
    student: Path, tmp_path: Path, base: str | None, weights: str | None, told: bool
) -> None:
    release = make_release(tmp_path / "v1", base=base, weights_sha256="3" * 64)
    job = prepare(release, student, tmp_path / "out")
    job.base = hub(student, weights)
    assert bool(rollout_warnings(job)[1]) == told


def test_rollouts_are_where_rows_are_mixed(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "policy"} for row in stage_rows(0, 2)]
    root = write_release(tmp_path / "v1", {"a": stage_rows(0, 2), "b": rows, "c": [mixed(1, 0, 5), mixed(2, 1, 0)]})
    release = data.resolve(str(root))
    policies = [data.values(release.files(config), "policy") for config in "abc"]
    assert policies == [{"teacher"}, set(), {"teacher", "mixed"}]


def test_a_record_names_the_base_whatever_the_stage(student: Path, tmp_path: Path) -> None:
    finished = train.run(prepare(make_release(tmp_path / "v1"), student, tmp_path / "out"))
    records = [json.loads((stage.directory / "training.json").read_text(encoding="utf-8")) for stage in finished]
    assert {record["base_weights_sha256"] for record in records} == {lineage.weights_sha256(student)}


def test_the_base_is_hashed_once_a_run(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    sha256_of = data.sha256_of

    def spy(path: Path) -> str:
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(data, "sha256_of", spy)
    release = make_release(tmp_path / "v1")
    edit_manifest(release, lambda manifest: manifest["schedule"][1].update(init="base"))
    train.run(prepare(release, student, tmp_path / "out"))
    assert hashed.count(student / "model.safetensors") == 1
