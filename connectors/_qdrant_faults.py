"""What goes wrong between this client and a Qdrant server, as errors of ours.

The words that refusals are told by are those of the server's own sources (`StrictMode`,
`RateLimiter`, the JSON handler of the REST interface), from version 1.13 on.
"""

from __future__ import annotations

import json

import grpc  # type: ignore[import-untyped]
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from nexus_vdb.connectors._qdrant_address import Address
from nexus_vdb.errors import StoreError, StoreNotFound, StoreUnavailable

__all__ = ["IndexMissing", "TooLarge", "answered", "fault_of", "wait_asked_for"]


class TooLarge(StoreError):
    """A request that would be taken if it were smaller."""


class IndexMissing(StoreError):
    """A filter that the server takes only if the field has a payload index."""


_PASSING = {408, 429}
_GRPC_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
}
_GRPC_STATUS = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
}

_TOO_LARGE = (
    "larger than allowed",  # the 32 MiB of the REST interface
    "larger than rate limiter capacity",
    '"upsert limit"',
    '"update limit"',
    '"search batch size"',
)
_NO_INDEX = "Index required but not found"

_HINTS = {
    "Exact search disabled": "this collection has to allow it: search_allow_exact in strict mode",
    "vector indexing is disabled": "allow exact search in strict mode (search_allow_exact), or "
    "make the collection with a graph: ?hnsw=16",
    'for "limit"': "search with fewer --candidates, or raise max_query_limit in strict mode",
    "Filter condition": "use a shorter filter, or raise filter_max_conditions in strict mode",
    "Condition size": "use a shorter filter, or raise condition_max_size in strict mode",
    "limit of": "the collection is full: raise that limit in its strict mode, or delete something",
    "does not match": "see that the server is Qdrant 1.16 or newer",
}


def fault_of(error: Exception, address: Address) -> StoreError | None:
    """The error as one of ours, `StoreUnavailable` if it may pass; None if it is not the server's.

    The message of a `StoreUnavailable` is the bare reason.
    """
    if isinstance(error, ResponseHandlingException):
        if isinstance(error.source, httpx.TransportError):
            return StoreUnavailable(str(error.source) or type(error.source).__name__)
        reason = str(error.source).partition("\n")[0]
        return StoreError(
            f"{address.url} gave an answer that cannot be read: {reason}",
            hint="see that a Qdrant server of version 1.16 or newer is there",
        )
    if isinstance(error, ResourceExhaustedResponse):
        return StoreUnavailable(f"429 {error}")
    if isinstance(error, QdrantException):  # a Retry-After with a date in it, as proxies send
        return StoreUnavailable("429 Too Many Requests")
    if isinstance(error, UnexpectedResponse):
        return _refusal(error.status_code or 0, _message(error), address)
    if isinstance(error, grpc.RpcError):
        passing = error.code() in _GRPC_PASSING
        status = 503 if passing else _GRPC_STATUS.get(error.code(), 400)
        return _refusal(status, str(error.details()), address)
    return error if isinstance(error, StoreUnavailable) else None


def _message(error: UnexpectedResponse) -> str:
    try:
        return str(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        text = error.content.decode("utf-8", "replace").strip()
        return text.partition("\n")[0][:200] or error.reason_phrase


def _refusal(status: int, message: str, address: Address) -> StoreError:
    refused = f"{address.url} refused ({status}): {message}"
    if status == 413 or any(words in message for words in _TOO_LARGE):
        return TooLarge(refused, hint="send less at once")
    if status in _PASSING or status >= 500:
        return StoreUnavailable(f"{status} {message}")
    if _NO_INDEX in message:
        return IndexMissing(refused, hint="add the field to ?index=FIELD:KIND in the store's URL")
    if status == 404:
        return StoreNotFound(
            f"nothing is stored at {address.url}: {message}", hint="ingest something first"
        )
    if status in (401, 403):
        hint = "set QDRANT_API_KEY to a key that may read and write this collection"
    else:
        hints = (hint for words, hint in _HINTS.items() if words in message)
        hint = next(hints, "see the log of the server")
    return StoreError(refused, hint=hint)


def answered(error: Exception) -> bool:
    """Whether the server was there at all."""
    if isinstance(error, grpc.RpcError):
        return error.code() is not grpc.StatusCode.UNAVAILABLE
    source = getattr(error, "source", None)
    return not isinstance(source, httpx.TransportError)


def wait_asked_for(error: Exception) -> float:
    """Seconds that the server wants to be left alone; 0 where it does not say."""
    if isinstance(error, ResourceExhaustedResponse):
        return float(error.retry_after_s)
    if isinstance(error, UnexpectedResponse):
        value = error.headers.get("retry-after", "")
        return float(value) if value.isdecimal() else 0.0
    return 0.0
