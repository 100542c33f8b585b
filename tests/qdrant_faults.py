"""How a Qdrant server fails: what its own sources say, and what networks do to requests."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

from nexus_vdb.connectors._qdrant_filter import indexes_needed, plain_key

if TYPE_CHECKING:
    from tests.qdrant_server import QdrantServer

Json = dict[str, Any]

Fault: TypeAlias = "int | str | tuple[int, str]"
"""A status to answer with, or that and a Retry-After, or one of

    cut     hang up at once
    half    hang up when half of the request has come
    mute    carry it out, hang up then
    torn    carry it out, hang up in the middle of the answer
    slow    carry it out, answer late
    queued  carry it out, but say that it is still waiting

or "" for none.
"""


class RefusedError(Exception):
    """Answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    """What came in: for tests that look at the traffic."""

    method: str
    path: str
    size: int
    headers: dict[str, str]
    body: Any


def storm(seed: int, share: float) -> Callable[[], Fault]:
    """Faults of all kinds at random, for that share of the requests."""
    draw = random.Random(seed)
    kinds: list[Fault] = ["cut", "half", "mute", "torn", "queued"]
    kinds += [500, 502, 503, 504, 408, 429, (429, "0"), (503, "0")]
    return lambda: draw.choice(kinds) if draw.random() < share else ""


# Strict mode


def check_strictly(
    method: str, path: str, body: Any, *, strict: Json, there: Mapping[str, Json]
) -> None:
    """Refuse what a collection in strict mode refuses, in the words of the server."""
    if not strict.get("enabled") or not path.partition("/points")[1]:
        return
    if method == "PUT":
        _check_limit(len(body["batch"]["ids"]), strict, "upsert_max_batchsize", "upsert limit")
    elif path.endswith("/points/batch"):
        for one in body["operations"]:
            count = len(one.get("update_vectors", {}).get("points", []))
            _check_limit(count, strict, "upsert_max_batchsize", "update limit")
    elif "searches" in body:
        _check_limit(len(body["searches"]), strict, "search_max_batchsize", "search batch size")
        for search in body["searches"]:
            for stage in _stages(search):
                _check_read(stage, strict, there)
    elif path.endswith("/delete"):
        _check_filter(body.get("filter"), strict, there, allowed="unindexed_filtering_update")
    else:
        _check_read(body, strict, there)


def _stages(search: Json) -> Iterator[Json]:
    yield search
    inner = search.get("prefetch") or []
    for one in inner if isinstance(inner, list) else [inner]:
        yield from _stages(one)


def _check_read(body: Json, strict: Json, there: Mapping[str, Json]) -> None:
    _check_limit(body.get("limit"), strict, "max_query_limit", "limit")
    _check_filter(body.get("filter"), strict, there, allowed="unindexed_filtering_retrieve")
    exact = body.get("exact") or (body.get("params") or {}).get("exact")
    if exact and strict.get("search_allow_exact") is False:
        raise RefusedError(400, "Bad request: Exact search disabled!. Help: Set exact=false.")


def _check_limit(value: int | None, strict: Json, setting: str, name: str) -> None:
    most = strict.get(setting)
    if most is not None and value is not None and value > most:
        raise RefusedError(
            400,
            f'Bad request: Limit exceeded {value} > {most} for "{name}". '
            f'Help: Reduce the "{name}" parameter to or below {most}.',
        )


def _check_filter(
    where: Json | None, strict: Json, there: Mapping[str, Json], *, allowed: str
) -> None:
    if where is None:
        return
    where = _without_nones(where)
    if strict.get(allowed) is False:
        for key, kinds in indexes_needed(where).items():
            found = there.get(plain_key(key), {}).get("data_type")
            if found is None or kinds - {found}:
                names = ", ".join(sorted(kinds)) or "bool, datetime, float, integer, keyword"
                raise RefusedError(
                    400,
                    f'Bad request: Index required but not found for "{plain_key(key)}" of one of '
                    f"the following types: [{names}]. "
                    "Help: Create an index for this key or use a different filter.",
                )
    size = max((len(one) for one in _choices(where)), default=0)
    if size > strict.get("condition_max_size", size):
        raise RefusedError(
            400,
            f"Bad request: Condition size limit reached ({size} > {strict['condition_max_size']}). "
            "Help: Reduce the size of your condition.",
        )


def _without_nones(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nones(one) for key, one in value.items() if one is not None}
    return [_without_nones(one) for one in value] if isinstance(value, list) else value


def _choices(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key in ("any", "has_id"):
                yield one
            else:
                yield from _choices(one)
    elif isinstance(value, list):
        for one in value:
            yield from _choices(one)


# HTTP


class Handler(BaseHTTPRequestHandler):
    """One connection to a `QdrantServer`."""

    protocol_version = "HTTP/1.1"
    methods: ClassVar = ("GET", "PUT", "POST", "PATCH", "DELETE")

    def __init__(self, server: QdrantServer, *args: Any) -> None:
        self.qdrant = server
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def handle_any(self) -> None:
        """Take a request, and let go wrong what is to go wrong."""
        if not self.qdrant.is_up:
            return self._hang_up()
        size = int(self.headers.get("Content-Length") or 0)
        fault = self.qdrant.next_fault()
        raw = self.rfile.read(size // 2 if fault == "half" else size)
        if fault in ("cut", "half"):
            return self._hang_up()
        path = urlsplit(self.path).path
        body = json.loads(raw) if raw else None
        request = Request(self.command, path, len(raw), dict(self.headers.items()), body)
        self.qdrant.requests.append(request)
        if isinstance(fault, tuple | int):
            status, after = fault if isinstance(fault, tuple) else (fault, "")
            return self._send(status, {"status": {"error": HTTPStatus(status).phrase}}, after=after)
        status, answer = self._result(request)
        if fault == "mute":
            return self._hang_up()
        if fault == "slow":
            time.sleep(self.qdrant.delay)
        if fault == "queued" and isinstance(answer.get("result"), dict):
            answer["result"] = (
                {"operation_id": 0, "status": "wait_timeout"}
                if ("operation_id" in answer["result"])
                else answer["result"]
            )
        return self._send(status, answer, torn=fault == "torn")

    def _result(self, request: Request) -> tuple[int, Json]:
        if request.size > self.qdrant.most_bytes:
            limit = self.qdrant.most_bytes
            message = f"JSON payload ({request.size} bytes) is larger than allowed"
            return 400, {"status": {"error": f"{message} (limit: {limit} bytes)."}}
        try:
            if request.path == "/":
                return 200, {"title": "test", "version": "1.16.0"}
            result = self.qdrant.answer(request.method, request.path, request.body)
        except RefusedError as error:
            return error.status, {"status": {"error": str(error)}}
        except Exception as error:  # the engine has no types of its own
            return 400, {"status": {"error": f"{error}"}}
        return 200, {"result": result, "status": "ok"}

    def _send(self, status: int, answer: Json, *, after: str = "", torn: bool = False) -> None:
        content = json.dumps({"time": 0.0} | answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if after:
            self.send_header("Retry-After", after)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if torn else content)
        if torn:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


for _method in Handler.methods:
    setattr(Handler, f"do_{_method}", Handler.handle_any)
