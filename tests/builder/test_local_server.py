"""The local server over real HTTP, with the real `openai` client and a tiny random model."""

import json
import math
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from builder.errors import ServeError
from builder.local_server import running_server, serve

openai = pytest.importorskip("openai")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MAX_LEN = 192
QUESTION = [{"role": "user", "content": "How many pens are left?"}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 whose logits are steep enough that greedy and sampled replies differ."""
    from builder.toy.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(400)
    config = transformers.Qwen3Config(
        vocab_size=416,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(model_dir: Path) -> Iterator[str]:
    with running_server(model_dir, model_name="tiny", threads=1, max_model_len=MAX_LEN) as base:
        yield base


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def bare_logprobs(model_dir: Path) -> Any:
    """Token ids to the logprob of each token but the first, by one plain forward pass."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)

    def logprobs(ids: list[int]) -> list[float]:
        with torch.no_grad():
            table = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
        return [table[place, token].item() for place, token in enumerate(ids[1:])]

    return logprobs


def chat(client: Any, messages: list[dict[str, str]] = QUESTION, *, max_tokens: int = 24, **given: Any) -> Any:
    ours = ("return_token_ids", "prompt_logprobs", "top_k", "continue_final_message", "add_generation_prompt")
    ours += ("chat_template_kwargs", "return_tokens_as_token_ids", "ignore_eos", "stop_token_ids", "min_p", "typo")
    extra = {name: given.pop(name) for name in ours if name in given}
    return client.chat.completions.create(
        model=given.pop("model", "tiny"), messages=messages, max_tokens=max_tokens, extra_body=extra, **given
    )


def text_of(choice: Any) -> str:
    return f"{choice.message.reasoning or ''}|{choice.message.content or ''}"


def test_logprobs_equal_a_bare_forward_pass_at_any_temperature(client: Any, bare_logprobs: Any) -> None:
    for temperature in (0.0, 0.6, 1.0):
        reply = chat(client, temperature=temperature, seed=5, logprobs=True, return_token_ids=True)
        choice, prompt = reply.choices[0], reply.prompt_token_ids
        ours = [entry.logprob for entry in choice.logprobs.content]
        assert ours == pytest.approx(bare_logprobs(prompt + choice.token_ids)[len(prompt) - 1 :], abs=1e-4)
        assert len(ours) == len(choice.token_ids) == reply.usage.completion_tokens


def test_same_seed_gives_the_same_reply_alone_and_inside_a_batch(client: Any) -> None:
    def ask(seed: int) -> list[int]:
        messages = [{"role": "user", "content": "pens " * (seed % 7 + 1)}]
        reply = chat(client, messages, seed=seed, return_token_ids=True, max_tokens=8 + seed)
        return list(reply.choices[0].token_ids)

    alone = [ask(seed) for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(ask, range(24)))
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > 20


def test_without_a_seed_replies_differ(client: Any) -> None:
    texts = {text_of(choice) for choice in chat(client, n=4).choices}
    assert len(texts) == 4


def test_choices_of_one_seeded_request_differ_and_repeat(client: Any) -> None:
    first, again = (chat(client, n=3, seed=1, return_token_ids=True) for _ in range(2))
    ids = [choice.token_ids for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert ids == [choice.token_ids for choice in again.choices]
    assert len({tuple(one) for one in ids}) == 3
    assert first.usage.completion_tokens == sum(map(len, ids))


def test_temperature_zero_takes_the_likeliest_token(client: Any) -> None:
    reply = chat(client, temperature=0, logprobs=True, top_logprobs=3)
    for entry in reply.choices[0].logprobs.content:
        assert entry.logprob == max(other.logprob for other in entry.top_logprobs)


def test_top_logprobs_hold_the_sampled_token_first(client: Any) -> None:
    reply = chat(client, seed=3, logprobs=True, top_logprobs=4)
    for entry in reply.choices[0].logprobs.content:
        first, *others = entry.top_logprobs
        assert (first.bytes, first.logprob) == (entry.bytes, entry.logprob)
        assert len(others) == 3
        assert [other.logprob for other in others] == sorted((other.logprob for other in others), reverse=True)


def test_top_logprobs_zero_gives_the_token_alone(client: Any) -> None:
    reply = chat(client, logprobs=True, top_logprobs=0)
    assert all(entry.top_logprobs == [] for entry in reply.choices[0].logprobs.content)


def test_top_k_of_one_and_a_tiny_top_p_are_greedy(client: Any) -> None:
    greedy = text_of(chat(client, temperature=0).choices[0])
    assert text_of(chat(client, top_k=1, seed=9).choices[0]) == greedy
    assert text_of(chat(client, top_p=1e-6, seed=9).choices[0]) == greedy


def test_prompt_logprobs_equal_the_generation_logprobs(client: Any) -> None:
    made = chat(client, seed=2, logprobs=True, return_token_ids=True)
    ids = made.prompt_token_ids + made.choices[0].token_ids
    extra = {"prompt_logprobs": 2, "return_token_ids": True}
    scored = client.completions.create(model="tiny", prompt=ids, max_tokens=1, extra_body=extra).choices[0]
    assert scored.prompt_token_ids == ids
    assert scored.prompt_logprobs[0] is None
    tail = list(zip(ids, scored.prompt_logprobs, strict=True))[len(made.prompt_token_ids) :]
    ours = [table[str(token)]["logprob"] for token, table in tail]
    assert ours == pytest.approx([entry.logprob for entry in made.choices[0].logprobs.content], abs=1e-4)
    for token, table in tail:
        assert next(iter(table)) == str(token)
        assert set(table[str(token)]) == {"logprob", "rank", "decoded_token"}
        assert {entry["rank"] for entry in table.values()} >= {1, 2}


def test_echo_scores_the_prompt_without_generating(client: Any, tokenizer: Any, bare_logprobs: Any) -> None:
    text = "So there are 12 pens."
    reply = client.completions.create(model="tiny", prompt=text, echo=True, logprobs=1, max_tokens=0)
    choice = reply.choices[0]
    assert choice.text == text == "".join(choice.logprobs.tokens)
    assert choice.logprobs.token_logprobs[0] is None
    expected = bare_logprobs(tokenizer(text).input_ids)
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert reply.usage.completion_tokens == 0


def test_echo_puts_the_prompt_before_the_generated_tokens(client: Any, tokenizer: Any) -> None:
    ids = tokenizer("So there are").input_ids
    reply = client.completions.create(model="tiny", prompt=[ids, ids[:2]], echo=True, logprobs=0, max_tokens=3, seed=1)
    for choice, prompt in zip(reply.choices, (ids, ids[:2]), strict=True):
        assert choice.text.startswith(tokenizer.decode(prompt))
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(prompt) + 3
        assert choice.logprobs.token_logprobs.count(None) == 1


def test_continuation_goes_on_inside_the_last_message(client: Any, tokenizer: Any) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "<think>\nFirst take "}]
    whole = chat(client, messages, return_token_ids=True, max_tokens=1)
    ongoing = chat(
        client,
        messages,
        return_token_ids=True,
        max_tokens=1,
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert tokenizer.decode(ongoing.prompt_token_ids).endswith("<|im_start|>assistant\n<think>\nFirst take ")
    assert tokenizer.decode(whole.prompt_token_ids).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_chat_template_arguments_reach_the_template(client: Any, tokenizer: Any) -> None:
    reply = chat(client, chat_template_kwargs={"enable_thinking": False}, return_token_ids=True, max_tokens=1)
    assert tokenizer.decode(reply.prompt_token_ids).endswith("<think>\n\n</think>\n\n")


def test_generation_ends_at_the_limit(client: Any) -> None:
    reply = chat(client, max_tokens=5, ignore_eos=True)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 5)


