"""Every table of a run and every config of a release: columns, types, units, grain. Written here and nowhere else."""

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

MESSAGES: Final = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SOURCES: Final = pa.list_(pa.struct([("source", pa.string()), ("revision", pa.string()), ("license", pa.string())]))
MARGINS: Final = tuple(round(0.05 * step, 2) for step in range(1, 11))
"""Margins (probability) for which `scores` keeps exact sentence counts: 0.05, 0.10 … 0.50."""

ROLES: Final = ("teacher", "student", "mixed", "rewrite", "judge", "eval")
CANDIDATE_ROLES: Final = ("teacher", "mixed", "rewrite")
"""Replies that a release may hold."""
PAID_ROLES: Final = (*CANDIDATE_ROLES, "judge")
"""Replies that cost what the recipe's prices say; rollouts and evaluations run on one's own machines."""
SCORE_STATUSES: Final = (
    "ok",
    "no_teacher_logprobs",
    "processed_logprobs",
    "align_error",
    "too_few_tokens",
    "student_cannot_render",
    "no_student_logprobs",
)
ROLLOUT_OUTCOMES: Final = ("cut", "not_kept", "no_edge", "teacher_cannot_continue")
REWRITE_OUTCOMES: Final = ("cut", "no_reasoning", "no_answer", "fence_left", "tags_left", "unchanged", "rewritten")
"""What a rewriting model's reply is: the last two are rewrites, the others cannot be released."""
VERDICTS: Final = ("correct", "wrong", "unscorable", "timeout", "error")
REASONING_FORMATS: Final = ("field", "tags", "prefilled", "unclosed", "none")


@dataclass(frozen=True)
class Table:
    """One table: its schema, the columns that identify a row, and the columns that say when and at what price.

    `key` is the grain. `accounting` columns never enter a row hash: they differ between two runs that decide the same.
    """

    name: str
    grain: str
    key: tuple[str, ...]
    schema: pa.Schema
    accounting: tuple[str, ...] = ()

    @property
    def content_columns(self) -> list[str]:
        """Columns that enter a row hash."""
        return [name for name in self.schema.names if name not in self.accounting]


def _column(name: str, kind: pa.DataType, unit: str, *, null: bool = True) -> "pa.Field[Any]":
    return pa.field(name, kind, nullable=null, metadata={"description": unit})


def _key(name: str, unit: str) -> "pa.Field[Any]":
    return _column(name, pa.string(), unit, null=False)


_RESPONSE_ID = _key("response_id", "request key and, where the reply was cut, the limit that cut it; 32 hex digits")
_PROMPT_ID = _key("prompt_id", "hash of the normalised messages; 32 hex digits")
_STUDENT_ID = _key("student_id", "hash of student model, revision, system prompt and dtype; 16 hex digits")

PROMPTS: Final = Table(
    "prompts",
    "prompt",
    ("prompt_id",),
    pa.schema(
        [
            _PROMPT_ID,
            _column("messages", MESSAGES, "chat messages as given, NFC, outer white space stripped", null=False),
            _column("domain", pa.string(), "math, code, science, … as the source or recipe says"),
            _column("gold", pa.string(), "reference answer; null where unknown or where sources disagree"),
            _column(
                "gold_type",
                pa.string(),
                "how to read the gold: number, integer, latex, choice, exact_text, …",
            ),
            _column("verifier", pa.string(), "name of the verifier that decides replies to this prompt"),
            _column("language", pa.string(), "BCP 47 code of the language an answer should have"),
            _column("sources", SOURCES, "every source row that gave this prompt, in order of reading", null=False),
            _column(
                "gold_conflicts",
                pa.int32(),
                "different golds that merged sources gave, beyond the first",
                null=False,
            ),
        ]
    ),
)

