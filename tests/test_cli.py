from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nexus_vdb as nx
from nexus_vdb import cli
from nexus_vdb.cli.common import stopping
from nexus_vdb.testing.encoder import FakeEncoder

ROWS = [
    {"id": "a", "text": "statins lower cholesterol in adults", "year": 2001},
    {"id": "b", "text": "aspirin thins the blood", "year": 2002},
    {"id": "c", "text": "the cat sat on the mat", "year": 2003},
]


class Shell:
    """Runs command lines in a folder of their own, with a fake model."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.corpus = folder / "corpus.jsonl"
        self.store = f"faiss://{folder}/index"
        self._capture = capture
        self.write(ROWS)

    def write(self, rows: list[dict[str, Any]], extra: str = "") -> None:
        self.corpus.write_text("\n".join(map(json.dumps, rows)) + "\n" + extra, encoding="utf-8")

    def run(self, *words: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = cli.run([str(word) for word in words])
        captured = self._capture.readouterr()
        return code, captured.out, captured.err

    def ingest(self, *words: object) -> tuple[int, str, str]:
        return self.run("ingest", self.corpus, "--store", self.store, *words)


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    def load(name: str | None = None, *, threads: int | None = None) -> FakeEncoder:
        return FakeEncoder(seed=1 if name == "other" else 0)

    monkeypatch.setattr("nexus_vdb.encoder.load_encoder", load)
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def test_every_command_teaches(shell: Shell) -> None:
    code, out, _ = shell.run("--help")
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        code, out, _ = shell.run(name, "--help")
        assert code == 0
        assert f"Usage: nexus-vdb {name}" in out
        assert "Examples:\n    nexus-vdb" in out or name not in _OWN


_OWN = {"demo", "ingest", "search", "info", "copy", "delete", "eval"}


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, nexus_vdb.cli as c; c.run(['--help']); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "faiss", "onnxruntime", "qdrant_client", "pydantic", "rich"}
    assert not heavy & set(out.stdout.split())


def test_ingest_reports_as_json_and_nothing_else(shell: Shell) -> None:
    code, out, err = shell.ingest("--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert {name: report[name] for name in ("read", "embedded", "skipped", "deleted")} == {
        "read": 3,
        "embedded": 3,
        "skipped": 0,
        "deleted": 0,
    }
    assert (report["quarantined"], report["chunks"], report["store"]) == (0, 3, shell.store)
    code, out, _ = shell.ingest()
    assert code == 0
    assert out.startswith("3 documents read: 0 embedded (0 chunks), 3 unchanged, 0 deleted, 0 bad")


def test_bad_rows_make_exit_code_1(shell: Shell) -> None:
    shell.write(ROWS, extra="{broken\n")
    code, out, err = shell.ingest()
    assert code == 1
    assert "1 bad rows" in out
    assert "set aside in quarantine.jsonl" in err
    assert "broken JSON" in (shell.folder / "quarantine.jsonl").read_text(encoding="utf-8")
    code, _, err = shell.ingest("--on-error", "fail")
    assert code == 3
    assert "row 4: broken JSON" in err


def test_delete_missing_is_capped(shell: Shell) -> None:
    shell.ingest()
    shell.write(ROWS[:2])
    code, _, err = shell.ingest("--delete-missing")
    assert code == 1
    assert "1 of 3 documents are missing, more than max_delete=0.1" in err
    code, out, _ = shell.ingest("--delete-missing", "--max-delete", "0.5", "--dry-run")
    assert (code, "1 would be deleted" in out) == (0, True)
    code, out, _ = shell.ingest("--delete-missing", "--max-delete", "0.5", "--json")
    assert (code, json.loads(out)["deleted"]) == (0, 1)


def test_settings_file_and_options(shell: Shell) -> None:
    config = shell.folder / "job.toml"
    config.write_text(f'sources = ["{shell.corpus}"]\nstore = "{shell.store}"\n', encoding="utf-8")
    assert shell.run("ingest", "--config", config)[0] == 0
    code, out, _ = shell.run("ingest", "--config", config, "--dry-run", "--json")
    assert (code, json.loads(out)["dry_run"], json.loads(out)["skipped"]) == (0, True, 3)
    config.write_text("stor = 1\n", encoding="utf-8")
    code, _, err = shell.run("ingest", "--config", config)
    assert code == 2
    assert err.startswith("error: Invalid stor=1; valid: chunk_overlap, chunk_tokens, cuts")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["ingest", "x.jsonl"], 2, "no store is named"),
        (["ingest", "--store", "faiss://x"], 2, "no source is named"),
        (["ingest", "none.jsonl", "--store", "faiss://x"], 3, "none.jsonl"),
        (["ingest", "corpus.jsonl", "--store", "x"], 2, "no store for 'x'"),
        (["ingest", "corpus.jsonl", "--store", "memory://", "--cuts", "a"], 2, "Invalid cuts=a"),
        (
            ["ingest", "corpus.jsonl", "--store", "memory://", "--chunk-tokens", "0"],
            2,
            "Invalid ch",
        ),
        (["search", "x", "--store", "faiss://none"], 3, "nothing is stored at faiss://none"),
        (["search", "--store", "faiss://none"], 2, "no TEXT to search for"),
        (["search", "x"], 2, "Missing option '--store'"),
        (["search", "x", "--store", "faiss://i", "--candidates", "0"], 2, "Invalid candidates=0"),
        (["search", "x", "--store", "faiss://i", "--where", "{"], 2, "--where is no JSON"),
        (["search", "x", "--store", "faiss://i", "--where", "[]"], 2, "--where takes an object"),
        (["search", "x", "--store", "faiss://i", "--where", '{"a": null}'], 2, "cannot compare"),
        (["info", "--store", "faiss://none"], 3, "nothing is stored"),
        (["copy", "faiss://none", "memory://"], 3, "nothing is stored"),
        (["delete", "--store", "faiss://none"], 2, "give document ids or --where"),
        (["eval", "none"], 3, "corpus.jsonl is missing"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    shell: Shell, words: list[str], code: int, message: str
) -> None:
    found, out, err = shell.run(*words)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_search_on_a_terminal_and_as_json(shell: Shell) -> None:
    shell.ingest()
    code, out, err = shell.run("search", "cat", "on", "mat", "-k", 2, "--store", shell.store)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    score, document, snippet = first.split("\t")
    assert (document, snippet) == ("c", ROWS[2]["text"])
    assert float(score) > float(second.split("\t")[0])

    words = ["cat", "--store", shell.store, "--where", '{"year": {"$lt": 2003}}', "--json"]
    found = json.loads(shell.run("search", *words, "--dim", 256, "--candidates", 2)[1])
    assert {hit["document_id"] for hit in found["hits"]} == {"a", "b"}
    assert set(found["hits"][0]) == {"id", "document_id", "score", "text", "metadata"}
    assert found["candidates"] == 10
    assert set(found["timings_ms"]) == {"load", "embed", "search"}
    assert json.loads(shell.run("search", "cat", *words[1:])[1])["candidates"] == "exact"


def test_another_model_is_named(shell: Shell) -> None:
    shell.ingest()
    code, _, err = shell.run("search", "cat", "--store", shell.store, "--model", "other")
    assert code == 3
    assert "was filled by fake-768-0" in err
    assert "try: use --model fake-768-0" in err


def test_info(shell: Shell) -> None:
    shell.ingest()
    facts = json.loads(shell.run("info", "--store", shell.store, "--json")[1])
    assert (facts["count"], facts["model"], facts["hash"]) == (3, "fake-768-0", "model")
    assert facts["cuts"] == [256, 768]
    assert "fake-768-0" in shell.run("info", "--store", shell.store)[1]


def test_info_shows_the_hash_and_its_calibration(shell: Shell) -> None:
    shell.ingest()
    point = {"candidates": 4418, "probes": 0.1, "recall": 0.9814, "error": 0.0037}
    choice = {"at": "2026-03-01", "since": "2026-02-01", "sample": 10_000}
    with nx.open(shell.store) as collection:
        store = collection.store
        calibration = {"n": 200_000, "queries": 200, "points": [point]}
        store.set_meta("calibration", calibration)
        store.set_meta("hash_choice", {**choice, "needed": {"before": 1440, "fitted": 670}})
    facts = json.loads(shell.run("info", "--store", shell.store, "--json")[1])
    assert facts["calibration"] == calibration
    assert facts["hash_choice"]["since"] == "2026-02-01"
    lines = [line.split() for line in shell.run("info", "--store", shell.store)[1].splitlines()]
    assert ["4,418", "10%", "0.981", "0.004"] in lines
    assert ["hash", "model", "since", "2026-02-01"] in [line[:4] for line in lines]


def test_delete(shell: Shell) -> None:
    shell.ingest()
    store = ["--store", shell.store]
    assert shell.run("delete", "a", "none", "--dry-run", *store)[1] == "1 chunks would be deleted\n"
    assert shell.run("delete", "a", *store)[1] == "1 chunks deleted\n"
    words = ["--where", '{"year": 2003}', "--json", *store]
    assert json.loads(shell.run("delete", "--dry-run", *words)[1])["deleted"] == 1
    assert json.loads(shell.run("delete", *words)[1]) == {"deleted": 1, "dry_run": False}
    assert json.loads(shell.run("info", *store, "--json")[1])["count"] == 1


def test_copy(shell: Shell) -> None:
    shell.ingest()
    target = f"faiss://{shell.folder}/copy"
    code, out, _ = shell.run("copy", shell.store, target, "--verify")
    assert (code, "3 records copied" in out, "both stores hold the same" in out) == (0, True, True)
    shell.run("delete", "a", "--store", shell.store)
    code, out, err = shell.run("copy", shell.store, target, "--verify", "--json")
    assert (code, json.loads(out)["verified"]) == (1, False)
    assert "does not hold what" in err


def test_eval(shell: Shell) -> None:
    folder = shell.folder
    rows = [{"_id": row["id"], "text": row["text"]} for row in ROWS]
    shell.write([*rows, {"_id": "long", "text": "a cat sat " * 20}])
    query = json.dumps({"_id": "q", "text": "aspirin and blood"})
    (folder / "queries.jsonl").write_text(query, encoding="utf-8")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("q\td\ts\nq\tb\t1\n", encoding="utf-8")
    found = json.loads(shell.run("eval", folder, "--json")[1])
    assert (found["ndcg@10"], found["recall@100"], found["mrr@10"]) == (1, 1, 1)
    assert list(found["cuts"]) == ["768", "512", "256"]
    code, out, _ = shell.run("eval", folder)
    assert code == 0
    assert "exact, 512 dimensions" in out
    code, out, _ = shell.run("eval", folder, "--shares", "50,100")
    assert (code, "hash, 11 candidates (100.0%)" in out) == (0, True)
    small = json.loads(shell.run("eval", folder, "--chunk-tokens", "40", "--json")[1])
    assert small["records"] > found["records"]
    code, _, err = shell.run("eval", folder, "--chunk-tokens", "40", "--store", shell.store)
    assert code == 2
    assert "give --chunk-tokens to its ingest" in err
    code, _, err = shell.run("eval", folder, "--heads")
    assert (code, "makes one vector a text" in err) == (2, True)
    shell.run("ingest", shell.corpus, "--id-field", "_id", "--store", shell.store)
    assert json.loads(shell.run("eval", folder, "--store", shell.store, "--json")[1]) == {
        **found,
        "seconds": pytest.approx(0, abs=60),
    }


def test_eval_of_sentence_pairs(shell: Shell) -> None:
    path = shell.folder / "sts.tsv"
    path.write_text("score\ts1\ts2\n4\tblood thins\tthins blood\n1\tcat\tdog\n", encoding="utf-8")
    assert json.loads(shell.run("eval", path, "--json")[1])["spearman"] == pytest.approx(100)
    code, out, _ = shell.run("eval", path, "--plot", shell.folder / "sts.png")
    assert (code, "256 dimensions" in out, "100.00" in out) == (0, True, True)
    assert (shell.folder / "sts.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = shell.run("eval", path, "--shares", "5")
    assert (code, "sentence pairs are not searched" in err) == (2, True)
    code, _, err = shell.run("eval", shell.folder, "--shares", "5;6")
    assert (code, "give percentages such as 1,2.5,5,10" in err) == (2, True)
    code, _, err = shell.run("eval", path, "--plot", shell.folder / "none" / "x.png")
    assert (code, "cannot write" in err) == (2, True)


def test_demo(shell: Shell) -> None:
    code, out, err = shell.run("demo", "--folder", shell.folder / "demo")
    assert code == 0
    assert "how do I run a shell command and read its output?" in out
    assert "nexus-vdb search" in out
    assert "0 unchanged" in err
    assert "\n0 embedded" in shell.run("demo", "--folder", shell.folder / "demo")[2]


def test_unexpected_errors_are_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(url: str, schema: object = None) -> nx.StoreInfo:
        raise ZeroDivisionError("by\nnought")

    monkeypatch.setattr("nexus_vdb.registry.open_store", broken)
    code, _, err = shell.run("info", "--store", "memory://x")
    assert code == 3
    assert err == "error: ZeroDivisionError: by nought\n  try: --debug shows the traceback\n"
    assert "Traceback" in shell.run("info", "--store", "memory://x", "--debug")[2]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests themselves were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_interrupt_lets_work_finish_and_the_second_ends_it() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        stop.clear()
        stop.wait(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_pipe_that_closes_early_is_no_error(shell: Shell) -> None:
    shell.ingest()
    script = "import sys, nexus_vdb.cli as c; sys.exit(c.run(sys.argv[1:]))"
    words = [sys.executable, "-c", script, "info", "--store", shell.store]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0