def test_a_stop_text_ends_the_reply_before_itself(client: Any) -> None:
    full = text_of(chat(client, seed=4, ignore_eos=True).choices[0]).strip("|")
    stop = full[6:8]
    choice = chat(client, seed=4, ignore_eos=True, stop=[stop]).choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert text_of(choice).strip("|") == full[: full.index(stop)]


def test_the_stop_token_is_in_the_logprobs_and_not_in_the_text(client: Any, tokenizer: Any) -> None:
    ids = chat(client, seed=4, ignore_eos=True, return_token_ids=True).choices[0].token_ids
    reply = chat(client, seed=4, ignore_eos=True, stop_token_ids=[ids[5]], logprobs=True, return_token_ids=True)
    choice, kept = reply.choices[0], ids[: ids.index(ids[5]) + 1]
    assert choice.token_ids == kept
    assert (choice.finish_reason, choice.stop_reason) == ("stop", ids[5])
    assert len(choice.logprobs.content) == reply.usage.completion_tokens == len(kept)
    assert text_of(choice).strip("|") == tokenizer.decode(kept[:-1], skip_special_tokens=True)


def test_bytes_of_the_tokens_reassemble_the_text(client: Any, tokenizer: Any) -> None:
    text = "Zoë há 12 книг 😀."
    ids = tokenizer(text).input_ids
    reply = client.completions.create(model="tiny", prompt=ids, echo=True, logprobs=0, max_tokens=0)
    assert reply.choices[0].text == text
    made = chat(client, seed=8, logprobs=True, ignore_eos=True, return_token_ids=True, max_tokens=60)
    special = set(tokenizer.all_special_ids)
    pairs = zip(made.choices[0].token_ids, made.choices[0].logprobs.content, strict=True)
    joined = bytes(byte for token, entry in pairs if token not in special for byte in entry.bytes)
    assert joined.decode(errors="replace") == text_of(made.choices[0]).strip("|")


def test_tokens_can_be_named_by_id(client: Any) -> None:
    reply = chat(client, seed=1, logprobs=True, return_token_ids=True, return_tokens_as_token_ids=True)
    choice = reply.choices[0]
    assert [entry.token for entry in choice.logprobs.content] == [f"token_id:{token}" for token in choice.token_ids]


def status_and_message(call: Any) -> tuple[int, str]:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    return caught.value.status_code, caught.value.body["message"]


