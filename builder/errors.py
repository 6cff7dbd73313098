"""Every error that `builder` raises on purpose. A message says what happened with values, why it matters, what to do.

BuilderError
├── UsageError          the command line or a recipe asks for something that does not exist (exit 2)
├── SourceError         a prompt source cannot be read, or a row of it cannot become a prompt
├── EndpointError       an endpoint refuses, is unreachable, or answers what cannot be a reply
│   ├── EmptyReply      a reply without reasoning, answer or tool call: asked again, never a sample
│   └── FatalReply      the same request would fail again; asking again would only cost money
├── BudgetError         a limit on money or tokens ended the step
├── JournalError        a paid reply could not be recorded, or a record cannot be trusted
├── TableError          a table of the run is missing, unreadable or breaks its schema
├── ClusterError        the cluster cannot do a shard: no place, workers that keep dying, nodes that do not fit
├── ScoreError          divergence cannot be computed as asked
├── VerifyError         a verifier cannot run at all (never: an answer is wrong)
├── SqlError            a SQL file breaks its contract, or refuses to run within its limits
├── MixError            there are no mixed-policy rows to be had from this checkpoint, teacher or selection
├── ReleaseError        a release cannot be written or does not match its manifest
├── SecretError         text that would be published holds a key
├── HubError            the Hub refuses, is unreachable, or holds something else than was sent
└── ServeError          a model cannot be served here
"""


class BuilderError(Exception):
    """Base of all; the command line prints the message and exits with `exit_code`."""

    exit_code = 1


class UsageError(BuilderError):
    """The command line or a recipe asks for something that does not exist."""

    exit_code = 2


class SourceError(BuilderError):
    """A prompt source cannot be read, or a row of it cannot become a prompt."""


class EndpointError(BuilderError):
    """An endpoint refuses, is unreachable, or answers what cannot be a reply. `kind` is what counts are kept by."""

    kind = "unreadable answer"


class EmptyReply(EndpointError):
    """A reply without reasoning, answer or tool call: asked again, never a sample."""

    kind = "empty reply"


class FatalReply(EndpointError):
    """The same request would fail again; asking again would only cost money."""

    kind = "unusable reply"


class BudgetError(BuilderError):
    """A limit on money or tokens ended the step."""


class JournalError(BuilderError):
    """A paid reply could not be recorded, or a record cannot be trusted."""


class TableError(BuilderError):
    """A table of the run is missing, unreadable or breaks its schema."""


class ClusterError(BuilderError):
    """The cluster cannot do a shard: nothing to run it on, workers that keep dying, or nodes that do not fit."""


class ScoreError(BuilderError):
    """Divergence cannot be computed as asked."""


class VerifyError(BuilderError):
    """A verifier cannot run at all; an answer that is merely wrong is a verdict, not an error."""


class SqlError(BuilderError):
    """A SQL file breaks its contract, or refuses to run within its limits."""


class MixError(BuilderError):
    """There are no mixed-policy rows to be had from this checkpoint, teacher or selection."""


class ReleaseError(BuilderError):
    """A release cannot be written or does not match its manifest."""


class SecretError(BuilderError):
    """Text that would be published holds a key."""


class HubError(BuilderError):
    """The Hub refuses, is unreachable, or holds something else than was sent.

    `status` is what it answered, None where it did not; `is_missing` says that there is no such dataset.
    """

    def __init__(self, message: str, *, status: int | None = None, is_missing: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_missing = is_missing

    @property
    def is_transient(self) -> bool:
        """Whether the same request may go well later; one that changes something may have done so nevertheless."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


class ServeError(BuilderError):
    """A model cannot be served here."""
