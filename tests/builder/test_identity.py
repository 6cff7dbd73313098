import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.config import Recipe
from builder.identity import (
    RequestKeys,
    canonical_json,
    normalize_messages,
    normalized_prompt_id,
    order_key,
    prompt_id,
    request_key,
    request_seed,
    response_id,
    sha256_hex,
)
from builder.prompts import Prompts
from builder.requests import Need, need, requests

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SPACE = st.text(" \t\n\u00a0\u3000", max_size=3)
QUESTION = [{"role": "user", "content": "What is 6 × 7?"}]
ASKED: dict[str, Any] = {
    "model": "m",
    "revision": "r1",
    "messages": QUESTION,
    "prefix": None,
    "sampling": {"temperature": 0.6, "top_p": 1.0},
    "seed": 7,
    "sample_index": 0,
}


def rows(*questions: str) -> Prompts:
    found = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        found.append({"prompt_id": prompt_id(messages), "messages": messages})
    return Prompts(found, len(found), 0, 0)


def recipe(**generation: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "toy", "teacher": {"model": "m", "revision": "r1"}, "generation": {"samples": 2, **generation}}
    )


def keys(asked: Recipe, prompts: Prompts, shard: tuple[int, int] = (0, 1)) -> set[str]:
    found = [request.key for request in requests(asked, prompts, shard=shard)]
    assert len(found) == len(set(found))
    return set(found)


@given(TEXT, SPACE, SPACE, st.sampled_from(["NFC", "NFD"]))
def test_prompt_id_ignores_outer_white_space_and_unicode_normal_form(
    text: str, before: str, after: str, form: Any
) -> None:
    other = before + unicodedata.normalize(form, text) + after
    assert prompt_id([{"role": "user", "content": text}]) == prompt_id([{"role": "user", "content": other}])


@given(TEXT)
def test_prompt_id_keeps_roles_and_inner_white_space(text: str) -> None:
    user, system = [{"role": "user", "content": text}], [{"role": "system", "content": text}]
    assert len({prompt_id(user), prompt_id(system), prompt_id(system + user), prompt_id(user + user)}) == 4
    assert prompt_id([{"role": "user", "content": f"a {text} b"}]) != prompt_id(
        [{"role": "user", "content": f"a  {text} b"}]
    )


@given(st.permutations(["temperature", "top_p", "top_k", "chat_template_kwargs"]))
def test_request_key_ignores_the_order_of_keys(order: list[str]) -> None:
    values = {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "chat_template_kwargs": {"a": 1, "b": [1.5, None]}}
    turned = {name: values[name] for name in order} | {"chat_template_kwargs": {"b": [1.5, None], "a": 1}}
    assert request_key(**ASKED | {"sampling": turned}) == request_key(**ASKED | {"sampling": values})


@pytest.mark.parametrize(
    "beside",
    [
        {"max_tokens": 100},
        {"max_completion_tokens": 100},
        {"logprobs": True, "top_logprobs": 0},
        {"return_token_ids": True, "return_tokens_as_token_ids": True},
        {"prompt_logprobs": 1},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "me", "metadata": {}},
        {"stop": None},
    ],
)
def test_request_key_ignores_limits_and_what_is_only_reported(beside: dict[str, Any]) -> None:
    assert request_key(**ASKED | {"sampling": ASKED["sampling"] | beside}) == request_key(**ASKED)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"revision": "r2"},
        {"revision": None},
        {"messages": [{"role": "user", "content": "What is 6 × 8?"}]},
        {"messages": [{"role": "system", "content": "Be brief."}, *QUESTION]},
        {"prefix": "Six"},
        {"sampling": {"temperature": 1.0, "top_p": 1.0}},
        {"sampling": {"temperature": 0.6, "top_p": 0.9}},
        {"sampling": {"temperature": 0.6, "top_p": 1.0, "reasoning_effort": "high"}},
        {"seed": 8},
        {"seed": None},
        {"sample_index": 1},
    ],
)
def test_request_key_changes_with_whatever_changes_the_reply(change: dict[str, Any]) -> None:
    assert request_key(**ASKED | change) != request_key(**ASKED)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), min_size=1, max_size=3)