RESPONSES: Final = Table(
    "responses",
    "reply",
    ("response_id",),
    pa.schema(
        [
            _RESPONSE_ID,
            _PROMPT_ID,
            _column("role", pa.string(), " | ".join(ROLES), null=False),
            _column("model", pa.string(), "model label as requested", null=False),
            _column("model_revision", pa.string(), "declared commit id or weights hash"),
            _column("sample_index", pa.int32(), "0 … samples − 1", null=False),
            _column("temperature", pa.float64(), "sampling temperature", null=False),
            _column("seed", pa.int64(), "seed sent with the request"),
            _column("max_tokens", pa.int32(), "limit sent with the request, tokens"),
            _column("reasoning", pa.string(), "thinking part, outer white space stripped; null where none came"),
            _column("answer", pa.string(), "final part, outer white space stripped; null where none came"),
            _column("reasoning_format", pa.string(), " | ".join(REASONING_FORMATS), null=False),
            _column("finish_reason", pa.string(), "stop, length, tool_calls, … as the endpoint says"),
            _column("prompt_tokens", pa.int32(), "tokens by the endpoint's count"),
            _column("completion_tokens", pa.int32(), "tokens by the endpoint's count, reasoning included"),
            _column("tool_calls", pa.int32(), "tool calls in the reply", null=False),
            _column("replaced_characters", pa.int32(), "lone surrogates replaced by U+FFFD", null=False),
            _column(
                "logprobs_mode", pa.string(), "raw | processed | unknown; null where no logprobs came with the reply"
            ),
            _column("prefix_response_id", pa.string(), "reply whose beginning this one continues, or that it rewrites"),
            _column(
                "prefix_chars",
                pa.int32(),
                "characters of the released text that the prefix covers",
                null=False,
            ),
            _column("latency_s", pa.float64(), "seconds from sending to the last byte"),
            _column("cost_usd", pa.float64(), "price of this reply by the recipe's prices, USD"),
            _column("received_at", pa.timestamp("us", tz="UTC"), "when the body was complete"),
        ]
    ),
    accounting=("latency_s", "cost_usd", "received_at"),
)

LOGPROBS: Final = Table(
    "logprobs",
    "reply",
    ("response_id",),
    pa.schema(
        [
            _RESPONSE_ID,
            _column("token_ids", pa.list_(pa.int32()), "teacher token ids; empty where the endpoint gave none"),
            _column(
                "token_end",
                pa.list_(pa.int32()),
                "byte offset in the canonical text where the token ends; structure tokens repeat the one before; "
                "null where the tokens do not reproduce the text",
            ),
            _column(
                "logprob",
                pa.list_(pa.float32()),
                "nats, of the token; null where missing or not finite",
            ),
            _column(
                "nonfinite_count",
                pa.int32(),
                "logprobs that were NaN, infinite, or the −9999 sentinel",
                null=False,
            ),
            _column(
                "align_detail",
                pa.string(),
                "why token_end is null; `rescored …` where the logprobs did not come with the reply: the teacher read "
                "its text again, at temperature 1; `not rescored: …` where that failed, and logprob is empty",
            ),
        ]
    ),
)

SENTENCES: Final = Table(
    "sentences",
    "reply × student",
    ("response_id", "student_id"),
    pa.schema(
        [
            _RESPONSE_ID,
            _STUDENT_ID,
            _column("byte_end", pa.list_(pa.int32()), "byte offset in the canonical text where the sentence ends"),
            _column("teacher_tokens", pa.list_(pa.int32()), "teacher tokens of the sentence"),
            _column("student_tokens", pa.list_(pa.int32()), "student tokens of the sentence"),
            _column("p_teacher", pa.list_(pa.float32()), "exp(mean teacher logprob), probability"),
            _column("p_student", pa.list_(pa.float32()), "exp(mean student logprob), probability"),
        ]
    ),
)

SCORES: Final = Table(
    "scores",
    "reply × student",
    ("response_id", "student_id"),
    pa.schema(
        [
            _RESPONSE_ID,
            _STUDENT_ID,
            _column("status", pa.string(), " | ".join(SCORE_STATUSES), null=False),
            _column(
                "status_detail",
                pa.string(),
                "why status is not ok, with values; where it is, how the logprobs were come by if not as usual",
            ),
            _column("sentence_count", pa.int32(), "sentences of the reply, short ones included"),
            _column(
                "short_sentences",
                pa.int32(),
                "sentences under 3 teacher or 3 student tokens: not counted below",
            ),
            _column(
                "teacher_counts",
                pa.list_(pa.int32()),
                "sentences with p_teacher − p_student > 0.05, 0.10 … 0.50",
            ),
            _column(
                "student_counts",
                pa.list_(pa.int32()),
                "sentences with p_student − p_teacher > 0.05, 0.10 … 0.50",
            ),
            _column("mean_delta", pa.float64(), "mean of p_teacher − p_student over sentences that are not short"),
            _column(
                "log_ratio_nats",
                pa.float64(),
                "(sum of teacher − sum of student logprobs over the canonical text) / teacher tokens; an estimate",
            ),
            _column(
                "student_tokens",
                pa.int32(),
                "student tokens of prompt, completion and end of turn, as training renders them",
            ),
        ]
    ),
)

