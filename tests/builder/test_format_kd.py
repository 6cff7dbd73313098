"""Teacher tokens in an export: DASD's companion, and rows for Axolotl's KD plugin."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from format_toys import SYSTEM, read, released, sft, turn
from score_toys import TEACHER, logprobs, reply, save_student

from builder import format_files
from builder.config import Student
from builder.errors import ReleaseError
from builder.formats import export
from builder.import_files import BadRow, tokens_of
from builder.text import completion_text


def held(*names: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and their logprobs, in tokens of TEACHER."""
    replies = [reply(name, reasoning=f"One and two is three, {name}. 每个苹果三元。") for name in names]
    rows = [
        sft(row["response_id"], place, [SYSTEM, turn("user", "What is 1 + 2?")],
            completion_text(row["reasoning"], row["answer"]))
        for place, row in enumerate(replies)
    ]  # fmt: skip
    return rows, [logprobs(row) for row in replies]


def test_dasds_companion_gives_the_tokens_back(tmp_path: Path) -> None:
    rows, tokens = held("a", "b", "c", "d")
    tokens[0]["logprob"][2] = None
    tokens[2]["token_ids"] = []
    tokens[3] |= {"token_ids": [], "logprob": []}
    folder = released(tmp_path, {"low": ("sft", rows)}, [*tokens, logprobs(reply("of-another-stage"))])
    found = export(folder, "dasd", tmp_path / "out")
    assert found.rows == {"stage1-train-data.jsonl": 4, "logprob.parquet": 2}
    assert any(note.startswith("2 replies have no tokens in logprob.parquet") for note in found.notes)
    back = [row for _, row in tokens_of(found.path / "logprob.parquet")]
    for row, kept in zip(back, tokens[:2], strict=True):
        assert not isinstance(row, BadRow)
        assert (row.uuid, row.ids.tolist()) == (kept["response_id"], kept["token_ids"])
        np.testing.assert_array_equal(row.logprobs, np.array(kept["logprob"], np.float32))
    assert [row.nulls for row in back if not isinstance(row, BadRow)] == [1, 0]


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """A student with the teacher's tokenizer."""
    return Student(model=str(save_student(tmp_path_factory.mktemp("kd") / "student", tokenizer=TEACHER)))


def test_each_target_stands_where_its_token_is_predicted(tmp_path: Path, sharing: Student) -> None:
    rows, tokens = held("a", "b")
    tokens[0]["logprob"][8] = None
    found = export(released(tmp_path, {"low": ("sft", rows)}, tokens), "axolotl-kd", tmp_path / "out", student=sharing)
    for row, sent, kept in zip(read(found.path / "low.parquet"), rows, tokens, strict=True):
        assert {len(values) for values in row.values()} == {len(row["input_ids"])}
        text = TEACHER.decode(row["input_ids"], skip_special_tokens=False)
        labels = [label for label in row["labels"] if label != -100]
        prompt = len(row["labels"]) - len(labels)
        assert labels == row["input_ids"][prompt:]  # what the trainer trains: the reply, then the end of the turn
        assert TEACHER.decode(labels, skip_special_tokens=False) == sent["completion"][0]["content"] + "<|im_end|>"
        assert text.startswith("<|im_start|>system\nYou are a helpful assistant.") and text.count("system\n") == 1
        known = [(one, value) for one, value in zip(kept["token_ids"], kept["logprob"], strict=True)]
        ends = [0, *kept["token_end"]]
        content = [
            pair for pair, one, two in zip(known, ends, ends[1:], strict=False) if two > one and pair[1] is not None
        ]
        places = [place for place, (mask,) in enumerate(row["target_mask"]) if mask]
        targets = [(row["target_token_ids"][place][0], row["target_logprobs"][place][0]) for place in places]
        assert targets == [(one, np.float32(value)) for one, value in content]
        assert [row["input_ids"][place + 1] for place in places] == [one for one, _ in content]
    assert pq.read_schema(found.path / "low.parquet").field("target_logprobs").type == pa.list_(pa.list_(pa.float32()))


