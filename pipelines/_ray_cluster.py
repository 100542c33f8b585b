"""A connection to a Ray cluster, or a Ray of one's own for the time of a run, without its noise."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nexus_vdb.errors import ConfigError, MissingExtra

__all__ = ["connected", "import_ray"]

_LISTENS = 5.0  # seconds; Ray itself would try for a minute
_START = (
    "start one by `ray start --head`, or leave out --ray-address for one that ends with the run"
)


def import_ray() -> Any:
    """The module `ray`, with `ray.data`.

    Raises:
        MissingExtra: it is not installed.
    """
    # Read when it is imported, and on the nodes that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("ray[data]", extra="ray") from error
    return ray


@contextmanager
def connected(address: str | None, *, workers: int | None) -> Iterator[Any]:
    """The module `ray`, connected.

    One that the caller has connected already is used as it is, and left so.

    Args:
        address: HOST:PORT or "auto"; by default that of RAY_ADDRESS, else a new Ray is started on
            this machine, and ends with the `with`.
        workers: For a new Ray: processors that it must have.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    cpus = max(workers or 1, os.cpu_count() or 1) if address == "local" else None
    _check(address)
    logs = logging.getLogger("ray.data")
    level = logs.level
    try:
        with _own_signals(), _quiet_start():
            ray.init(
                address,
                num_cpus=cpus,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        logs.setLevel(logging.ERROR)
        with _quiet_printing():
            yield ray
    except (ConnectionError, RuntimeError, ValueError) as error:
        if ray.is_initialized():
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"Invalid ray_address={address}: {reason}", hint=_START) from error
    finally:
        logs.setLevel(level)
        ray.shutdown()


def _check(address: str) -> None:
    """Fail at once where Ray would keep trying."""
    import grpc  # type: ignore[import-untyped]

    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ConfigError(
            f"Invalid ray_address={address}; valid: HOST:PORT, auto",
            hint="run the command on a machine of the cluster: it writes to the store itself",
        )
    if "RAY_USE_TLS" in os.environ:
        return
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_LISTENS)
        except grpc.FutureTimeoutError as error:
            raise ConfigError(
                f"Invalid ray_address={address}: no Ray answers there", hint=_START
            ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does here: Ray makes it end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep Ray's engine from writing to standard error, unless somebody has set its level.

    It warns of how Ray Data makes its actors, and with a level set it says so while it starts.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        del os.environ["RAY_BACKEND_LOG_LEVEL"]


@contextmanager
def _quiet_printing() -> Iterator[None]:
    """Keep Ray from printing the deaths of workers, which are made up for, to standard output.

    That may be a pipe that expects JSON, and `log_to_driver` has no say in it.
    """
    from ray._private import worker

    printing = vars(worker)
    before = printing.get("_worker_logs_enabled")
    printing["_worker_logs_enabled"] = False
    try:
        yield
    finally:
        printing["_worker_logs_enabled"] = before