VERDICTS_TABLE: Final = Table(
    "verdicts",
    "reply × verifier",
    ("response_id", "verifier"),
    pa.schema(
        [
            _RESPONSE_ID,
            _column("verifier", pa.string(), "name of the verifier", null=False),
            _column("verifier_version", pa.string(), "version of the verifier's rules and library", null=False),
            _column("verdict", pa.string(), " | ".join(VERDICTS), null=False),
            _column("gold", pa.string(), "the reference answer it was compared with: another gold is judged anew"),
            _column("gold_type", pa.string(), "how that gold was read"),
            _column("extracted", pa.string(), "the answer that was compared"),
            _column("votes", pa.list_(pa.string()), "verdicts of the single checks or judge votes"),
        ]
    ),
)

FEATURES: Final = Table(
    "features",
    "reply",
    ("response_id",),
    pa.schema(
        [
            _RESPONSE_ID,
            _column("reasoning_chars", pa.int32(), "characters of the thinking part", null=False),
            _column("answer_chars", pa.int32(), "characters of the final part", null=False),
            _column("paragraph_count", pa.int32(), "paragraphs of the canonical text", null=False),
            _column(
                "longest_paragraph_chars",
                pa.int32(),
                "characters of the longest paragraph outside formulas and code",
                null=False,
            ),
            _column("sentence_count", pa.int32(), "sentences of the canonical text", null=False),
            _column("think_tags", pa.int32(), "think tags left inside reasoning or answer", null=False),
            _column("channel_markers", pa.int32(), "harmony markers left inside reasoning or answer", null=False),
            _column(
                "sentence_repeats",
                pa.int32(),
                "occurrences of the most repeated sentence of 20 characters or more outside formulas and code",
                null=False,
            ),
            _column(
                "paragraph_repeats",
                pa.int32(),
                "occurrences of the most repeated paragraph of 80 characters or more outside formulas and code",
                null=False,
            ),
            _column(
                "ngram_repeats",
                pa.int32(),
                "occurrences of the most repeated 20-gram; a formula is one word, code none (builder/ngrams.py)",
                null=False,
            ),
            _column(
                "distinct_4gram_share",
                pa.float64(),
                "distinct 4-grams / all 4-grams of the same words; null under 4 words",
            ),
            _column(
                "tail_loop_chars",
                pa.int32(),
                "characters that a block covers at the end of the thinking or answer, standing there 4 times or more",
                null=False,
            ),
            *(
                _column(f"{script}_chars", pa.int32(), f"{letters} outside formulas and code", null=False)
                for script, letters in (
                    ("latin", "Latin letters"),
                    ("cyrillic", "Cyrillic letters"),
                    ("arabic", "Arabic letters"),
                    ("han", "Han characters"),
                    ("kana", "Hiragana and Katakana"),
                    ("hangul", "Hangul"),
                    ("other", "letters of further scripts, Greek not among them,"),
                )
            ),
            _column(
                "code_fences",
                pa.int32(),
                "lines that open or close a code fence in the thinking part, or in the answer where there is none",
                null=False,
            ),
            _column(
                "refuses",
                pa.bool_(),
                "whether the answer begins with a refusal, English or Chinese (builder/refusals.py)",
                null=False,
            ),
            _column(
                "text_hash",
                pa.string(),
                "sha256 of the canonical text, lower case, white space collapsed",
                null=False,
            ),
        ],
        metadata={"version": "2"},  # another number: stored features are dropped and computed again
    ),
)

REJECTIONS: Final = Table(
    "rejections",
    "reply × broken rule",
    ("response_id", "rule_name"),
    pa.schema(
        [
            _RESPONSE_ID,
            _column("rule_name", pa.string(), "file name of the rule", null=False),
            _column("observed", pa.float64(), "what the rule measured"),
            _column("threshold", pa.float64(), "what the rule allows"),
            _column("reply", pa.int64(), "place of the reply among those of the run, as in reply_numbers"),
        ]
    ),
)

SELECTION: Final = Table(
    "selection",
    "kept row",
    ("stage", "grain_id"),
    pa.schema(
        [
            _key("selection_id", "hash of rules, params, selector and stages; 16 hex digits"),
            _key("stage", "stage of the recipe"),
            _key("kind", "sft | grpo | reward"),
            _key("grain_id", "response_id, prompt_id or chosen_id:rejected_id, by kind"),
            _column(
                "rank",
                pa.int32(),
                "rank by the selector within prompt and temperature; null where no selector ran",
            ),
            _column("position", pa.int32(), "0-based place in the first epoch; gaps are held-out rows", null=False),
        ]
    ),
)