@given(
    messages=MESSAGES,
    model=TEXT,
    revision=st.none() | TEXT,
    prompt=TEXT,
    seed=st.integers(0, 2**40),
    temperatures=st.lists(st.floats(0, 3), min_size=1, max_size=3, unique=True),
    extra=st.dictionaries(st.sampled_from(["top_k", "stop", "max_tokens", "user", "é"]) | TEXT, JSON, max_size=4),
    samples=st.integers(1, 4),
)
def test_keys_and_seeds_of_a_whole_prompt_are_those_of_its_requests_one_by_one(
    messages: Any, model: str, revision: Any, prompt: str, seed: int, temperatures: Any, extra: Any, samples: int
) -> None:
    sampling = {temperature: {**extra, "temperature": temperature} for temperature in temperatures}
    keys = RequestKeys(model=model, revision=revision, seed=seed, sampling=sampling, samples=samples)
    expected = []
    for temperature in temperatures:
        for index in range(samples):
            own = request_seed(seed, prompt, temperature, index)
            key = request_key(
                model=model,
                revision=revision,
                messages=messages,
                prefix=None,
                sampling=sampling[temperature],
                seed=own,
                sample_index=index,
            )
            expected.append((temperature, index, own, bytes.fromhex(key)))
    assert list(keys.of(prompt, messages)) == expected


@given(MESSAGES)
def test_a_prompt_id_is_the_hash_of_the_messages_canonical_json(messages: Any) -> None:
    normal = normalize_messages(messages)
    text = canonical_json(normal)
    assert prompt_id(messages) == normalized_prompt_id(normal) == sha256_hex(text)[:32]


def test_one_and_one_point_zero_are_one_temperature() -> None:
    whole = ASKED | {"sampling": {"temperature": 1, "top_p": 1}}
    assert request_key(**whole) == request_key(**ASKED | {"sampling": {"temperature": 1.0, "top_p": 1.0}})
    assert request_seed(0, "p", 1, 0) == request_seed(0, "p", 1.0, 0)


def test_identity_is_pinned_so_that_an_upgrade_never_pays_again() -> None:
    assert prompt_id(QUESTION) == "35e01bf913c59e345aa3d58224c60e9c"
    assert request_seed(0, prompt_id(QUESTION), 0.6, 0) == 748239430
    assert request_key(**ASKED) == "f72c95e4282c72eff89151636e32d3d03d67e480554d60665df2f36491a55550"
    (first, *_) = requests(recipe(system_prompt=" Be brief.\n", extra_body={"top_k": 20}), rows("What is 6 × 7?"))
    assert first.key == "b02a31223f8124e4c7b35d733006005fa56455af4c4c44a74f5962299e5885ff"
    assert response_id(first.key, finish_reason="stop", max_tokens=512) == "401527aebe502b3bfcff3a03dcee4410"
    assert response_id(first.key, finish_reason="length", max_tokens=512) == "f39cd82eff1b2542531e59923e87bb63"
    assert order_key("g", 0) == "5353e94919f784c1285a18b3e93056e4"


def test_only_a_cut_reply_has_its_limit_in_its_id() -> None:
    whole = {response_id("00", finish_reason="stop", max_tokens=limit) for limit in (8, 512, None)}
    cut = {response_id("00", finish_reason="length", max_tokens=limit) for limit in (8, 512)}
    assert (len(whole), len(cut), whole & cut) == (1, 2, set())


@given(st.integers(0, 2**40), st.text("0123456789abcdef", min_size=4, max_size=8), st.integers(0, 50))
def test_seeds_fit_in_31_bits_and_differ_between_samples(seed: int, prompt: str, sample: int) -> None:
    found = [request_seed(seed, prompt, 0.6, sample + more) for more in range(4)]
    assert all(0 <= value < 2**31 for value in found)
    assert len(set(found)) == 4


@given(st.permutations(["a?", "b?", "c?", "d?", "e?"]))
def test_reordered_prompts_are_the_same_requests(order: list[str]) -> None:
    assert keys(recipe(), rows(*order)) == keys(recipe(), rows("a?", "b?", "c?", "d?", "e?"))


