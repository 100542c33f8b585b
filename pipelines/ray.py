"""Ingest over a Ray cluster: the stages of `_ingest_stages` on Ray Data, in as many processes.

    read (one task) → plan, cut, embed (workers) → write

Workers write to a server themselves. The folder of a store has one writer, which is the command
itself; workers read it to plan. Each block that Ray Data passes on is one batch of documents, or
what came of it, and a `_Window` lets only so many of them exist: nothing ever holds the corpus.

What a killed worker or a lost node had in hand is made again by others, from the same blocks. After
the death of the command itself the same command again goes on, as ever: the store is the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexus_vdb.errors import ConfigError, NexusError
from nexus_vdb.interfaces import Source
from nexus_vdb.pipelines._ingest_job import Job
from nexus_vdb.pipelines._ingest_parts import Made
from nexus_vdb.pipelines._ray_cluster import connected, import_ray
from nexus_vdb.pipelines._ray_worker import Outcome, Setup, Worker, enter, read_all
from nexus_vdb.quarantine import Quarantine

if TYPE_CHECKING:
    from nexus_vdb.pipelines.ingest import IngestSettings

__all__ = ["check_ray", "distributed"]

_log = logging.getLogger("nexus_vdb.pipelines.ray")

_SERVERS = ("qdrant", "qdrants")
"""Schemes of stores that several may write to at once."""

_FOLDERS = ("faiss", "parquet")
"""Schemes of stores that others may read while one writes."""

_AHEAD = 4
"""Batches for each worker, and for the command, that may be read and not yet written."""

_BATCH, _LARGE_BATCH, _FEW = 128, 512, 32
"""Documents of a batch: ten seconds of work for a core; more for a GPU, and for more workers than a
few, for Ray Data passes on some twenty blocks a second."""

_COUNTS = ("read", "skipped", "reading", "embedding", "writing")


def check_ray(url: str, settings: IngestSettings) -> None:
    """Refuse what cannot be done over a cluster, before anything is read.

    Raises:
        ConfigError: the store can be opened by one process only, or a replay is asked for.
        MissingExtra: Ray is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme not in (*_SERVERS, *_FOLDERS):
        valid = ", ".join(f"{one}://" for one in (*_SERVERS, *_FOLDERS))
        raise ConfigError(
            f"engine=ray cannot fill {url}: workers have to see the store; valid: {valid}",
            hint="leave out --engine, or fill one of these and `nexus-vdb copy` it",
        )
    if settings.replay is not None:
        raise ConfigError("a replay is read by engine=local", hint="leave out --engine")
    import_ray()


def distributed(
    job: Job, url: str, source: Source, bad_rows: Quarantine
) -> Generator[Made, None, None]:
    """Plan, embed and write over a cluster; what `Job.run` runs.

    Args:
        job: Its report and ledger grow; it writes what workers do not.
        url: Of the store.
        source: Is read from its start.
        bad_rows: May have been told of the first ones already.
    """
    settings, encoder = job.settings, job.stages.encoder
    # Ready-made vectors are coded by a rotation that is fitted while they are written.
    writes = url.partition("://")[0] in _SERVERS and encoder is not None
    setup = Setup(settings, url, job.schema, encoder, str(Path.cwd()), writes)
    sent = _sent(setup), _sent((source, settings.vector_field))
    known = bad_rows.count
    with (
        connected(settings.ray_address, workers=settings.workers) as ray,
        closing(_outcomes(ray, *sent, settings.workers)) as outcomes,
    ):
        for outcome in outcomes:
            for row in outcome.bad[known:]:
                bad_rows(**row)
            known = max(known - len(outcome.bad), 0)
            _add(outcome, job)
            job.report.quarantined = bad_rows.count
            if outcome.error is not None:
                raise outcome.error
            if writes or settings.dry_run:
                yield from outcome.made
            else:
                yield from job.stages.write(outcome.made)
            job.tell()


def _sent(value: Any) -> bytes:
    try:
        pickled: bytes = import_ray().cloudpickle.dumps(value)
    except Exception as error:  # whatever a model or a source of somebody's own raises
        raise ConfigError(
            f"this model or source cannot be sent to other processes: {error}",
            hint="leave out engine=ray, or give its class a __reduce__",
        ) from error
    return pickled


