"""The chat templates of six model families against a renderer that shares no code with ours."""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from trainer_toys import reply, save_student, train_tokenizer

from trainer import render
from trainer.errors import RenderError

TEMPLATES = Path(__file__).parent / "templates"
THOUGHT = "naïve: 7 and one 🦊 is 9?\n\nNo:  8 ✓"
CONTENT = f"<think>\n{THOUGHT}\n</think>\n\nIt is **8**, 八."
SYSTEM = {"role": "system", "content": "Add, please."}
ASKED = {"role": "user", "content": "What is 7 + 1, and what does <think> mean?"}
EARLIER = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
]
PROMPTS = {"one turn": [ASKED], "a system prompt": [SYSTEM, ASKED], "an earlier turn": [*EARLIER, ASKED]}


@dataclass(frozen=True)
class Family:
    """A template's special tokens, and by hand what has to follow its prompt."""

    special: tuple[str, ...]
    bos: str | None
    eos: str
    stops: tuple[str, ...]
    asks: str  # how every prompt ends
    trained: str


PLAIN = f"{CONTENT}"
FAMILIES = {
    "qwen3-instruct": Family(
        ("<|im_start|>", "<|im_end|>"), None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
        "mean?<|im_end|>\n<|im_start|>assistant\n", f"{CONTENT}<|im_end|>",
    ),
    "qwen3-thinking": Family(
        ("<|im_start|>", "<|im_end|>"), None, "<|im_end|>", ("<|im_end|>", "<|endoftext|>"),
        "mean?<|im_end|>\n<|im_start|>assistant\n<think>\n", f"{THOUGHT}\n</think>\n\nIt is **8**, 八.<|im_end|>",
    ),
    "llama-3": Family(
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        "<|begin_of_text|>", "<|eot_id|>", ("<|eot_id|>", "<|eom_id|>"),
        "mean?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", f"{CONTENT}<|eot_id|>",
    ),
    "gemma": Family(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", ("<eos>", "<end_of_turn>"),
        "mean?<end_of_turn>\n<start_of_turn>model\n", f"{CONTENT}<end_of_turn>",
    ),
    "gpt-oss": Family(
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"), None, "<|return|>",
        ("<|return|>", "<|endoftext|>", "<|call|>"), "mean?<|end|><|start|>assistant",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>"
        "It is **8**, 八.<|return|>",
    ),
    "r1-distill": Family(
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜end▁of▁sentence｜>",),
        "mean?<｜Assistant｜><think>\n", f"{THOUGHT}\n</think>\n\nIt is **8**, 八.<｜end▁of▁sentence｜>",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Student:
    family: Family
    template: str
    path: Path
    renderer: render.Renderer

    def independent(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of what is trained: plain jinja2 and plain tokenizers, no transformers."""

        def refuse(message: str) -> None:
            raise ValueError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.globals["raise_exception"] = refuse
        tokens = {"bos_token": self.family.bos, "eos_token": self.family.eos}
        prompt = environment.from_string(self.template).render(messages=messages, add_generation_prompt=True, **tokens)
        assert prompt.endswith(self.family.asks)
        tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids for text in (prompt, self.family.trained))


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Student:
    family, template = FAMILIES[request.param], (TEMPLATES / f"{request.param}.jinja").read_text(encoding="utf-8")
    tokenizer = train_tokenizer(template, eos=family.eos, special=[*family.special, "<|endoftext|>", "<pad>"])
    if family.bos:
        tokenizer.bos_token = family.bos
    stops = [tokenizer.convert_tokens_to_ids(token) for token in family.stops]
    path = save_student(tmp_path_factory.mktemp(request.param), tokenizer, stops)
    return Student(family, template, path, render.Renderer(path, request.param))


def row(messages: list[dict[str, str]], content: str = CONTENT) -> dict[str, Any]:
    return reply(7, 0, prompt=messages, completion=[{"role": "assistant", "content": content}])


@pytest.mark.parametrize("messages", PROMPTS.values(), ids=PROMPTS)
def test_ids_and_labels_are_those_of_an_independent_renderer(
    made: Student, messages: list[dict[str, str]], tmp_path: Path
) -> None:
    prompt, trained = made.independent(messages)
    rendered = render.tokens([[row(messages)]], made.renderer, tmp_path / "a", stage="s", limit=None, drop=False)
    item = rendered[0][0]
    assert item["input_ids"] == prompt + trained
    assert item["labels"] == [-100] * len(prompt) + trained
    prompted = made.renderer.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert item["input_ids"][: len(prompted)] == prompted


def test_the_end_of_turn_is_trained_and_is_where_generation_stops(made: Student) -> None:
    ((ids, masked),) = made.renderer.encode([row([ASKED])])
    tokenizer = made.renderer.tokenizer
    assert masked < len(ids) and tokenizer.convert_ids_to_tokens(ids[-1]) in made.family.stops
    assert made.renderer.added_stop is None


def test_thoughts_are_opened_once(made: Student) -> None:
    ((ids, _masked),) = made.renderer.encode([row([{"role": "user", "content": "7 + 1?"}])])
    text = made.renderer.tokenizer.decode(ids)
    assert len(re.findall(r"<think>|analysis<\|message\|>", text)) == 1
    assert text.index(THOUGHT) > 0 and text.count(THOUGHT) == 1


TAGS = {
    "in the thoughts": ("a </think> b", "8"),
    "in the answer": ("a", "no </think> here"),
    "in both": ("a</think>", "</think>"),
}
TAGS |= {
    "as a release ends thoughts": ("a\n</think>\n\nb", "8"),
    "no thoughts": ("", "8"),
    "white space": ("\ta ", "8 \n"),
}


@pytest.mark.parametrize(("thought", "answer"), TAGS.values(), ids=TAGS)
def test_thoughts_and_answers_may_speak_of_the_tag(made: Student, thought: str, answer: str) -> None:
    ((ids, masked),) = made.renderer.encode([row([ASKED], f"<think>\n{thought}\n</think>\n\n{answer}")])
    text = made.renderer.tokenizer.decode(ids[masked:-1], skip_special_tokens=False)
    if made.renderer.final:
        header = "<|end|><|start|>assistant<|channel|>final<|message|>"
        assert text == f"<|channel|>analysis<|message|>{thought.strip()}{header}{answer}"
    else:
        opened = "<think>\n" * (not made.renderer.opening.endswith("<think>\n"))
        assert text == f"{opened}{thought}\n</think>\n\n{answer}"


CASES = {"no thoughts": "It is 8.", "no answer": "<think>\nso", "thoughts and nothing": "<think>\nso\n</think>\n\n"}


@pytest.mark.parametrize("content", CASES.values(), ids=CASES)
def test_what_no_inference_could_yield_is_refused(made: Student, content: str) -> None:
    opens, channels = made.renderer.opening.endswith("<think>\n"), bool(made.renderer.final)
    if (opens and "<think>" not in content) or (channels and content != "It is 8."):
        with pytest.raises(RenderError, match=r"Reply r7 .* no inference could yield it"):
            made.renderer.encode([row([ASKED], content)])
    else:
        ((ids, masked),) = made.renderer.encode([row([ASKED], content)])
        assert content.removeprefix("<think>\n" if opens else "") in made.renderer.tokenizer.decode(ids[masked:])


def test_channels_and_mask_prefix_do_not_go_together(made: Student) -> None:
    rows = [row([ASKED]) | {"prefix_chars": 12}]
    if made.renderer.final:
        with pytest.raises(RenderError, match="channels"):
            made.renderer.encode(rows)
    else:
        assert made.renderer.encode(rows) != made.renderer.encode([row([ASKED])])


WORDS = {
    "words of the reply": ("<think>\\nOkay, ", "<think>\nOkay, so 8\n</think>\n\n8", "so 8\n</think>\n\n8"),
    "words without line break": ("<think>Okay,", "<think>\nOkay, so 8\n</think>\n\n8", None),
    "other words": ("<think>\\nFirst, ", "<think>\nOkay, so 8\n</think>\n\n8", None),
    "line break where the reply has none": ("<think>\\n", "<think>so 8</think>8", "so 8</think>8"),
}


@pytest.mark.parametrize(("opening", "content", "trained"), WORDS.values(), ids=WORDS)
def test_words_that_the_template_puts_into_the_think_block_are_not_doubled(
    tmp_path: Path, opening: str, content: str, trained: str | None
) -> None:
    instruct = (TEMPLATES / "qwen3-instruct.jinja").read_text(encoding="utf-8")
    template = instruct.replace(
        "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}",
        f"{{{{- '<|im_start|>assistant\\n{opening}' }}}}\n{{%- endif %}}",
    )
    renderer = render.Renderer(save_student(tmp_path / "m", train_tokenizer(template)), "m")
    if trained is None:
        with pytest.raises(RenderError, match=r"r7 begins its thoughts otherwise, .* no inference could yield it"):
            renderer.encode([row([ASKED], content)])
    else:
        ((ids, masked),) = renderer.encode([row([ASKED], content)])
        assert renderer.tokenizer.decode(ids[masked:]) == f"{trained}<|im_end|>"
        assert renderer.tokenizer.decode(ids[:masked]).endswith(opening.replace("\\n", "\n"))


def test_a_prompt_that_opens_otherwise_than_the_others_is_refused(tmp_path: Path) -> None:
    template = (TEMPLATES / "qwen3-instruct.jinja").read_text(encoding="utf-8")
    moody = template + "{%- if messages[0].content == 'hush' %}<think>\n\n</think>\n\n{%- endif %}"
    renderer = render.Renderer(save_student(tmp_path / "m", train_tokenizer(moody)), "m")
    with pytest.raises(RenderError, match="r7 has another prompt"):
        renderer.encode([row([{"role": "user", "content": "hush"}])])
