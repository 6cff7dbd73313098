"""A program in the place of the large model that rewrites and judges, and of the people who read a sample: for the toy
task, as no toy model follows such orders.

`python -m builder.toy.editor --port 8102` is a real endpoint on this machine; only the replies come from rules. It
takes the tasks of `builder rewrite`, `verify` and `pairs` apart by their fences, as a model would read them.
`python -m builder.toy.editor --review FILE` writes decisions into what `builder review --export` left.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from builder.toy.task import ITEMS

_PART: Final = re.compile(
    r"^\[(?P<name>[A-Z ]+) (?P<nonce>[0-9a-f]{16})\]\n(.*?)\n\[END (?P=name) (?P=nonce)\]$", re.MULTILINE | re.DOTALL
)
_WORDS: Final = {"先": "First", "再": "Then"}
_THINGS: Final = re.compile(rf"\b({'|'.join(ITEMS)})\b")


def reply_to(messages: list[dict[str, str]]) -> str:
    """What is replied to a task. Raises KeyError for messages that are none of the three tasks."""
    found = list(_PART.finditer(messages[-1]["content"]))
    parts, nonce = {match["name"]: match[3] for match in found}, found[0]["nonce"] if found else ""
    if "REASONING" in parts:
        return rewritten(parts["REASONING"], parts["ANSWER"])
    if "FIRST REPLY" in parts:
        return _vote(nonce, "first" if is_first_better(parts) else "second")
    return _vote(nonce, "correct" if _last(parts["ANSWER"]) == _last(parts["REFERENCE"]) else "wrong")


def rewritten(reasoning: str, answer: str) -> str:
    """English words for Chinese ones, no character that could not be read, no sentence twice; the answer as it was."""
    text = reasoning.replace("\ufffd", "")
    for chinese, word in _WORDS.items():
        text = re.sub(rf"{chinese}\s*", f"{word} ", text)
    lines = dict.fromkeys(line.strip() for line in text.split("\n") if line.strip())
    return "<think>\n" + "\n".join(lines) + f"\n</think>\n\n{answer.strip()}"


def is_first_better(parts: dict[str, str]) -> bool:
    """The reply whose final number is the reference's; else the end that names the things, else the longer one."""
    replies = parts["FIRST REPLY"], parts["SECOND REPLY"]
    if "REFERENCE" in parts:
        first, second = (_last(text) == _last(parts["REFERENCE"]) for text in replies)
    else:
        named = _THINGS.search(parts["QUESTION"])
        first, second = (bool(named and named[0] in text) for text in replies)
    # In both orders the same one, where nothing else tells them apart.
    return first if first != second else (len(replies[0]), replies[0]) >= (len(replies[1]), replies[1])


def _last(text: str) -> str:
    numbers = re.findall(r"-?\d+", text)
    return numbers[-1] if numbers else text.strip()


def _vote(nonce: str, verdict: str) -> str:
    return json.dumps({"nonce": nonce, "analysis": "Compared by rule.", "verdict": verdict})


def review(path: Path) -> None:
    """Keep what reasons in three sentences or more, drop the rest; JSONL as `builder review` exports it."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for row in rows:
        row |= {"decision": "keep" if len(row["reasoning"].split("\n")) >= 3 else "drop", "reviewer": "toy-editor"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


async def _models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "toy-editor", "object": "model"}]})


async def _chat(request: web.Request) -> web.Response:
    body: dict[str, Any] = await request.json()
    try:
        text = reply_to(body["messages"])
    except KeyError as error:
        told = {"message": f"this program rewrites and judges toy replies alone: the task has no part {error}"}
        return web.json_response({"error": told}, status=400)
    sizes = sum(len(message["content"]) for message in body["messages"]) // 4, len(text) // 4
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": sizes[0], "completion_tokens": sizes[1], "total_tokens": sum(sizes)}
    return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


def application() -> web.Application:
    app = web.Application(client_max_size=2**24)
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m builder.toy.editor", description=__doc__)
    parser.add_argument("--port", type=int, default=8102)
    parser.add_argument("--review", type=Path)
    given = parser.parse_args()
    if given.review:
        return review(given.review)
    web.run_app(application(), host="127.0.0.1", port=given.port, print=None)


if __name__ == "__main__":
    main()
