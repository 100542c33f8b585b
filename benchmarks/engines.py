"""The vector indexes that the search benchmark compares: how each is built, opened and asked.

Every engine gets the same unit vectors and answers with row numbers. Its settings are the points of
its recall-latency curve, from quick to thorough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nexus_vdb.types import Floats

Ids = npt.NDArray[np.int64]
Setting = dict[str, Any]

DIM = 768
BLOCK = 8192


@dataclass(frozen=True)
class Vectors:
    """Unit vectors in a file of float16 `[n, 768]`, of which the first `count` are meant."""

    file: Path
    count: int

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """First row and float32 rows of each block."""
        rows = np.memmap(self.file, dtype="<f2", mode="r").reshape(-1, DIM)
        for start in range(0, self.count, BLOCK):
            yield start, rows[start : min(start + BLOCK, self.count)].astype(np.float32)

    def all(self) -> Floats:
        """Every row, float32 `[n, 768]`."""
        whole = np.empty((self.count, DIM), np.float32)
        for start, block in self.blocks():
            whole[start : start + len(block)] = block
        return whole


class Engine(Protocol):
    """One way to find near vectors."""

    settings: Sequence[Setting]

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Make the index and leave it in the folder."""

    def open(self, folder: Path) -> None:
        """Get ready to answer."""

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest, int64 `[q, k]`; -1 where there are fewer."""


class FaissExact:
    """Comparison with every vector: `IndexFlatIP`."""

    settings = ({},)

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write the flat index."""
        import faiss

        index = faiss.IndexFlatIP(DIM)
        for _, block in vectors.blocks():
            index.add(block)
        faiss.write_index(index, str(folder / "index"))

    def open(self, folder: Path) -> None:
        """Read it into memory."""
        import faiss

        self._index = faiss.read_index(str(folder / "index"))

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        return np.asarray(self._index.search(queries, k)[1])


class FaissHnsw(FaissExact):
    """Navigable small world graph, M 32, on float32 vectors."""

    settings = tuple({"efSearch": ef} for ef in (16, 32, 64, 128, 256, 512, 1024, 2048))

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write the graph; FAISS's own defaults but for M."""
        import faiss

        index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        for _, block in vectors.blocks():
            index.add(block)
        faiss.write_index(index, str(folder / "index"))

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        self._index.hnsw.efSearch = setting["efSearch"]
        return np.asarray(self._index.search(queries, k)[1])


