"""Recipe section `teacher.batch`: requests go as files that the endpoint answers within a day, at half the price."""

from typing import Final
from urllib.parse import parse_qs

from pydantic import Field

from builder.section import Section

FIRST_REQUESTS: Final = 3
"""Requests of the first batch, of as many prompts; and batches without any reply after which the endpoint is at fault.
An endpoint that cannot serve the recipe must not cost 50,000 replies."""
_ROUTE: Final = "/batches?price_factor="


class Batch(Section):
    """`builder generate` sends through POST /v1/batches. The defaults are OpenAI's limits, prices and only window.

    A batch holds at most `max_requests` in a file of `max_bytes`; `max_open` of them are under way at a time, less
    where the provider limits what may be queued. Each reply costs the teacher's prices × `price_factor`. The endpoint
    is asked every `poll_s` seconds how far it is.
    """

    max_requests: int = Field(default=50_000, ge=1)
    max_bytes: int = Field(default=200_000_000, ge=1)
    max_open: int = Field(default=4, ge=1)
    completion_window: str = "24h"
    price_factor: float = Field(default=0.5, ge=0, le=1)
    poll_s: float = Field(default=60, gt=0, le=3600)


def batch_route(url: str, price_factor: float) -> str:
    """What the journal calls the endpoint of requests that go through batches: its price is never that of today's
    recipe.
    """
    return f"{url}{_ROUTE}{price_factor!r}"


def price_factor_of(endpoint: str) -> float:
    """What the prices are to be multiplied with for a reply of this endpoint as the journal calls it."""
    _, found, query = endpoint.rpartition("/batches?")
    return float(parse_qs(query)["price_factor"][0]) if found else 1.0