PAIRS: Final = Table(
    "pairs",
    "preference pair",
    ("prompt_id", "chosen_id", "rejected_id"),
    pa.schema(
        [
            _PROMPT_ID,
            _key("chosen_id", "response_id of the preferred reply"),
            _key("rejected_id", "response_id of the other reply"),
            _column("votes", pa.list_(pa.string()), "chosen | rejected | tie | null, each of both orders"),
            _column("gap", pa.float64(), "votes for chosen − votes for rejected; at 0 which is chosen means nothing"),
            _column("judge_version", pa.string(), "hash of all that decides a vote, model, revision and votes"),
        ]
    ),
)

ROLLOUTS: Final = Table(
    "rollouts",
    "rollout of the latest mix",
    ("response_id",),
    pa.schema(
        [
            _key("response_id", "the rollout: a reply of role student"),
            _PROMPT_ID,
            _key("reference_id", "the selected reply to the same prompt, whose length caps the rollout"),
            _column("student_revision", pa.string(), "hash of the checkpoint's weights, configuration and tokenizer"),
            _column("weights_sha256", pa.string(), "hash of its *.safetensors, as in training.json", null=False),
            _column("base", pa.string(), "what it was trained from: org/name@commit, or weights_sha256 of a folder"),
            _column("dataset", pa.string(), "build_id of the release that it was trained on"),
            _column("stage", pa.string(), "stage of that release that ended with it"),
            _column("length_cap", pa.int32(), "limit of the rollout, student tokens", null=False),
            _column("student_tokens", pa.int32(), "its length, student tokens", null=False),
            _column("hit_cap", pa.bool_(), "whether it was still going on at the cap", null=False),
            _column("outcome", pa.string(), " | ".join(ROLLOUT_OUTCOMES), null=False),
            _column("cut_chars", pa.int32(), "characters of its completion that were kept; null where it was not cut"),
            _column("cut_share", pa.float64(), "student tokens kept / student tokens; null where it was not cut"),
            _column("continuation_id", pa.string(), "the reply of role mixed that goes on from there; null: none"),
        ]
    ),
)

REWRITES: Final = Table(
    "rewrites",
    "rewrite of the latest builder rewrite",
    ("response_id",),
    pa.schema(
        [
            _key("response_id", "the rewrite: a reply of role rewrite"),
            _PROMPT_ID,
            _key("original_id", "the teacher's reply that it rewrites"),
            _column("outcome", pa.string(), " | ".join(REWRITE_OUTCOMES), null=False),
        ]
    ),
)

REVIEWS: Final = Table(
    "reviews",
    "reply that a person decided about",
    ("response_id",),
    pa.schema(
        [
            _RESPONSE_ID,
            _column("decision", pa.string(), "keep | drop", null=False),
            _column("reviewer", pa.string(), "who decided, as the file says"),
            _column("note", pa.string(), "why, as the file says"),
            _column("file_sha256", pa.string(), "hash of the imported file", null=False),
        ]
    ),
)

SIGNATURES: Final = Table(
    "signatures",
    "candidate reply",
    ("response_id",),
    pa.schema(
        [
            _RESPONSE_ID,
            _PROMPT_ID,
            _column(
                "bands",
                pa.list_(pa.uint32()),
                "MinHash of its word 5-grams, one hash a band; empty for a text without words; see builder/dedup.py",
                null=False,
            ),
        ]
    ),
)

DUPLICATES: Final = Table(
    "duplicates",
    "candidate reply that was compared",
    ("response_id",),
    pa.schema(
        [
            _RESPONSE_ID,
            _column(
                "earlier_ids",
                pa.list_(pa.string()),
                "replies before it, by prompt_id and response_id, that are at least 0.7 similar",
                null=False,
            ),
            _column(
                "jaccards",
                pa.list_(pa.float64()),
                "exact Jaccard similarity of the sets of word 5-grams, one an earlier reply",
                null=False,
            ),
        ]
    ),
)

BENCHMARK_MATCHES: Final = pa.list_(
    pa.struct(
        [
            ("benchmark", pa.string()),
            ("revision", pa.string()),
            ("benchmark_row", pa.int32()),
            ("benchmark_column", pa.string()),
            ("shared_words", pa.int32()),
            ("row_share", pa.float64()),
            ("is_whole", pa.bool_()),
            ("shared_text", pa.string()),
        ]
    )
)

CONTAMINATIONS: Final = Table(
    "contaminations",
    "prompt that was compared",
    ("prompt_id",),
    pa.schema(
        [
            _PROMPT_ID,
            _key("compared_with", "hash of names, revisions and columns of the benchmarks; 16 hex digits"),
            _column(
                "matches",
                BENCHMARK_MATCHES,
                "rows of benchmarks that share 8 words in a row or are the same question, the closest ones: number "
                "from 1, column, words of the longest shared run, that / all words of the row, same question, the run",
                null=False,
            ),
        ]
    ),
)