class FaissIvfPq(FaissExact):
    """Inverted lists of 4-bit product codes (FastScan), refined by the float32 vectors."""

    settings = tuple(
        {"nprobe": probes, "k_factor": factor}
        for probes, factor in (
            *((4, 8), (8, 16), (16, 16), (32, 32), (64, 32), (128, 64)),
            *((256, 128), (512, 256)),
        )
    )

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Train on a sample, then add everything."""
        import faiss

        lists = max(64, min(4096, 4 * round(vectors.count**0.5)))
        index = faiss.index_factory(
            DIM, f"IVF{lists},PQ{DIM // 4}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT
        )
        rows = np.random.default_rng(0).permutation(vectors.count)[: 50 * lists]
        stored = np.memmap(vectors.file, dtype="<f2", mode="r").reshape(-1, DIM)
        index.train(stored[np.sort(rows)].astype(np.float32))
        for _, block in vectors.blocks():
            index.add(block)
        faiss.write_index(index, str(folder / "index"))

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        import faiss

        parameters = faiss.IndexRefineSearchParameters(
            k_factor=setting["k_factor"],
            base_index_params=faiss.SearchParametersIVF(nprobe=setting["nprobe"]),
        )
        return np.asarray(self._index.search(queries, k, params=parameters)[1])


class Hnswlib:
    """Navigable small world graph, M 16, ef 200 when building: hnswlib's customary values."""

    settings = tuple({"ef": ef} for ef in (16, 32, 64, 128, 256, 512))

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write the graph."""
        import hnswlib

        index = hnswlib.Index(space="ip", dim=DIM)
        index.init_index(max_elements=vectors.count, ef_construction=200, M=16)
        for start, block in vectors.blocks():
            index.add_items(block, np.arange(start, start + len(block)))
        index.save_index(str(folder / "index"))

    def open(self, folder: Path) -> None:
        """Read it into memory."""
        import hnswlib

        self._index = hnswlib.Index(space="ip", dim=DIM)
        self._index.load_index(str(folder / "index"))
        self._index.set_num_threads(1)

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        self._index.set_ef(max(k, setting["ef"]))
        return np.asarray(self._index.knn_query(queries, k)[0], dtype=np.int64)


class Usearch:
    """Navigable small world graph on float16 vectors, usearch's defaults."""

    settings = tuple({"expansion": ef} for ef in (16, 32, 64, 128, 256, 512, 1024))

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write the graph."""
        from usearch.index import Index

        index = Index(ndim=DIM, metric="ip", dtype="f16")
        for start, block in vectors.blocks():
            index.add(np.arange(start, start + len(block)), block)
        index.save(str(folder / "index"))

    def open(self, folder: Path) -> None:
        """Map the file."""
        from usearch.index import Index

        self._index = Index.restore(str(folder / "index"), view=True)

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        self._index.expansion_search = setting["expansion"]
        found = self._index.search(queries, k, threads=1).keys
        return np.asarray(found, dtype=np.int64).reshape(len(queries), -1)


class LanceDb:
    """LanceDB's IVF-PQ with refinement from the stored vectors, its own defaults for building."""

    settings = tuple(
        {"nprobes": probes, "refine_factor": factor}
        for probes, factor in ((5, 5), (10, 10), (20, 20), (50, 30), (100, 50))
    )

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write table and index."""
        import lancedb
        import pyarrow as pa

        kind = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), DIM))])

        def batches() -> Iterator[Any]:
            for start, block in vectors.blocks():
                ids = pa.array(np.arange(start, start + len(block)))
                rows = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), DIM)
                yield pa.record_batch([ids, rows], schema=kind)

        table = lancedb.connect(str(folder)).create_table("vectors", batches(), schema=kind)
        if vectors.count >= 1000:
            table.create_index(metric="dot", vector_column_name="vector", index_type="IVF_PQ")

    def open(self, folder: Path) -> None:
        """Open the table."""
        import lancedb

        self._table = lancedb.connect(str(folder)).open_table("vectors")

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest, one query at a time: that is how the table is asked."""
        found = np.full((len(queries), k), -1, np.int64)
        for mine, query in zip(found, queries, strict=True):
            asked = (
                self._table.search(query).distance_type("dot").limit(k).select(["id", "_distance"])
            )
            asked = asked.nprobes(setting["nprobes"]).refine_factor(setting["refine_factor"])
            rows = asked.to_arrow()["id"].to_numpy()
            mine[: len(rows)] = rows
        return found


