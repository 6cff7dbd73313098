"""The recipe as typed sections; unknown keys are refused. `builder.recipe` reads it from YAML."""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from builder.batch_config import Batch
from builder.errors import UsageError
from builder.eval_config import EvaluationSection
from builder.identity import canonical_json, sha256_hex
from builder.judge_config import Judge
from builder.preference_config import Preference
from builder.quota_config import Quotas
from builder.rewrite_config import Rewrite
from builder.section import Endpoint, Gold, Prices, PromptSource, Section

_BY_DIVERGENCE = frozenset(
    {"teacher_sentence_count", "teacher_share", "length_matched", "mean_delta", "fewest_teacher_sentences"}
)
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]*$")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LONGEST_CONFIG = 100
# What the request sets itself: said twice, the journal would record another request than the one that is paid.
_OWN_KEYS = {"model", "messages", "n", "stream", "stream_options", "temperature", "top_p", "seed"}
_OWN_KEYS |= {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int | float | str | dict) else value


def _check_config(name: str) -> None:
    """Raise ValueError where a stage's name cannot name a config of a dataset: a folder, and a word in the card."""
    reason = None
    if not NAME.fullmatch(name):
        reason = "it must be lower case letters, digits, dots, dashes and underscores, and begin with a letter or digit"
    elif ".." in name or name.endswith("."):
        reason = "no path may hold two dots in a row or end with one"
    elif len(name) > _LONGEST_CONFIG:
        reason = f"it has {len(name)} characters, {_LONGEST_CONFIG} are the most"
    elif name in ("candidates", "logprobs"):
        reason = "every release has that config of its own"
    if reason:
        raise ValueError(f"stage name {name!r} cannot be a dataset config: {reason}")


class Teacher(Section):
    """The model that is paid. `revision` is its commit id or the hash of its weights, as declared; `license` the terms
    under which its replies may be used, which a release compares with its own.

    `rescore` lets `builder score` send replies that came without logprobs back to these endpoints, which give them as
    prompt logprobs: each costs its tokens once more, at the price of input. `batch` sends what `builder generate` asks
    through the endpoint's offline batches.
    """

    model: str
    revision: str | None = None
    tokenizer: str | None = None
    endpoints: list[Endpoint] = []
    prices: Prices | None = None
    license: str | None = None
    logprobs_mode: Literal["raw", "processed", "unknown"] = "raw"
    rescore: bool = False
    # left out where there is none: recipes of before it existed keep their hash
    batch: Batch | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _one_endpoint_for_batches(self) -> "Teacher":
        if self.batch is not None and len(self.endpoints) > 1:
            raise ValueError(
                f"batch sends to one endpoint, here are {len(self.endpoints)}: keep the one whose provider has batches"
            )
        return self


class UntilCorrect(Section):
    """A prompt is asked again until it has `correct` correct replies at a temperature, or `samples` replies there."""

    correct: int = Field(ge=1)
    samples: int = Field(ge=1)


class Generation(Section):
    """What is asked of the teacher: `samples` replies at each temperature, one choice a request.

    `until_correct` lets `builder generate` verify them, and ask more where too few are correct.
    """

    temperatures: Annotated[list[float], BeforeValidator(_as_list)] = [0.6, 1.0]
    samples: int = Field(default=4, ge=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=65536, ge=1)
    seed: int = Field(default=0, ge=0)
    system_prompt: str | None = None
    reasoning_effort: str | None = None
    extra_body: dict[str, Any] = {}
    logprobs: bool = True
    # left out where there is none: recipes of before it existed keep their hash
    until_correct: UntilCorrect | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _more_than_samples(self) -> "Generation":
        until = self.until_correct
        if until is not None and until.samples <= self.samples:
            raise ValueError(
                f"until_correct.samples {until.samples} leaves nothing to ask beyond samples {self.samples}: it is the "
                "most samples of a prompt and temperature, so make it larger, or drop until_correct"
            )
        if until is not None and until.correct > until.samples:
            raise ValueError(
                f"until_correct.correct {until.correct} is more than until_correct.samples {until.samples}: no prompt "
                "could ever have so many correct replies; lower one or raise the other"
            )
        return self

    @field_validator("temperatures")
    @classmethod
    def _distinct(cls, value: list[float]) -> list[float]:
        if not value:
            raise ValueError("needs at least one temperature")
        if len(set(value)) != len(value):
            raise ValueError(f"{value} names a temperature twice")
        if not all(math.isfinite(temperature) and temperature >= 0 for temperature in value):
            raise ValueError(f"{value} holds a temperature that is negative or not finite")
        return value

    @field_validator("extra_body")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if twice := sorted(_OWN_KEYS & set(value)):
            raise ValueError(f"{', '.join(twice)} cannot be set here: the keys of `generation` decide it")
        return value


