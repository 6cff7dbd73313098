"""The toy tokenizers: byte-level BPE with Qwen3's markers, small vocabularies, and every byte in them.

Any UTF-8 text comes back byte for byte: there is no normaliser, and the alphabet holds all 256 bytes.
"""

import random
from typing import TYPE_CHECKING

from builder.toy.task import problems, reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"

TEACHER_VOCABULARY = 467  # every word of the task is one token; the generated text yields no further merge
STUDENT_VOCABULARY = 416  # the rarer words fall apart, so the two cut the same text differently
MAX_POSITIONS = 1024

# As Qwen2 and Qwen3 split text, but a blank stays with the digit after it: words with the blank before them,
# digits one by one, line breaks apart.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen3's form for text-only chats. Earlier answers lose their think block, the last message stays as it is,
# so that `continue_final_message` continues it to the letter.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' and not loop.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def build_tokenizer(vocabulary: int, seed: int = 0) -> "PreTrainedTokenizerFast":
    """Train a tokenizer of exactly `vocabulary` entries on generated questions and replies."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, TURN_START, TURN_END]
    thinking = [AddedToken(tag, special=False, normalized=False) for tag in (THINK_START, THINK_END)]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    texts = [text for problem in problems(500, seed) for text in (problem.question, reply(problem, rng))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(thinking),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bodies = (text.replace(THINK_START, "").replace(THINK_END, "") for text in texts)
    core.train_from_iterator(bodies, trainer)
    core.add_tokens(thinking)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=PAD,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
