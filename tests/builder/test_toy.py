"""The toy task, its tokenizers and its models."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.toy.task import Problem, no_arithmetic, problems, reply

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from builder.toy.tokenizer import (  # noqa: E402
    STUDENT_VOCABULARY,
    TEACHER_VOCABULARY,
    build_tokenizer,
)
from builder.toy.train import TEACHER, make_student  # noqa: E402

FORM = re.compile(r"<think>\n(.+)\n</think>\n\nThe answer is (\d+)\.", re.DOTALL)
VOCABULARIES = (TEACHER_VOCABULARY, STUDENT_VOCABULARY)
MAX_REPLY_TOKENS = 120


@pytest.fixture(scope="module", params=VOCABULARIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return build_tokenizer(request.param)


def calculation(problem: Problem) -> tuple[object, ...]:
    return problem.steps, problem.numbers


def by_hand(problem: Problem) -> int:
    """The result from the question's own words, not from the steps that the generator wrote down."""
    numbers = [int(text) for text in re.findall(r"\d+", problem.question)]
    first, second, *rest = numbers
    if "each" in problem.question:
        if "finds" in problem.question:
            return first * second + rest[0]
        return first * second + (rest[0] - rest[1] if len(rest) == 2 else -rest[0])
    if "in all" in problem.question:
        return first + first + second
    gives_first = problem.question.index("gives away") < problem.question.index("finds")
    return first - second + rest[0] if gives_first else first + second - rest[0]


def test_problems_are_the_same_every_time() -> None:
    assert problems(50, seed=3) == problems(50, seed=3)
    assert problems(50, seed=3) == problems(80, seed=3)[:50]
    assert problems(50, seed=3) != problems(50, seed=4)


def test_the_first_problem_is_the_one_written_here() -> None:
    assert problems(1, seed=0)[0].question == (
        "Sara buys 24 boxes with 2 stamps each and finds 17 more. How many stamps does Sara have now?"
    )


def test_without_carries_the_ones_of_every_step_stay_below_ten() -> None:
    for problem in problems(300, seed=5, carries=False):
        total = problem.numbers[0]
        for operation, index in problem.steps:
            number = problem.numbers[index]
            after = {"add": total + number, "subtract": total - number, "multiply": total * number}[operation]
            if operation != "multiply":
                assert abs(after % 10 - total % 10) == number % 10, problem.question
            total = after


def test_questions_do_not_repeat() -> None:
    questions = [problem.question for problem in problems(3000, seed=1)]
    assert len(set(questions)) == 3000


def test_held_out_calculations_never_occur_in_training() -> None:
    held_out = {calculation(problem) for problem in problems(1000, seed=7, split="held-out")}
    assert not held_out & {calculation(problem) for problem in problems(20_000, seed=0)}


def test_golds_follow_from_the_words_of_the_question() -> None:
    for problem in problems(1500, seed=2):
        assert problem.gold == str(by_hand(problem)), problem.question


def test_replies_calculate_right_and_end_with_the_gold() -> None:
    rng = random.Random(0)
    for problem in problems(500, seed=2):
        found = FORM.fullmatch(reply(problem, rng))
        assert found
        assert found[2] == problem.gold
        assert len(found[1].splitlines()) >= 3


def test_without_arithmetic_a_reply_has_the_form_and_is_right_by_accident_only() -> None:
    rng = random.Random(0)
    asked = problems(500, seed=2)
    found = [FORM.fullmatch(reply(problem, rng, no_arithmetic)) for problem in asked]
    assert all(found)
    assert sum(one[2] == problem.gold for one, problem in zip(found, asked, strict=True) if one) < 15


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_any_text_comes_back_byte_for_byte(vocabulary: int, text: str) -> None:
    core = _tokenizer(vocabulary)
    assert core.decode(core(text).input_ids, clean_up_tokenization_spaces=False) == text


_built: dict[int, Any] = {}


def _tokenizer(vocabulary: int) -> Any:
    return _built.setdefault(vocabulary, build_tokenizer(vocabulary))


def test_markers_are_single_tokens_and_only_turns_are_special(tokenizer: Any) -> None:
    text = "<|im_start|>a<think>b</think>c<|im_end|><|endoftext|>"
    assert len(tokenizer(text).input_ids) == 8
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == "a<think>b</think>c"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_digits_stand_alone(tokenizer: Any) -> None:
    pieces = [tokenizer.decode([token]) for token in tokenizer("it is 1234 or 56").input_ids]
    assert [piece.strip() for piece in pieces if re.search(r"\d", piece)] == list("123456")


def test_teacher_and_student_cut_text_differently() -> None:
    teacher, student = (_tokenizer(size) for size in VOCABULARIES)
    assert (len(teacher), len(student)) == VOCABULARIES
    texts = [reply(problem, random.Random(0)) for problem in problems(20)]
    cut = [[core.convert_ids_to_tokens(core(text).input_ids) for text in texts] for core in (teacher, student)]
    assert cut[0] != cut[1]


def test_the_chat_template_has_qwen3_form() -> None:
    core = _tokenizer(TEACHER_VOCABULARY)
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    head = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    turn = "<|im_start|>assistant\n"
    assert core.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == head + turn
    begun = [*chat, {"role": "assistant", "content": "<think>\nFirst "}]
    ongoing = core.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert ongoing == head + turn + "<think>\nFirst "
    past = [*chat, {"role": "assistant", "content": "<think>\nA\n</think>\n\nB"}, {"role": "user", "content": "V"}]
    text = core.apply_chat_template(past, tokenize=False)
    assert text == head + turn + "B<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"


def greedy(folder: Path, asked: list[Problem]) -> list[str]:
    core = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [
        core.apply_chat_template(
            [{"role": "user", "content": problem.question}], tokenize=False, add_generation_prompt=True
        )
        for problem in asked
    ]
    inputs = core(prompts, return_tensors="pt", padding=True)
    out = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_REPLY_TOKENS)
    return [core.decode(row, skip_special_tokens=True) for row in out[:, inputs.input_ids.shape[1] :]]


def test_the_shipped_teacher_answers_held_out_questions() -> None:
    asked = problems(48, seed=11, split="held-out")
    answers = [FORM.fullmatch(text) for text in greedy(TEACHER, asked)]
    assert all(answers)
    right = sum(found[2] == problem.gold for found, problem in zip(answers, asked, strict=True) if found)
    assert right >= 40


def test_the_shipped_teacher_is_small() -> None:
    sizes = [path.stat().st_size for path in TEACHER.iterdir()]
    assert sum(sizes) < 3_000_000
    names = {path.name for path in TEACHER.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_the_shipped_tokenizer_is_the_one_the_code_builds() -> None:
    shipped = transformers.AutoTokenizer.from_pretrained(TEACHER)
    assert shipped.get_vocab() == _tokenizer(TEACHER_VOCABULARY).get_vocab()


def test_a_new_student_knows_the_form_and_not_the_skill(tmp_path: Path) -> None:
    make_student(tmp_path, threads=1)
    asked = problems(40, seed=11, split="held-out")
    answers = [FORM.fullmatch(text) for text in greedy(tmp_path, asked)]
    assert sum(found is not None for found in answers) >= 28
    right = sum(found[2] == problem.gold for found, problem in zip(answers, asked, strict=True) if found)
    assert right <= 6