def test_added_prompts_samples_and_temperatures_only_add_requests() -> None:
    first = keys(recipe(samples=2), rows("a?", "b?"))
    stored = {bytes.fromhex(key): -1 for key in first}
    assert need(recipe(samples=2), rows("a?", "b?"), stored) == Need(8, 8)
    assert need(recipe(samples=2), rows("c?", "b?", "a?"), stored) == Need(12, 8)
    assert need(recipe(samples=3), rows("a?", "b?"), stored) == Need(12, 8)
    assert need(recipe(samples=1), rows("b?"), stored) == Need(2, 2)
    assert need(recipe(temperatures=[0.3, 0.6, 1.0]), rows("a?", "b?"), stored) == Need(12, 8)
    assert need(recipe(logprobs=False), rows("a?", "b?"), stored) == Need(8, 8)


def test_a_plan_computes_no_keys_of_prompts_that_have_no_reply() -> None:
    prompts = rows("a?", "b?", "c?")
    stored = {bytes.fromhex(key): -1 for key in keys(recipe(), rows("a?", "b?"))}
    answered = {row["prompt_id"] for row in rows("a?", "b?").rows}
    assert need(recipe(), prompts, stored, answered=answered) == need(recipe(), prompts, stored) == Need(12, 8)
    assert need(recipe(), prompts, stored, answered=set()) == Need(12, 0)


def test_another_seed_model_or_system_prompt_asks_everything_again() -> None:
    stored = {bytes.fromhex(key): -1 for key in keys(recipe(), rows("a?"))}
    assert need(recipe(seed=1), rows("a?"), stored) == Need(4, 0)
    assert need(recipe(system_prompt="Be brief."), rows("a?"), stored) == Need(4, 0)
    other = recipe().model_copy(update={"teacher": recipe().require_teacher().model_copy(update={"revision": "r2"})})
    assert need(other, rows("a?"), stored) == Need(4, 0)


@pytest.mark.parametrize(("cut", "limit", "paid"), [(-1, 10**6, 1), (512, 512, 1), (512, 256, 1), (512, 513, 0)])
def test_a_whole_reply_answers_any_limit_and_a_cut_one_no_larger_limit(cut: int, limit: int, paid: int) -> None:
    asked = recipe(samples=1, temperatures=1.0, max_tokens=limit)
    (key,) = keys(asked, rows("a?"))
    assert need(asked, rows("a?"), {bytes.fromhex(key): cut}) == Need(1, paid)


@given(st.integers(1, 9))
def test_shards_divide_the_requests_whatever_their_number(count: int) -> None:
    prompts = rows(*(f"question {index}" for index in range(12)))
    parts = [keys(recipe(), prompts, (index, count)) for index in range(count)]
    assert set().union(*parts) == keys(recipe(), prompts)
    assert sum(map(len, parts)) == 48
    assert sum(need(recipe(), prompts, {}, shard=(index, count)).total for index in range(count)) == 48


def test_a_shard_holds_whole_prompts() -> None:
    prompts = rows(*(f"question {index}" for index in range(12)))
    homes = [{request.prompt_id for request in requests(recipe(), prompts, shard=(index, 3))} for index in range(3)]
    assert sum(map(len, homes)) == 12


def test_the_system_prompt_is_sent_as_it_is_hashed_and_gives_way_to_the_prompts_own() -> None:
    own = [{"role": "system", "content": "I am set."}, {"role": "user", "content": "a?"}]
    prompts = Prompts([*rows("a?").rows, {"prompt_id": prompt_id(own), "messages": own}], 2, 0, 0)
    sent = [request.messages[0] for request in requests(recipe(system_prompt=" Be brief.\n"), prompts)]
    assert sent[0] == {"role": "system", "content": "Be brief."}
    assert sent[-1] == {"role": "system", "content": "I am set."}


def test_canonical_json_writes_equal_values_alike() -> None:
    assert (
        canonical_json({"b": (1.0, None), "a": "é"})
        == canonical_json({"a": "é", "b": [1, None]})
        == '{"a":"é","b":[1,null]}'
    )
    assert canonical_json(float("nan")) == '"nan"'