class Student(Section):
    """The model to be trained, before training: it scores the replies, here or behind a server that serves it.

    `backend` and `endpoint` say who computes, not what: they are no part of a score's identity. `dtype` auto is the
    checkpoint's own, the same on every machine.
    """

    model: str
    revision: str | None = None
    backend: Literal["local", "endpoint"] = "local"
    endpoint: Endpoint | None = None
    system_prompt: str | None = "You are a helpful assistant."
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @model_validator(mode="after")
    def _check(self) -> "Student":
        if self.backend == "endpoint" and self.endpoint is None:
            raise ValueError("backend is endpoint, but there is none; add student.endpoint.url=http://host:8000/v1")
        if self.endpoint is not None and "backend" not in self.model_fields_set:
            raise ValueError("there is an endpoint, but no backend to say whether it is used; add backend: endpoint")
        return self


class Selection(Section):
    """Which replies stay: rules drop, the selector ranks what survives, `keep` rows a prompt and temperature stay."""

    order: Literal["rules-first", "selector-first"] = "rules-first"
    rules: list[str] = ["response_truncated", "reasoning_missing", "think_tags_broken"]
    params: dict[str, float | int | str | bool] = {}
    selector: str = "teacher_sentence_count"
    keep: int = Field(default=1, ge=1)

    @property
    def needs_logprobs(self) -> bool:
        """Whether the selection means nothing without teacher logprobs."""
        return self.selector in _BY_DIVERGENCE or "score_missing" in self.rules


class Stage(Section):
    """A training stage: which selected rows it takes, how many of each domain, in which order, from whose weights.

    `think` says which rows carry their think block: always, never, or those for which a SQL condition is true.
    """

    kind: Literal["sft", "grpo", "reward"] = "sft"
    init: str = "previous"
    where: str | None = None
    order_by: str | None = None
    quotas: Quotas | None = None
    think: str = "always"
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Benchmark(PromptSource):
    """Questions that no prompt may repeat: a local file, or a Hub dataset at a full commit id.

    `prompt` or `messages` names the column that is compared; `gold`, where given, another one, such as a solution.
    """

    split: str = "test"

    @model_validator(mode="after")
    def _only_what_is_compared(self) -> "Benchmark":
        read = {"source", "revision", "config", "split", "prompt", "messages", "gold"}
        if unread := sorted(name for name in self.model_fields_set - read if getattr(self, name) is not None):
            raise ValueError(f"{', '.join(unread)} means nothing for a benchmark; leave it out")
        if isinstance(self.gold, Gold):
            raise ValueError(  # noqa: TRY004 - pydantic passes on ValueErrors only
                "`gold` of a benchmark is a column whose whole text is compared: name the column alone"
            )
        if self.is_hub and self.revision is None:
            raise ValueError(f"{self.source!r} has no `revision`: without a full commit id it can move unnoticed")
        return self


class Decontamination(Section):
    """Benchmarks by name, which rule benchmark_contaminated compares the prompts with."""

    benchmarks: dict[str, Benchmark] = Field(min_length=1)


class MixedPolicy(Section):
    """Mixed-policy rows (arXiv:2601.09088 p.11, 13): the student begins, the teacher finishes.

    `length_cap` is times the selected reply's length, in student tokens; `cut` the range of the student's tokens in
    which the cut is drawn; `keep` which rollouts are cut: those that hit the cap, those that are wrong, either, or all.
    `temperature` is that of rollouts and continuations. `off_policy_ratio` is rows of earlier stages a mixed row.
    """

    prompts: int = Field(default=50000, ge=1)
    length_cap: float = Field(default=1.5, gt=0)
    cut: tuple[float, float] = (0.5, 1.0)
    keep: Literal["cap", "wrong", "cap_or_wrong", "all"] = "cap"
    temperature: float = Field(default=1.0, ge=0)
    off_policy_ratio: float = Field(default=2.6, ge=0)
    continuation: Literal["auto", "think-tag-prefill", "think-tag-completions", "harmony"] = "auto"
    stage: str = "mixed-policy"

    @field_validator("cut")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(f"{list(value)} is no range of a rollout's tokens: it needs 0 ≤ first < second ≤ 1")
        return value

    @field_validator("stage")
    @classmethod
    def _config(cls, value: str) -> str:
        _check_config(value)
        return value


