"""Fitting a store to what it holds: which hash it uses, and what "auto" rests on.

A model's bits serve all texts alike; a rotation fitted on a store's own vectors (ITQ) often ranks
them better. A store therefore tries both on a sample of itself. The meta value "hash" names the one
in use, "itq" is the rotation, and "hash_choice" tells what was found: `at` (a date), `n` records,
`since` (when the rotation came into use, None for a model's bits), and `needed`, the candidates
that held 98 % of the exact answers in a sample of `sample` records.

While codes are replaced no hash is declared: a store that was left so is searched exactly, and is
put right by the next `tune`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from nexus_vdb.calibration import (
    QueriesOf,
    calibrate,
    needs_calibration,
    queries_as_asked,
    sample_of,
)
from nexus_vdb.hashing import BITS, ItqHash, asymmetric_scores, pack
from nexus_vdb.interfaces import Encoder, Store, SupportsRecode
from nexus_vdb.ranking import best_rows
from nexus_vdb.records import take_records
from nexus_vdb.search import EXACT_BELOW, has_hash, stored_hash, vector_queries
from nexus_vdb.threads import one_blas_thread
from nexus_vdb.types import Floats, QueryBatch, StoreInfo

__all__ = ["choose_hash", "coding_hash", "declare_hash", "fit_hash", "switch_hash", "tune"]

_FIT_FROM = 4096
_FIT, _ASKED = 20_000, 200
_TRIED, _TRIED_OF_SMALL, _TRIED_SHARE = 30_000, 12_000, 0.4
"""Records that hashes are tried on, two thirds of them to fit one: a share, but no more than the
first number, nor less than the second where there are so many."""

_TARGET, _TOP = 0.98, 10
_BETTER = 0.8
"""Another hash has to make do with a fifth fewer candidates: codes are not replaced for less."""

_BATCH = 8192  # records rewritten in one call
_GROWTH = 4
"""A store that has grown so many times may hold other things than its hash was chosen for."""

Codes = npt.NDArray[np.uint64]


def tune(store: Store, encoder: Encoder | None = None) -> None:
    """Choose the hash and measure what "auto" rests on, each only where it is due.

    To be called when records have been written, and while nobody else writes to the store.

    Args:
        store: Any.
        encoder: The model that filled it; none for ready-made vectors.
    """
    info = declare_hash(store)
    if not info.schema.fingerprint:
        encoder = None
        fit_hash(store)
        info = store.info()
    with one_blas_thread():
        if choose_hash(store, queries_as_asked(info, encoder)):
            info = store.info()
    if needs_calibration(info):
        calibrate(store, queries_as_asked(info, encoder))


def declare_hash(store: Store) -> StoreInfo:
    """Finish a change of hash that was cut short, and say what codes a model makes.

    Returns:
        What the store says of itself afterwards.
    """
    info = store.info()
    if has_hash(info):
        return info
    if "itq" in info.meta:
        _recode(store, ItqHash.from_json(info.meta["itq"]))
    elif info.schema.fingerprint:
        store.set_meta("hash", "model")
    return store.info()


def coding_hash(info: StoreInfo) -> ItqHash | None:
    """The rotation that new records have to be coded by; None for the bits of the model."""
    if info.meta.get("hash") == "model" or "itq" not in info.meta:
        return None
    return ItqHash.from_json(info.meta["itq"])


def fit_hash(store: Store) -> ItqHash | None:
    """Give a store of ready-made vectors its hash, once it has enough of them to fit one."""
    info = store.info()
    if has_hash(info) or info.count < _FIT_FROM or info.schema.dim < BITS:
        return stored_hash(info)
    itq = coding_hash(info) or ItqHash.fit(sample_of(store, _FIT).vectors)
    switch_hash(store, itq)
    return itq


def choose_hash(store: Store, queries_of: QueriesOf, *, seed: int = 0) -> bool:
    """Try a rotation fitted on a sample against the codes in use; switch if clearly better.

    Does nothing for a small store, and for one that has not grown much since it last chose.

    Args:
        store: Has a hash, or is left alone.
        queries_of: Turns records into queries with the hash in use.
        seed: Of the sample.

    Returns:
        Whether the store has switched.
    """
    info = store.info()
    chosen = info.meta.get("hash_choice") or {"n": 0}
    due = info.count > max(EXACT_BELOW, _GROWTH * chosen["n"])
    if not has_hash(info) or not due or info.schema.dim < BITS:
        return False
    tried = min(_TRIED, max(_TRIED_OF_SMALL, round(_TRIED_SHARE * info.count)))
    sample = sample_of(store, tried + _ASKED, seed=seed)
    rows = np.random.default_rng(seed).permutation(len(sample))
    compared = _ASKED + (len(sample) - _ASKED) // 3
    asked, rest, fit = np.split(rows, (_ASKED, compared))
    itq = ItqHash.fit(sample.vectors[fit])
    queries = queries_of(take_records(sample, asked.tolist()))
    vectors = sample.vectors[rest]
    now = _needed(queries, vectors, sample.codes[rest])
    fitted = vector_queries(queries.vectors, itq)
    then = _needed(fitted, vectors, pack(itq.logits(vectors)))
    better = then <= _BETTER * now
    found = {"sample": len(rest), "needed": {"before": now, "fitted": then}}
    choice = _choice(info, since=chosen.get("since")) | found
    if better:
        switch_hash(store, itq, found=found)
    else:
        store.set_meta("hash_choice", choice)
    return better


def switch_hash(store: Store, itq: ItqHash, *, found: Mapping[str, Any] | None = None) -> None:
    """Replace every code by that of a rotation.

    Args:
        store: Is searched exactly meanwhile, and after a kill, until `declare_hash`.
        itq: The rotation, kept with the store.
        found: Kept with "hash_choice".
    """
    store.set_meta("hash", None)
    store.set_meta("calibration", None)
    store.set_meta("itq", itq.to_json())
    store.set_meta("hash_choice", _choice(store.info(), since=_today()) | dict(found or {}))
    _recode(store, itq)


def _choice(info: StoreInfo, *, since: str | None) -> dict[str, Any]:
    return {"at": _today(), "since": since, "n": info.count}


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _recode(store: Store, itq: ItqHash) -> None:
    def codes_of(vectors: Floats) -> Codes:
        return pack(itq.logits(vectors))

    if isinstance(store, SupportsRecode):
        store.recode(codes_of)
    else:
        for records in store.scan(_BATCH):
            store.upsert(replace(records, codes=codes_of(records.vectors)))
    store.set_meta("hash", "itq")


def _needed(queries: QueryBatch, vectors: Floats, codes: Codes) -> int:
    """Candidates that hold the target share of the exact answers."""
    cosines = queries.vectors @ vectors.T
    hashed = asymmetric_scores(queries.hash_logits, codes)
    depths = [
        (scores[:, None] >= scores[best_rows(exact, _TOP)]).sum(axis=0)
        for scores, exact in zip(hashed, cosines, strict=True)
    ]
    return int(np.quantile(np.concatenate(depths), _TARGET, method="higher"))