def test_another_model_name_is_not_found(client: Any) -> None:
    status, message = status_and_message(lambda: chat(client, model="other"))
    assert (status, "The model `other` does not exist." in message) == (404, True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": -1}, "`temperature` must be a number from 0"),
        ({"n": 0}, "`n` must be an integer from 1"),
        ({"logprobs": True, "top_logprobs": 21}, "`top_logprobs` must be an integer from 0 to 20"),
        ({"top_logprobs": 2}, "`logprobs` must be set to true"),
        ({"frequency_penalty": 0.5}, "does not support `frequency_penalty`"),
        ({"stream": True}, "does not support `stream`"),
        ({"min_p": 0.1}, "does not support `min_p`"),
        ({"typo": 1}, "does not know the parameter `typo`"),
        ({"reasoning_effort": "high"}, "does not read `reasoning_effort`"),
        ({"stop_token_ids": [9999]}, "out of vocabulary"),
        ({"continue_final_message": True}, "Cannot set both"),
        ({"max_tokens": MAX_LEN}, f"maximum context length is {MAX_LEN} tokens"),
        ({"messages": []}, "at least one message"),
    ],
)
def test_what_cannot_be_honoured_is_refused(client: Any, given: dict[str, Any], words: str) -> None:
    status, message = status_and_message(lambda: chat(client, **given))
    assert status == 400
    assert words in message


def test_parameters_at_their_neutral_value_are_accepted(client: Any) -> None:
    chat(client, max_tokens=1, frequency_penalty=0, presence_penalty=0.0, min_p=0.0, user="someone")


def test_a_body_that_is_no_json_object_is_refused(url: str) -> None:
    request = urllib.request.Request(url + "/chat/completions", data=b"[1]", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as error:
        assert (error.code, "not a JSON object" in error.read().decode()) == (400, True)


def get(url: str, path: str) -> Any:
    with urllib.request.urlopen(url.removesuffix("/v1") + path) as answer:
        return json.load(answer)


def test_models_and_health_are_told(client: Any, url: str) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.max_model_len) == ("tiny", MAX_LEN)
    assert get(url, "/health") == {}


def test_stats_count_what_was_answered(client: Any, url: str) -> None:
    before = get(url, "/stats")
    paid = chat(client, max_tokens=7).usage.completion_tokens
    status_and_message(lambda: chat(client, model="other"))
    after = get(url, "/stats")
    assert after["requests"] - before["requests"] == 2
    assert after["completion_tokens"] - before["completion_tokens"] == paid
    assert after["by_status"]["200"] - before["by_status"]["200"] == 1
    assert sum(after["by_status"].values()) == after["requests"]


def test_a_host_beyond_this_machine_is_refused(model_dir: Path) -> None:
    with pytest.raises(ServeError, match=r"--host 0\.0\.0\.0 is refused"):
        serve(model_dir, host="0.0.0.0", port=0)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"holds no config\.json"), running_server(tmp_path):
        pass


def test_importing_the_server_needs_no_torch() -> None:
    code = "import sys, builder.local_server, builder.toy; print('torch' in sys.modules or 'aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


class FakeEngine:
    """Just the tokenizer, for the parts that need no model."""

    vocabulary = 400

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


@pytest.mark.parametrize(
    ("parser", "prompt", "text", "reasoning", "content"),
    [
        ("think", "q", "<think>\nA\n</think>\n\nB", "\nA\n", "\n\nB"),
        ("think", "q", "A\n</think>B", "A\n", "B"),
        ("think", "q", "<think>\nA\n</think>", "\nA\n", None),
        ("think", "q", "<think>\nA", "\nA", None),
        ("think", "q", "A", "A", None),
        ("auto", "q", "A", None, "A"),
        ("auto", "q", "<think>\nA", "\nA", None),
        ("auto", "q<think>\n", "A", "A", None),
        ("auto", "q<think>\n", "A</think>B", "A", "B"),
        ("auto", "q<think>\nA</think>", "B", None, "B"),
        ("none", "q", "<think>\nA</think>B", None, "<think>\nA</think>B"),
    ],
)
def test_reasoning_is_split_as_vllm_splits_it(
    tokenizer: Any, parser: Any, prompt: str, text: str, reasoning: str | None, content: str | None
) -> None:
    from builder.local_reply import Replies
    from builder.local_sampling import Ask, Generated

    replies = Replies(FakeEngine(tokenizer), "tiny", parser)  # type: ignore[arg-type]
    ask = Ask(prompt=tokenizer(prompt).input_ids, max_tokens=9)
    message = replies.chat({}, [ask], [Generated(text=text)])["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (reasoning, content)


def test_sampled_shares_follow_temperature_top_k_and_top_p() -> None:
    from builder.local_sampling import Ask, Sampler

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for given, expected in (
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
    ):
        sampler = Sampler([Ask(prompt=[1], max_tokens=1, **given)] * 4000)
        counts = torch.bincount(sampler.pick(logits, uniform), minlength=4)
        shares = [count / 4000 for count in counts.tolist()]
        assert all(math.isclose(ours, theirs, abs_tol=0.001) for ours, theirs in zip(shares, expected, strict=True))