class ReleaseSection(Section):
    """Where the release goes, under which licence, and what is left out of it.

    `withdrawn` are prompt and response ids: this version and all later ones leave these rows out of every config, also
    where a later recipe does not name them.

    `held_out` is the share of prompts whose replies are not trained on: at every temperature and in every stage they go
    to split `validation`. A hash of prompt and `generation.seed` decides, so prompts that are added move none.
    """

    repo: str | None = None
    license: str | None = None
    logprobs: bool = False
    held_out: float = Field(default=0, ge=0, lt=0.5)
    withdrawn: Annotated[list[str], BeforeValidator(_as_list)] = []

    @field_validator("repo")
    @classmethod
    def _org_and_name(cls, value: str | None) -> str | None:
        if value is not None and (not _REPO.fullmatch(value) or len(value) > 96 or "--" in value or ".." in value):
            raise ValueError(f"{value!r} is no dataset on the Hub: it must be org/name, of letters, digits, - _ .")
        return value

    @field_validator("withdrawn")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        return sorted(set(value))


class Recipe(Section):
    """A whole recipe. Every command demands only the sections that it reads."""

    name: str
    prompts: Annotated[list[PromptSource], BeforeValidator(_as_list)] = []
    teacher: Teacher | None = None
    generation: Generation = Generation()
    student: Student | None = None
    selection: Selection = Selection()
    decontamination: Decontamination | None = None
    judge: Judge | None = None
    evaluation: EvaluationSection | None = None
    stages: dict[str, Stage] = {}
    mixed_policy: MixedPolicy | None = None
    preference: Preference | None = None
    rewrite: Rewrite | None = None
    release: ReleaseSection = ReleaseSection()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(f"{value!r} must be lower case letters, digits, dots and dashes: it names a directory")
        return value

    @field_validator("stages")
    @classmethod
    def _stages(cls, value: dict[str, Stage]) -> dict[str, Stage]:
        seen: list[str] = []
        for name, stage in value.items():
            _check_config(name)
            alike = [other for other in seen if _table(other) == _table(name)]
            if alike:
                raise ValueError(f"stage names {alike[0]!r} and {name!r} would both be table {_table(name)} in SQL")
            if stage.init not in ("previous", "base", *seen):
                raise ValueError(
                    f"stage {name!r} starts from {stage.init!r}: neither `previous`, `base` nor an earlier stage"
                )
            if stage.quotas is not None and stage.kind != "sft":
                raise ValueError(
                    f"stage {name!r} of kind {stage.kind} has quotas, which pick replies: only kind sft may have any"
                )
            if stage.think != "always" and stage.kind != "sft":
                raise ValueError(f"stage {name!r} of kind {stage.kind} has `think`, which only rows of kind sft follow")
            seen.append(name)
        return value

    @model_validator(mode="after")
    def _mixed_as_it_is(self) -> "Recipe":
        stage = self.stages.get(self.mixed_policy.stage) if self.mixed_policy is not None else None
        if stage is not None and stage.quotas is not None:
            raise ValueError(
                "the mixed-policy stage has quotas, but mixed_policy.off_policy_ratio decides what it takes"
            )
        if stage is not None and stage.think != "always":
            raise ValueError("the mixed-policy stage has `think`, but its rows go on from thoughts of the student")
        return self

    @model_validator(mode="after")
    def _pairs_have_a_stage(self) -> "Recipe":
        if self.preference is not None:
            self.preference.check(self.stages, self.judge.votes if self.judge else None)
        return self

    @model_validator(mode="after")
    def _rewrites_can_be_selected(self) -> "Recipe":
        if self.rewrite is not None:
            kinds = [stage.kind for stage in self.stages.values()]
            needs, mixed = self.selection.needs_logprobs, self.mixed_policy is not None
            self.rewrite.check(kinds, needs_logprobs=needs, is_mixed=mixed)
        return self

    def require_teacher(self) -> Teacher:
        """The teacher section; UsageError where the recipe has none."""
        if self.teacher is None:
            raise UsageError(f"Recipe {self.name!r} has no `teacher` section; this command asks a teacher.")
        return self.teacher

    def require_student(self) -> Student:
        """The student section; UsageError where the recipe has none."""
        if self.student is None:
            raise UsageError(
                f"Recipe {self.name!r} has no `student` section; divergence is measured against a student. "
                "Add one, or select with random, longest or length_matched."
            )
        return self.student

    def require_benchmarks(self) -> dict[str, Benchmark]:
        """Benchmarks by name; UsageError where the recipe has none."""
        if self.decontamination is None:
            raise UsageError(
                f"Recipe {self.name!r} has no decontamination.benchmarks, but a rule reads stg_contaminations, such as "
                "benchmark_contaminated does. Without benchmarks it would pass every prompt. Name them, for example "
                "decontamination: {benchmarks: {aime24: {source: aime24.jsonl, prompt: problem}}}, or drop the rule."
            )
        return self.decontamination.benchmarks

    def require_judge(self) -> Judge:
        """The judge section; UsageError where the recipe has none."""
        if self.judge is None:
            raise UsageError(
                f"Recipe {self.name!r} has no `judge` section, so nobody can be asked whether an answer is right. "
                "Add one, for example judge: {model: Qwen/Qwen3-32B, endpoints: [{url: http://host:8000/v1}]}."
            )
        return self.judge

    def require_mixed_policy(self) -> MixedPolicy:
        """The mixed_policy section; UsageError where the recipe has none."""
        if self.mixed_policy is None:
            raise UsageError(
                f"Recipe {self.name!r} has no `mixed_policy` section, so it does not say which rollouts to keep and "
                "where to cut them. Add one; `mixed_policy: {}` takes the defaults."
            )
        return self.mixed_policy

    def require_preference(self) -> Preference:
        """The preference section; UsageError where the recipe has none, or no judge to ask."""
        if self.preference is None:
            raise UsageError(
                f"Recipe {self.name!r} has no `preference` section, so it does not say which replies are compared for "
                "which reward stage. Add preference: {}, stages: {preference: {kind: reward}} and a `judge`."
            )
        self.require_judge()
        return self.preference

    def require_rewrite(self) -> Rewrite:
        """The rewrite section; UsageError where the recipe has none."""
        if self.rewrite is None:
            raise UsageError(
                f"Recipe {self.name!r} has no `rewrite` section, so it does not say which model rewrites its replies. "
                "Add one, for example rewrite: {model: deepseek-ai/DeepSeek-V3, endpoints: [{url: http://host:8000/v1}]}."
            )
        return self.rewrite

    def public_student(self) -> str | None:
        """The student's name without folders of this machine."""
        return _shown(self.student.model, self.student.revision) if self.student else None

    def public_tokenizer(self) -> str | None:
        """The teacher tokenizer's name without folders of this machine."""
        return _shown(self.teacher.tokenizer or self.teacher.model, None) if self.teacher else None

    def resolved(self) -> dict[str, Any]:
        """The recipe with all defaults, as plain values."""
        return self.model_dump(mode="json")

    def decisive(self) -> dict[str, Any]:
        """The resolved recipe less endpoints, concurrency and folders: what can change a row.

        The same in every working directory: whether a name is a folder is told by its text. A model without a revision
        may be a folder, so it counts by its last part; what its weights gave is in the tables.
        """
        resolved = self.resolved()
        del resolved["evaluation"]  # it decides no row
        for stage in resolved["stages"].values():
            if stage["quotas"] is None:
                del stage["quotas"]  # as for the judge, below
            if stage["think"] == "always":
                del stage["think"]
        for section in ("judge", "rewrite"):
            _decisive_model(resolved, section)
        if resolved["preference"] is None:
            del resolved["preference"]  # likewise
        if resolved["teacher"]:
            resolved["teacher"].pop("endpoints")
            resolved["teacher"].pop("batch", None)
        if resolved["student"]:
            resolved["student"].pop("endpoint")
            resolved["student"].pop("backend")
        benchmarks = resolved["decontamination"]["benchmarks"].values() if resolved["decontamination"] else []
        for source in [*resolved["prompts"], *benchmarks]:
            if not source["source"].startswith("hf://"):
                source["source"] = Path(source["source"]).name
        for section, name in (("teacher", "tokenizer"), ("student", "model")):
            given = resolved[section]
            if given and given[name]:
                is_pinned = given["revision"] is not None and given[name] == given["model"]
                given[name] = _identity(given[name], is_pinned=is_pinned)
        return resolved

    def hash(self) -> str:
        """64 hex digits of `decisive()`."""
        return sha256_hex(canonical_json(self.decisive()))


def _decisive_model(resolved: dict[str, Any], section: str) -> None:
    """The section less endpoints and folders; without it, no key: recipes of before there was one keep their hash."""
    asked = resolved.pop(section)
    if asked:
        model = asked["model"]
        del asked["endpoints"]
        resolved[section] = asked | {"model": Path(model).name if model.startswith(("/", "~")) else model}


def _identity(name: str, *, is_pinned: bool) -> str:
    """The last part of what is or may be a path; a Hub name with its commit as it is."""
    is_path = name.startswith(("/", "~", "./", "../"))
    return name if is_pinned and not is_path else Path(name).name


def _shown(name: str, revision: str | None) -> str:
    """The last part of a path on this machine; any other name as it is."""
    return Path(name).name if Path(name).is_absolute() or (revision is None and Path(name).exists()) else name


def _table(config: str) -> str:
    """How SQL on a release calls a config."""
    return re.sub("[-.]", "_", config)