TABLES: Final = {
    table.name: table
    for table in (
        PROMPTS,
        RESPONSES,
        LOGPROBS,
        SENTENCES,
        SCORES,
        VERDICTS_TABLE,
        FEATURES,
        REJECTIONS,
        SELECTION,
        PAIRS,
        ROLLOUTS,
        REWRITES,
        REVIEWS,
        SIGNATURES,
        DUPLICATES,
        CONTAMINATIONS,
    )
}

RELEASE_SFT: Final = pa.schema(
    [
        _column(
            "prompt",
            MESSAGES,
            "chat messages before the reply, system prompt of the student included",
            null=False,
        ),
        _column("completion", MESSAGES, "one assistant message: think block, then answer", null=False),
        _column("position", pa.int32(), "0-based place in the first epoch; gaps are held-out rows", null=False),
        _RESPONSE_ID,
        _PROMPT_ID,
        _column("domain", pa.string(), "domain of the prompt"),
        _column("temperature", pa.float64(), "sampling temperature", null=False),
        _column(
            "policy",
            pa.string(),
            "teacher: all text by the teacher; mixed: begins with the student's; rewrite: the teacher's reply, "
            "rewritten by the model that the card names",
            null=False,
        ),
        _column("teacher", pa.string(), "model label; of a rewrite that of the model that reasoned", null=False),
        _column("teacher_revision", pa.string(), "declared commit id or weights hash"),
        _column("n_candidates", pa.int32(), "replies to this prompt at this temperature", null=False),
        _column("teacher_sentences", pa.int32(), "sentences above the margin; null where not scored"),
        _column("sentence_count", pa.int32(), "sentences of the reply; null where not scored"),
        _column("mean_delta", pa.float64(), "mean p_teacher − p_student; null where not scored"),
        _column(
            "student_tokens",
            pa.int32(),
            "student tokens of the rendered row; null where not scored, or where its thoughts are left out",
        ),
        _column("prefix_chars", pa.int32(), "characters of the completion that the student wrote", null=False),
        _column("student_revision", pa.string(), "hash of the checkpoint that wrote them; null where there are none"),
        _column("source", pa.string(), "first source of the prompt"),
        _column("source_license", pa.string(), "license of that source as declared"),
    ]
)

RELEASE_GRPO: Final = pa.schema(
    [
        _column("prompt", MESSAGES, "chat messages", null=False),
        _column("solution", pa.string(), "reference answer; null where the prompt has none"),
        _column("gold_type", pa.string(), "how to read the reference answer"),
        _column("verifier", pa.string(), "verifier that decides replies"),
        _column("language", pa.string(), "BCP 47 code of the asked language"),
        _column("domain", pa.string(), "domain of the prompt"),
        _column("position", pa.int32(), "0-based place in the first epoch; gaps are held-out rows", null=False),
        _PROMPT_ID,
    ]
)

RELEASE_REWARD: Final = pa.schema(
    [
        _column("prompt", MESSAGES, "chat messages", null=False),
        _column("chosen", MESSAGES, "the preferred reply, one assistant message", null=False),
        _column("rejected", MESSAGES, "the other reply, one assistant message", null=False),
        _column("gap", pa.float64(), "score of chosen − score of rejected"),
        _column("position", pa.int32(), "0-based place in the first epoch; gaps are held-out rows", null=False),
    ]
)

RELEASE_KINDS: Final = {"sft": RELEASE_SFT, "grpo": RELEASE_GRPO, "reward": RELEASE_REWARD}

RELEASE_CANDIDATES: Final = pa.schema(
    [
        _column("prompt", MESSAGES, "chat messages of the prompt", null=False),
        _column("gold", pa.string(), "reference answer"),
        _column("gold_type", pa.string(), "how to read the reference answer"),
        _column("domain", pa.string(), "domain of the prompt"),
        *[RESPONSES.schema.field(name) for name in RESPONSES.content_columns],
        _column("student_id", pa.string(), "student of the scores; null where not scored"),
        *[
            SCORES.schema.field(name).with_nullable(True)
            for name in SCORES.schema.names
            if name not in ("response_id", "student_id", "sentence_count", "status", "status_detail")
        ],
        _column("score_status", pa.string(), "status of the scores; null where not scored"),
        _column("verdict", pa.string(), "verdict of the prompt's verifier"),
        _column("extracted", pa.string(), "the answer that was compared"),
        *[FEATURES.schema.field(name).with_nullable(True) for name in FEATURES.schema.names if name != "response_id"],
        _column("rejected_by", pa.list_(pa.string()), "every rule that this reply breaks, sorted"),
    ]
)