def _add(outcome: Outcome, job: Job) -> None:
    """What became of a batch, to what became of the others."""
    for record in outcome.logs:
        log = logging.getLogger(record.name)
        if log.isEnabledFor(record.levelno):
            log.handle(record)
    report, ledger = job.report, job.stages.ledger
    for name in _COUNTS:
        setattr(report, name, getattr(report, name) + getattr(outcome.report, name))
    ledger.known += outcome.ledger.known
    ledger.growth += outcome.ledger.growth
    if ledger.seen is not None:
        for id_ in outcome.ids:
            ledger.seen.add(id_)
    if outcome.repeated:
        # What the dead worker had written counts as unchanged, so the sum does not come out.
        job.reconciles = False


def _outcomes(
    ray: Any, setup: bytes, source: bytes, workers: int | None
) -> Generator[Outcome, None, None]:
    """What comes of the corpus, in its order, batch by batch."""
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    workers = workers or gpus or cpus or 1
    if workers > cpus:
        _log.warning("%d workers are asked for, and the cluster has room for fewer", workers)
    here = {_this_node(ray): 0.001}
    window = ray.remote(num_cpus=0, resources=here)(_Window).remote(_AHEAD * (workers + 1))

    size = _LARGE_BATCH if gpus or workers > _FEW else _BATCH

    def read(_: Any) -> Iterator[Any]:
        enter(pickle.loads(setup))
        batches = read_all(*pickle.loads(source), batch_size=size)
        for number, one in enumerate(batches):
            ray.get(window.admit.remote(number))
            yield _table(one)

    dataset = (
        ray.data.from_items([0], override_num_blocks=1)
        .map_batches(read, batch_size=None, num_cpus=0, resources=here)
        .map_batches(
            _Actor,
            fn_constructor_args=(setup,),
            batch_size=1,  # a block is one row; with GPUs Ray Data wants to be told
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=1 / math.ceil(workers / gpus) if gpus else None,
        )
    )
    for number, outcome in enumerate(_results(ray, dataset), 1):
        yield outcome
        window.settle.remote(number)


def _results(ray: Any, dataset: Any) -> Iterator[Any]:
    """Carry out a dataset; its rows in order."""
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # what is one row stays one block
    context.execution_no_progress_timeout_s = -1  # a long document takes its time
    context.execution_options.preserve_order = True
    batches = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    try:
        for table in batches:
            yield from _rows(table)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise NexusError(
            f"the Ray cluster failed: {reason}",
            hint="the same command again goes on from here",
        ) from error
    finally:
        batches.close()


def _this_node(ray: Any) -> str:
    """The resource that this machine alone has: the corpus may lie on no other."""
    id_ = ray.get_runtime_context().get_node_id()
    [resources] = (node["Resources"] for node in ray.nodes() if node["NodeID"] == id_)
    name: str = next(name for name in resources if re.fullmatch(r"node:[\d.a-f:]+", name))
    return name


class _Window:
    """An actor that keeps reading from running ahead of writing.

    Ray Data bounds what waits by bytes, but lets a source go on whenever the stage after it is
    held up by a slow consumer.

    Args:
        size: Batches that may be read and not settled.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._settled = 0
        self._moved = asyncio.Condition()

    async def admit(self, number: int) -> None:
        """Wait until a batch, counted from 0, may be handed on."""
        async with self._moved:
            await self._moved.wait_for(lambda: number < self._settled + self._size)

    async def settle(self, number: int) -> None:
        """So many batches are done with."""
        async with self._moved:
            self._settled = number
            self._moved.notify_all()


class _Actor:
    """A `Worker` as Ray Data wants it.

    Args:
        setup: Pickled, so that it is unpickled only here.
    """

    def __init__(self, setup: bytes) -> None:
        import ray

        restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._worker = Worker(pickle.loads(setup), restarted=restarted)

    def __call__(self, table: Any) -> Any:
        outcomes = [self._worker.work(one) for one in _rows(table)]
        return _table(*outcomes)


def _table(*items: Any) -> Any:
    """Python objects as rows of one column, in a form that Ray Data leaves alone."""
    import pyarrow as pa

    pickled = [pickle.dumps(item, protocol=5) for item in items]
    return pa.table({"item": pa.array(pickled, pa.large_binary())})


def _rows(table: Any) -> Iterator[Any]:
    for value in table.column("item"):
        yield pickle.loads(value.as_buffer())