class QdrantEdge:
    """Qdrant's engine in process with its HNSW at the customary M 16, ef 100 when building.

    Vectors are half precision and lie on disk, as the store of this project keeps them.
    """

    settings = tuple({"hnsw_ef": ef} for ef in (16, 32, 64, 128, 256, 512))

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Write points without payload, then the graph."""
        import qdrant_edge as engine

        vector = engine.EdgeVectorParams(
            size=DIM,
            distance=engine.Distance.Cosine,
            datatype=engine.VectorStorageDatatype.Float16,
            memory=engine.Memory.Cold,
        )
        graph = engine.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10)
        config = engine.EdgeConfig(vectors={"": vector}, hnsw_config=graph)
        shard = engine.EdgeShard.create(str(folder / "shard"), config)
        for start, block in vectors.blocks():
            points = [
                engine.Point(start + row, values, {}) for row, values in enumerate(block.tolist())
            ]
            shard.update(engine.UpdateOperation.upsert_points(points))
        shard.flush()
        shard.optimize()
        shard.close()

    def open(self, folder: Path) -> None:
        """Open the shard."""
        import qdrant_edge as engine

        self._shard = engine.EdgeShard.load(str(folder / "shard"))

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        import qdrant_edge as engine

        params = engine.SearchParams(hnsw_ef=max(k, setting["hnsw_ef"]))
        requests = [
            engine.QueryRequest(limit=k, query=engine.Query.Nearest(query), params=params)
            for query in queries.tolist()
        ]
        found = np.full((len(queries), k), -1, np.int64)
        answers = self._shard.query_batch(engine.QueryBatchRequest(requests))
        for mine, hits in zip(found, answers, strict=True):
            mine[: len(hits)] = [hit.id for hit in hits]
        return found


class Nexus:
    """`faiss://` of this project: 64-bit codes, coarse lists, rerank at 256 and 768."""

    settings = tuple(
        {"probes": probes, "candidates": share}
        for probes, share in (
            *((0.02, 0.001), (0.03, 0.002), (0.05, 0.002), (0.05, 0.004), (0.1, 0.004)),
            *((0.1, 0.006), (0.1, 0.01), (0.2, 0.01), (1.0, 0.01), (1.0, 0.02)),
            *((1.0, 0.025), (1.0, 0.03), (1.0, 0.035), (1.0, 0.05), (1.0, 0.07), (1.0, 0.1)),
            (1.0, 0.2),
        )
    )

    def build(self, vectors: Vectors, folder: Path) -> None:
        """Fit the hash, and write records without text in one commit."""
        from nexus_vdb.connectors.faiss import FaissStore
        from nexus_vdb.hashing import ItqHash, pack
        from nexus_vdb.tables import table_of
        from nexus_vdb.threads import one_blas_thread
        from nexus_vdb.types import Records, StoreSchema

        def tables() -> Iterator[Any]:
            for start, block in vectors.blocks():
                names = [str(row) for row in range(start, start + len(block))]
                yield table_of(
                    Records(
                        ids=names,
                        document_ids=names,
                        ordinals=np.zeros(len(block), np.int32),
                        texts=[""] * len(block),
                        metadata=[{}] * len(block),
                        content_hashes=[""] * len(block),
                        vectors=block,
                        codes=pack(itq.logits(block)),
                    )
                )

        store = FaissStore.open(f"faiss://{folder}/store", StoreSchema())
        stored = np.memmap(vectors.file, dtype="<f2", mode="r").reshape(-1, DIM)
        rows = np.random.default_rng(0).permutation(vectors.count)[:20_000]
        with one_blas_thread():  # as an ingest: others would spin from one product to the next
            itq = ItqHash.fit(stored[np.sort(rows)].astype(np.float32))
            store.upsert_tables(tables())
        store.set_meta("itq", itq.to_json())
        store.set_meta("hash", "itq")
        store.close()

    def open(self, folder: Path) -> None:
        """Map the store."""
        from nexus_vdb.connectors.faiss import FaissStore
        from nexus_vdb.search import stored_hash

        self._store = FaissStore.open(f"faiss://{folder}/store")
        self._info = self._store.info()
        self._itq = stored_hash(self._info)

    def search(self, queries: Floats, k: int, setting: Setting) -> Ids:
        """Rows of the k nearest."""
        from nexus_vdb.search import vector_queries
        from nexus_vdb.types import SearchPlan

        candidates = max(10 * k, int(setting["candidates"] * self._info.count))
        plan = SearchPlan(k=k, candidates=candidates, probes=setting["probes"])
        answers = self._store.search(vector_queries(queries, self._itq), plan)
        found = np.full((len(queries), k), -1, np.int64)
        for mine, hits in zip(found, answers, strict=True):
            mine[: len(hits)] = [int(hit.document_id) for hit in hits]
        return found


ENGINES: dict[str, type[Engine]] = {
    "nexus faiss://": Nexus,
    "FAISS exact": FaissExact,
    "FAISS HNSW": FaissHnsw,
    "FAISS IVF-PQ-FastScan + refine": FaissIvfPq,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "LanceDB IVF-PQ": LanceDb,
    "Qdrant edge HNSW": QdrantEdge,
}
