"""Keys are found wherever text goes out, shown to nobody, and not seen where there are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.errors import SecretError
from builder.secrets_scan import masked, own_keys, refuse_secrets

HF = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345"
KEYS = {
    "Hugging Face token": HF,
    "API key": "sk-proj-a8Kd93mQpZ72Lx_0vTnR5yWc1-uEoBi4Hs6",
    "AWS access key": "AKIA2E0A8F3B244C9986",
    "GitHub token": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "Google API key": "AIzaSyD3b9Kq7LmN0pQrStUvWxYz12345678abc",
    "Slack token": "xoxb-263594206564-FGqddMF8t08v8N7Oq4i57vs1",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAx4UbaDzY5xjW6hc9jwN0mX33XpTDVW5WHsb6",
    "JSON web token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "URL with a password": "postgres://admin:Tr0ub4dor@db.corp.net/x",
}
MESSAGE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def parquet(path: Path, column: pa.Array, ids: list[str] | None = None, name: str = "completion") -> Path:
    numbers = pa.array(range(len(column)))
    columns = {"position": numbers, name: column} | ({"response_id": pa.array(ids)} if ids else {})
    pq.write_table(pa.table(columns), path)
    return path


def found(texts: dict[str, str | Path], own: tuple[str, ...] = ()) -> str:
    with pytest.raises(SecretError) as error:
        refuse_secrets(texts, own)
    return str(error.value)


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_is_found_and_never_shown(tmp_path: Path, kind: str) -> None:
    text = f"Let x = 2.\nThe value is {KEYS[kind]} as said."
    rows = pa.array([None, [{"role": "user", "content": "1 + 1?"}], [{"role": "assistant", "content": text}]], MESSAGE)
    path = parquet(tmp_path / "a.parquet", rows, ["r0", "r1", "r2"])
    for message in (found({"README.md": text}), found({"data/a.parquet": path})):
        secret = "Tr0ub4dor" if "Tr0ub4dor" in text else KEYS[kind][4:14]
        assert f": {kind} " in message and secret not in message
    assert "README.md, line 2" in found({"README.md": text})
    assert "data/a.parquet, column completion, response_id r2" in found({"data/a.parquet": path})
    assert "release.withdrawn in the recipe (r2)" in found({"data/a.parquet": path})


@pytest.mark.parametrize(
    "text",
    [
        "a low-risk-of-overfitting-and-2-more-things-as-well estimator, disk-0123456789012345678901234567",
        "sk-learn-based-classification-pipeline-number-2-of-all", "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx1",
        "hf_hub_download(repo_id='a/b', filename='c') and hf_" + "x" * 34,
        r"\frac{AKIA}{2} + x_{AIza} \cdot eyJ.eyJ. = -----BEGIN-----",
        "AKIAIOSFODNN7EXAMPLE", "https://en.wikipedia.org/wiki/Ratio_3:4@5", "http://host:8000/v1",
        "postgresql://user:password@localhost:5432/db and https://user:<token>@github.com/x and a://b:$PW@c.de",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "the ratio 3:4 and f: X -> Y at x@y, i.e. ://",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_key_is_let_through(tmp_path: Path, text: str) -> None:
    refuse_secrets({"README.md": text, "a.parquet": parquet(tmp_path / "a.parquet", pa.array([text]))}, ())


@pytest.mark.parametrize(
    "column",
    [
        lambda: pa.array(["x", f"a {HF}"]),
        lambda: pa.array(["x", f"a {HF}"], pa.large_string()),
        lambda: pa.array(["x", f"a {HF}"], pa.string_view()),
        lambda: pa.array(["x", f"a {HF}"]).dictionary_encode(),
        lambda: pa.array([["x"], ["y", f"a {HF}"]]),
        lambda: pa.array([[], [{"role": "user", "content": [f"a {HF}"]}]]),
        lambda: pa.array([None, {"deep": {"er": f"a {HF}"}}]),
        lambda: pa.array([[], [("k", HF)]], pa.map_(pa.string(), pa.string())),
    ],
)
def test_strings_are_found_however_they_are_stored(tmp_path: Path, column: Callable[[], Any]) -> None:
    assert "column text, row 1: Hugging Face token hf_A…" in found(
        {"a": parquet(tmp_path / "a.parquet", column(), name="text")}
    )


def test_rows_behind_the_first_batch_are_named_by_their_place(tmp_path: Path) -> None:
    texts = pa.array(["x"] * 9_000 + [HF])
    assert "row 9,000" in found({"a": parquet(tmp_path / "a.parquet", texts)})


def test_all_places_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array([HF] * 12), [f"r{number:02}" for number in range(12)])
    message = found({"a": path})
    assert message.startswith("12 places hold") and "… and 2 more" in message
    assert message.count("response_id") == 10 and "r00, r01, r02" in message and "r10, r11" in message


def test_the_keys_of_this_process_are_found_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "A": "correct1horse",
        "B": "not-needed",
        "C": "EMPTY",
        "D": "a-long-one-without-digits",
    }.items():
        monkeypatch.setenv(name, value)
    own = own_keys(["A", "B", "C", "D", "UNSET"])
    assert own == ("a-long-one-without-digits", "correct1horse")
    message = found({"recipe.yaml": "key: correct1horse\n"}, own)
    assert "key of this process corr… (13 characters)" in message and "correct1horse" not in message
    refuse_secrets({"recipe.yaml": "not-needed EMPTY"}, own)


def test_messages_hide_keys() -> None:
    text = masked(f"Illegal header value b'Bearer {HF}', asked with correct1horse", ("correct1horse",))
    assert text == "Illegal header value b'Bearer hf_A… (35 characters)', asked with corr… (13 characters)"
