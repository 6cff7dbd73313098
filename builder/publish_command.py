"""What `builder publish` does, apart from the command line: which release goes where, and what is shown of it."""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from builder.errors import ReleaseError, UsageError
from builder.options import Context

if TYPE_CHECKING:
    from builder.config import Recipe
    from builder.console import Reporter
    from builder.publish_plan import Plan

KEY_VARIABLES: Final = ("HF_TOKEN", "OPENAI_API_KEY")


def publish(
    context: Context,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="ORG/NAME", help="Dataset on the Hub; default release.repo.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; default private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show it and send nothing.")] = False,
) -> None:
    """releases/vN → the Hub: one commit with data, card, manifest and SQL, checked there; then its immutable tag."""
    from builder.hub import HubDataset, check_name
    from builder.publish import check_release
    from builder.publish import publish as send
    from builder.publish_plan import plan
    from builder.release import latest_release
    from builder.secrets_scan import own_keys

    name = repo or context.recipe.release.repo
    if name is None:
        raise UsageError("builder publish needs --repo ORG/NAME, or release.repo in the recipe.")
    check_name(name)
    release = latest_release(context.run)
    if release is None:
        raise ReleaseError(f"{context.run.root} holds no release yet: nothing to publish. Run builder release first.")
    keys = own_keys(key_variables(context.recipe))
    with context.reporter.progress(f"publish {release.version}") as meter:

        def progress(what: str, done: int, total: int) -> None:
            meter.step(f"publish {release.version}: {what}, bytes", done, total)

        if dry_run:
            made = plan(release, HubDataset(name, writes=True), public=public)
            if made.done is None:
                check_release(release, made.files, keys, progress)
        else:
            made = send(release, name, public=public, keys=keys, progress=progress)
    show_publication(context.reporter, made, public=public, dry_run=dry_run)


def key_variables(recipe: "Recipe") -> set[str]:
    """Variables of the environment that may hold keys of this recipe's endpoints, or ours."""
    return {*KEY_VARIABLES, *_values(recipe.resolved(), "api_key_env")}


def show_publication(reporter: "Reporter", made: "Plan", *, public: bool, dry_run: bool) -> None:
    """Say what went where or would go: version, files, bytes; of a dry run also the card."""
    changes = _changes(made)
    private = made.remote.private if made.remote.head is not None else not public
    url = f"{made.url}/tree/{made.version if made.done is None else made.commit}"
    reporter.result(
        {
            "repo": made.repo,
            "version": made.version,
            "published": made.done is None and not dry_run,
            "nothing_to_do": made.done,
            "commit": made.commit,
            "private": private,
            "url": url,
            "new_bytes": made.new_bytes,
            "files": changes,
            **({"card": made.card} if dry_run and made.card is not None else {}),
        }
    )
    if made.done is not None:
        reporter.line(f"{made.version}: {made.done}; nothing to publish. {made.repo} at commit {made.commit}")
        return
    if dry_run:
        rows = [tuple(change.values()) for change in changes]
        reporter.table(f"{made.version} to {made.repo}", ("file", "change", "bytes"), rows)
    counts = Counter(change["change"] for change in changes)
    told = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
    seen = "private" if private else "public"
    verb = "would publish" if dry_run else "published"
    reporter.line(f"{verb} {made.version} of {made.repo} ({seen}): {told} files; at most {made.new_bytes:,} new bytes")
    if not dry_run:
        reporter.line(f"commit {made.commit}, tag {made.version}: {url}")
    elif made.card is not None:
        reporter.line(f"\n{made.card}")
    if public and private:
        reporter.warn(f"{made.repo} is private and stays so; change that in its settings on the Hub.")


def _changes(made: "Plan") -> list[dict[str, Any]]:
    changed = set(made.changed)
    listed = [
        {"path": path, "change": _kind(path in changed, path in made.remote.files), "bytes": file.size}
        for path, file in sorted(made.files.items())
    ]
    return listed + [{"path": path, "change": "deleted", "bytes": 0} for path in made.deleted]


def _kind(is_changed: bool, is_there: bool) -> str:
    return ("changed" if is_there else "new") if is_changed else "same"


def _values(node: Any, key: str) -> Iterator[str]:
    """Texts under a key, however deep."""
    if isinstance(node, dict):
        for name, inner in node.items():
            if name == key and isinstance(inner, str):
                yield inner
            else:
                yield from _values(inner, key)
    elif isinstance(node, list):
        for inner in node:
            yield from _values(inner, key)
