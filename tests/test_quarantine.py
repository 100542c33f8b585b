from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nexus_vdb.corpus import FieldMap
from nexus_vdb.errors import ConfigError, SourceError
from nexus_vdb.quarantine import Quarantine, QuarantineSource, Rest
from nexus_vdb.testing.source import documents_of

BAD: dict[str, Any] = {"file": "a.jsonl", "row": 2, "offset": 40, "reason": "broken JSON"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_row_is_set_aside_once_however_often_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for _ in range(3):
        with Quarantine(path) as bad:
            bad(**BAD, raw=b"{broken")
            bad(**BAD, raw=b"{broken\xff")
        assert bad.count == 2
    assert lines(path) == [BAD | {"raw": "{broken"}, BAD | {"raw_base64": "e2Jyb2tlbv8="}]
    with Quarantine(path) as bad:
        bad(**BAD | {"row": 3}, raw=b"{broken")
        bad(**BAD | {"file": "b.jsonl"}, raw=b"{broken")
    assert [(one["file"], one["row"]) for one in lines(path)[2:]] == [
        ("a.jsonl", 3),
        ("b.jsonl", 2),
    ]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"file": "a.jsonl", "ro')
    with Quarantine(path) as bad:
        bad(**BAD, raw=b"x")
    first, second = path.read_text().splitlines()
    assert first == '{"file": "a.jsonl", "ro'
    assert json.loads(second) == BAD | {"raw": "x"}


def test_nothing_is_made_without_a_bad_row(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "bad.jsonl"):
        pass
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(ConfigError, match=r"Invalid quarantine=.*none"),
        Quarantine(tmp_path / "none" / "bad.jsonl") as bad,
    ):
        bad(**BAD, raw=b"x")
    with pytest.raises(SourceError, match=r"a\.jsonl, row 2: broken JSON"):
        Quarantine(None, fail=True)(**BAD, raw=b"x")


def entries(path: Path, *given: dict[str, Any] | str) -> Path:
    text = [one if isinstance(one, str) else json.dumps(BAD | one) for one in given]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def test_mended_rows_are_read_under_the_name_of_their_file(tmp_path: Path) -> None:
    path = entries(
        tmp_path / "bad.jsonl",
        {"row": 1, "raw": '{"id": 1, "text": "mended", "year": 7}'},
        {"row": 1, "raw": '{"id": 1, "text": "mended", "year": 7}'},
        {"row": 2, "raw": "{broken"},
        {"row": 3, "raw_base64": "eyJpZCI6IDMsICJ0ZXh0IjogImluIGJhc2U2NCJ9"},
        {"row": 4, "raw": '{"id": 1, "text": "again"}', "reason": "duplicate id '1'"},
        {"row": 5, "raw": '{"id": 5, "text": "renamed"}', "reason": "duplicate id '1'"},
        {"row": 6, "raw": "", "reason": "a.jsonl cannot be read after row 5"},
        {"row": 7, "raw": '{"id": 7, "te', "reason": "line longer than 99 bytes"},
        "no entry",
        "",
        {"row": 8, "raw": '{"id": 8}'},
    )
    documents, bad = documents_of(QuarantineSource(path, FieldMap()))
    assert [(one.id, one.text) for one in documents] == [
        ("1", "mended"),
        ("3", "in base64"),
        ("5", "renamed"),
    ]
    assert documents[0].metadata == {"year": 7}
    reasons = {row: (file, reason) for file, row, reason in bad.rows}
    assert reasons.pop(2)[1].startswith("broken JSON: Expecting property name")
    assert reasons.pop(9) == (
        str(path),
        "not an entry of a quarantine: an object with file, row, offset, reason and raw",
    )
    assert reasons == {
        4: ("a.jsonl", "duplicate id '1'"),
        6: ("a.jsonl", "a.jsonl cannot be read after row 5"),
        7: ("a.jsonl", "line longer than 99 bytes"),
        8: ("a.jsonl", "'text' is missing"),
    }


def replay(path: Path) -> None:
    source = QuarantineSource(path, FieldMap())
    with Rest(source, path) as rest:
        for _ in source.read(batch_size=10, on_bad_row=rest):
            pass
        with path.open("a") as other:
            other.write(json.dumps(BAD | {"row": 99, "raw": "late"}) + "\n")
        rest.settle()


def test_what_stays_keeps_its_place_and_gets_its_reason(tmp_path: Path) -> None:
    path = entries(
        tmp_path / "bad.jsonl",
        {"row": 1, "raw": '{"id": 1, "text": "mended"}'},
        {"row": 2, "raw": "{broken"},
        "no entry",
    )
    replay(path)
    first, second, third = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["row"] == 2
    assert json.loads(first)["reason"].startswith("broken JSON: ")
    assert second == "no entry"
    assert json.loads(third) == BAD | {"row": 99, "raw": "late"}
    assert [one.name for one in tmp_path.iterdir()] == ["bad.jsonl"]


def test_a_file_with_nothing_left_goes_and_one_that_was_not_settled_stays(tmp_path: Path) -> None:
    path = entries(tmp_path / "bad.jsonl", {"raw": '{"id": 1, "text": "mended"}'})
    before = path.read_bytes()
    source = QuarantineSource(path, FieldMap())
    with Rest(source, path) as rest:
        rest(**BAD, raw=b"x")
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["bad.jsonl"]
    with Rest(source, path) as rest:
        documents_of(source)
        rest.settle()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"Invalid replay=.*bad\.jsonl"):
        QuarantineSource(path, FieldMap())
