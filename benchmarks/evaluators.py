"""The shipped model under the evaluators of sentence-transformers and of mteb, on one test set.

    python benchmarks/evaluators.py ../shared/data/eval/scifact

Both take the model as it is (`connectors/sentence_transformers.py`, `connectors/mteb.py`) and do
the search themselves: every document is one vector, of its title and as much of its text as the
model sees. `nexus-vdb eval` cuts documents into chunks, so its figure is a little higher.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from nexus_vdb.connectors.mteb import MtebModel
from nexus_vdb.connectors.sentence_transformers import SentenceModel
from nexus_vdb.encoder import load_encoder
from nexus_vdb.interfaces import Encoder
from nexus_vdb.pipelines._eval_data import TestSet, read_test_set

SPLIT = "test"


def documents(test: TestSet) -> dict[str, str]:
    """Title and text by document id."""
    with test.corpus.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {
        str(row["_id"]): "\n".join(filter(None, (row.get("title"), row["text"]))) for row in rows
    }


def by_sentence_transformers(encoder: Encoder, test: TestSet) -> dict[str, float]:
    """nDCG@10 and Recall@100 as `InformationRetrievalEvaluator` finds them."""
    right = {
        query: {document for document, grade in grades.items() if grade > 0}
        for query, grades in test.qrels.items()
    }
    evaluator = InformationRetrievalEvaluator(
        test.queries, documents(test), right, precision_recall_at_k=[100], write_csv=False
    )
    found = evaluator(SentenceModel(encoder))
    return {"ndcg@10": found["cosine_ndcg@10"], "recall@100": found["cosine_recall@100"]}


class FolderTask(AbsTaskRetrieval):
    """A test set of this machine as a retrieval task of mteb.

    Args:
        test: The set.
    """

    metadata = TaskMetadata(
        name="LocalFolder",
        description="A folder in BEIR's format.",
        dataset={"path": "local", "revision": "1"},
        type="Retrieval",
        category="t2t",
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def __init__(self, test: TestSet) -> None:
        super().__init__()
        self._test = test

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is downloaded."""
        corpus = [
            {"id": key, "title": "", "text": text} for key, text in documents(self._test).items()
        ]
        queries = [{"id": key, "text": text} for key, text in self._test.queries.items()]
        self.dataset = {
            "default": {
                SPLIT: {
                    "corpus": Dataset.from_list(corpus),
                    "queries": Dataset.from_list(queries),
                    "relevant_docs": self._test.qrels,
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def by_mteb(encoder: Encoder, test: TestSet) -> dict[str, float]:
    """nDCG@10 and Recall@100 as `mteb.evaluate` finds them."""
    result = mteb.evaluate(
        MtebModel(encoder), FolderTask(test), cache=None, co2_tracker=False, show_progress_bar=False
    )
    (scores,) = result.task_results[0].scores[SPLIT]
    return {"ndcg@10": scores["ndcg_at_10"], "recall@100": scores["recall_at_100"]}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Evaluate the shipped model on FOLDER by both."""
    encoder, test = load_encoder(), read_test_set(folder)
    click.echo("| evaluator | nDCG@10 | Recall@100 |\n|---|---|---|")
    for name, run in (("sentence-transformers", by_sentence_transformers), ("mteb", by_mteb)):
        found = run(encoder, test)
        click.echo(f"| {name} | {found['ndcg@10']:.4f} | {found['recall@100']:.4f} |")


if __name__ == "__main__":
    main()