def test_prompts_are_rendered_as_released(tmp_path: Path, sharing: Student) -> None:
    rows, tokens = held("a")
    rows[0]["prompt"] = [turn("user", "What is 1 + 2?")]
    folder = released(tmp_path, {"low": ("sft", rows)}, tokens)
    (row,) = read(export(folder, "axolotl-kd", tmp_path / "out", student=sharing).path / "low.parquet")
    assert TEACHER.decode(row["input_ids"], skip_special_tokens=False).startswith("<|im_start|>user\nWhat is 1 + 2?")


def test_logprobs_find_their_rows_where_memory_does_not_hold_them(
    tmp_path: Path, sharing: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, tokens = held(*(f"row {place}" for place in range(12)))
    folder = released(tmp_path, {"low": ("sft", rows)}, [*tokens[::-1], logprobs(reply("of-another-stage"))])
    export(folder, "axolotl-kd", tmp_path / "at-once", student=sharing)
    monkeypatch.setattr(format_files, "_PILE_BYTES", 2000)
    export(folder, "axolotl-kd", tmp_path / "in-piles", student=sharing)
    assert read(tmp_path / "in-piles" / "low.parquet") == read(tmp_path / "at-once" / "low.parquet")


def test_axolotls_loss_is_cross_entropy_weighted_by_the_teachers_probability(tmp_path: Path, sharing: Student) -> None:
    liger = pytest.importorskip("axolotl.integrations.kd.kernels.liger", reason="axolotl is not installed")
    import torch
    from transformers import AutoModelForCausalLM

    rows, tokens = held("a")
    found = export(released(tmp_path, {"low": ("sft", rows)}, tokens), "axolotl-kd", tmp_path / "out", student=sharing)
    (row,) = read(found.path / "low.parquet")
    batch = {name: torch.tensor([values]) for name, values in row.items()}
    model = AutoModelForCausalLM.from_pretrained(sharing.model, dtype=torch.float32)
    with torch.no_grad():
        hidden = model.model(batch["input_ids"]).last_hidden_state
        q = model.lm_head(hidden)[0, :-1].log_softmax(-1).gather(-1, batch["input_ids"][0, 1:, None])[:, 0]
    loss = liger.LigerFusedLinearKLTopKLogprobLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta=0.0,
        compiled=False,
        compute_ce_loss=False,
        normalize_topk=False,
    )(
        model.lm_head.weight, hidden, batch["target_token_ids"], batch["target_logprobs"], batch["target_mask"],
        true_labels=batch["labels"],
    )  # fmt: skip
    (kept,) = tokens
    p = torch.tensor(
        [
            value
            for value, one, two in zip(kept["logprob"], [0, *kept["token_end"]], kept["token_end"], strict=False)
            if two > one
        ]
    )
    q = q[[place for place, (mask,) in enumerate(row["target_mask"]) if mask]]
    assert float(loss) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-4)


def test_without_logprobs_or_a_shared_tokenizer_there_is_no_kd(tmp_path: Path, sharing: Student, student: Path) -> None:
    rows, tokens = held("a", "b")
    bare = released(tmp_path / "bare", {"low": ("sft", rows)})
    with pytest.raises(ReleaseError, match=r"no config logprobs.*release.logprobs: true"):
        export(bare, "axolotl-kd", tmp_path / "out", student=sharing)
    some = released(tmp_path / "some", {"low": ("sft", rows)}, tokens[:1])
    with pytest.raises(ReleaseError, match="1 rows of stage low have no teacher logprobs in config `logprobs`: b"):
        export(some, "axolotl-kd", tmp_path / "out", student=sharing)
    mixed = released(tmp_path / "mixed", {"low": ("sft", [rows[0] | {"prefix_chars": 3}])}, tokens)
    with pytest.raises(ReleaseError, match="1 rows of stage low begin with text that the student wrote"):
        export(mixed, "axolotl-kd", tmp_path / "out", student=sharing)
    whole = released(tmp_path / "whole", {"low": ("sft", rows)}, tokens)
    with pytest.raises(ReleaseError, match=r"2 rows of stage low .*must share a tokenizer: a \(the tokens differ"):
        export(whole, "axolotl-kd", tmp_path / "out", student=Student(model=str(student)))
    nameless = released(tmp_path / "nameless", {"low": ("sft", rows)}, tokens, student=None)
    with pytest.raises(ReleaseError, match="names no student"):
        export(nameless, "axolotl-kd", tmp_path / "out")
    assert not (tmp_path / "out").exists()
