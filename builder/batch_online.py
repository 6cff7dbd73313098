"""What a call that asks online does about offline batches of earlier calls: they are paid for, so they come first."""

from collections.abc import Iterator

from builder.ask import Asker
from builder.batch import Batches
from builder.batch_config import Batch
from builder.batch_journal import under_way, unsettled
from builder.requests import Request


async def take_open_batches(
    asker: Asker, missing: Iterator[Request], *, answered_before: bool, forget_missing: bool
) -> Iterator[Request]:
    """Wait for the journal's open batches and take their results; what is left of `missing` may be asked online.

    Requests in open batches of other shards count as failed: asking them here would pay twice. Raises as
    `Batches.send`.
    """
    settled: set[str] = set()
    for sent in unsettled(asker.journal.path)[:1]:  # all of them are taken with the first
        lanes = {lane.endpoint.url: lane for lane in asker.client.lanes}
        lane = lanes.get(sent.url, asker.client.lanes[0])
        batches = Batches(asker, lane, Batch(), answered_before=answered_before, takes_only=True)
        await batches.send(iter(()), needs_logprobs=False, forget_missing=forget_missing)
        settled = batches.settled
    elsewhere = under_way(asker.journal.path.parent)
    return _without(asker, missing, settled, elsewhere) if settled or elsewhere else missing


def _without(asker: Asker, missing: Iterator[Request], settled: set[str], elsewhere: set[str]) -> Iterator[Request]:
    for request in missing:
        if request.key in elsewhere:
            asker.tally.failed += 1
            asker.tally.last_error = "a request is in an open batch that another shard has sent and has to take"
        elif request.key not in settled:
            yield request
