"""What `builder serve` does with its options: those of one engine mean nothing to the other."""

import json
from dataclasses import dataclass
from pathlib import Path

import typer

from builder.errors import UsageError


@dataclass(frozen=True)
class Serving:
    """The options as given; None where an engine's own default holds."""

    model: str
    host: str
    port: int
    model_name: str | None
    max_model_len: int | None
    max_batch: int | None
    threads: int | None
    revision: str | None
    reasoning_parser: str | None
    tensor_parallel: int | None
    print_only: bool
    as_json: bool
    passed_on: tuple[str, ...]


def serve_with(engine: str, asked: Serving) -> None:
    """Serve until stopped. Raises UsageError for an engine or option that is not, ServeError where it cannot serve."""
    for_local = {"--max-batch": asked.max_batch, "--threads": asked.threads}
    for_vllm = {
        "--revision": asked.revision,
        "--tensor-parallel": asked.tensor_parallel,
        "--reasoning-parser": asked.reasoning_parser,
        "--print": asked.print_only or None,
        "flags after --": asked.passed_on or None,
    }
    foreign: dict[str, dict[str, object]] = {"local": dict(for_vllm), "vllm": dict(for_local)}
    if engine not in foreign:
        raise UsageError(f"--engine {engine!r} is not known; choose local (toy models, transformers) or vllm.")
    # an option that the engine would ignore is a mistake of whoever gave it
    if given := [name for name, value in foreign[engine].items() if value is not None]:
        other = "vllm" if engine == "local" else "local"
        raise UsageError(f"{', '.join(given)} means nothing to --engine {engine}; it is for --engine {other}.")
    if engine == "local":
        _serve_local(asked)
    else:
        _serve_vllm(asked)


def _serve_local(asked: Serving) -> None:
    from builder.local_server import serve

    name = asked.model_name or Path(asked.model).resolve().name
    serve(
        Path(asked.model),
        host=asked.host,
        port=asked.port,
        model_name=asked.model_name,
        max_batch=asked.max_batch or 64,
        threads=asked.threads,
        max_model_len=asked.max_model_len,
        ready=lambda url: _say(asked, "local", name, url),
    )


def _serve_vllm(asked: Serving) -> None:
    from builder.vllm_command import vllm_command
    from builder.vllm_server import free_port, printable, serve_vllm

    command = vllm_command(
        asked.model,
        host=asked.host,
        port=asked.port or free_port(asked.host),
        model_name=asked.model_name,
        revision=asked.revision,
        reasoning_parser=asked.reasoning_parser or "auto",
        tensor_parallel=asked.tensor_parallel,
        max_model_len=asked.max_model_len,
        extra=asked.passed_on,
    )
    if asked.print_only:
        line = printable(command)
        typer.echo(json.dumps({"serve": {"command": line}}) if asked.as_json else line)
        return
    code = serve_vllm(command, ready=lambda url: _say(asked, "vllm", command.name, url))
    if code:
        raise typer.Exit(code)


def _say(asked: Serving, engine: str, name: str, url: str) -> None:
    """It listens: one line, at once, because the command goes on."""
    found = {"serve": {"url": url, "model": name, "engine": engine}}
    typer.echo(json.dumps(found, ensure_ascii=False) if asked.as_json else f"serving {name} at {url}")
