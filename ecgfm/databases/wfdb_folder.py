"""An archive of your own in WFDB format: every header below SOURCE is a record.

    python tools/convert.py wfdb-folder SOURCE OUT

What is needed is WFDB headers (`.hea`) with their signal files beside them, in any folders below SOURCE. Rate, lead
names, gain and unit are those of the headers and never guessed: a header without a gain, a rate or a voltage is
refused, with the reason in `refused.jsonl`. Leads need their standard names (I II III aVR aVL aVF V1-V6, any case, any
order); III, aVR, aVL and aVF may be left out, other signals are passed over. All signal formats are read. Headers that
join several segments are refused; their segments are records of their own.

Header comments are read as the PhysioNet/CinC Challenge writes them: `# Age: 63`, `# Sex: Female`,
`# Dx: 426783006,59118001`. SNOMED CT codes become labels of scheme `snomed`; a list with anything else in it is kept as
it is under the scheme `dx`.

**records.csv** (optional, in SOURCE) says what headers cannot: whose record it is and how it may be used.

    record,patient,age,sex,split,fold,labels:rhythm
    ward3/2019/e0001,p17,63,F,train,1,sinus;ventricular-premature
    e0002,p17,64,F,train,1,none

| column | what |
|---|---|
| record | required: path of the header from SOURCE without its ending, or its bare name where only one has it |
| patient | whose it is; the same text for the same person. Without it a record counts as a patient of its own |
| age | years, 0 to 150 |
| sex | female, male, F, M |
| split | all, train, val, test. Pretraining reads all and train. A table with this column fills every cell |
| fold | whole number |
| labels:SCHEME | codes separated by `;`; `none` where it was labelled and has none. Any number of such columns |

A cell wins over the header's comment; an empty cell leaves it. A record that the table lacks is refused
(`not-in-table`) and not read: its split and its patient are not known, and it could be a held-out one.

**dataset.json** (optional, in SOURCE) gives the archive its own title, licence (SPDX), citation, address and version,
which the manifest repeats, and the name that keeps it apart from other archives:
`{"name": "our-ward", "title": "ECG archive of our ward", "licence": "LicenseRef-internal"}`.

Records are called by their bare name, or, as soon as two share one, all by their path from SOURCE.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._own_archive import (
    SUBJECT_COLUMNS,
    TABLE,
    items,
    read_about,
    read_table,
    subject,
    take_facts_,
)
from ecgfm.databases._wfdb_any import any_signal_fields
from ecgfm.databases._wfdb_header import comment_fields, find_headers, read_header
from ecgfm.databases.base import Database, folder
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import Record, RecordRef

_UNLISTED = "unlisted"
"""Key of `RecordRef.info` of a record that the table lacks."""


class WfdbFolder(Database):
    """Any folder of WFDB records; see the module."""

    title = "An archive of your own in WFDB format"
    licence = "LicenseRef-unknown"
    citation = "not published"
    address = "not published"
    version = "unknown"
    native_unit = "as each header says"

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield a record for every header below `root`.

        Raises:
            DatabaseError: `root` is missing, holds no header, or its table or facts are wrong.
        """
        top = folder(root, "WFDB headers (.hea)")
        take_facts_(self, read_about(top))
        paths = {path.relative_to(top).with_suffix("").as_posix(): path for path in find_headers(top)}
        if not paths:
            raise DatabaseError(f"{top} holds no header (.hea); give the folder that the WFDB records are below")
        bare = Counter(path.stem for path in paths.values())
        unique = len(bare) == len(paths)
        table = top / TABLE
        rows = _rows(table, paths, bare) if table.exists() else None
        for name, path in paths.items():
            info: Mapping[str, str] = {} if rows is None else rows.get(name, {_UNLISTED: TABLE})
            yield RecordRef(
                record=path.stem if unique else name,
                file=str(path),
                split="unknown" if _UNLISTED in info else info.get("split", "all"),
                info=info,
            )

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`. Also raises `not-in-table`, `signal-unreadable`."""
        if _UNLISTED in ref.info:
            raise RecordError(
                "not-in-table",
                f"{TABLE} has no row for {ref.record}, so that its patient and split are not known; add a row, or move "
                "the record out of the folder",
            )
        header = read_header(ref.file)
        said = comment_fields(header)
        table = subject(ref.info)
        return Record(
            record=ref.record,
            database=self.name(),
            **any_signal_fields(header, ref.path),
            patient=table["patient"],
            age=table["age"] if table["age"] is not None else age_years(said.get("age", "")),
            sex=table["sex"] or sex_of(said.get("sex", "")),
            labels=(_diagnoses(said["dx"]) if "dx" in said else {}) | table["labels"],
            fold=table["fold"],
        )


def _rows(table: Path, paths: Mapping[str, Path], bare: Mapping[str, int]) -> dict[str, Mapping[str, str]]:
    """Return the cells of the table by the path of the record, without its ending."""
    by_bare = {path.stem: name for name, path in paths.items()}
    found: dict[str, Mapping[str, str]] = {}
    lines: dict[str, int] = {}
    for row in read_table(table, columns=SUBJECT_COLUMNS, required=("record",)):
        written = row.cells["record"]
        name = written if written in paths else by_bare.get(written)
        if name is None:
            raise DatabaseError(
                f"{table} line {row.line}: there is no record {written!r} below {table.parent}; records are called "
                f"as {next(iter(paths))}, without .hea"
            )
        if name != written and bare[written] > 1:
            same = [other for other, path in paths.items() if path.stem == written][:2]
            raise DatabaseError(
                f"{table} line {row.line}: {written!r} is the name of {bare[written]} records ({', '.join(same)}); "
                "write the path"
            )
        if name in lines:
            raise DatabaseError(
                f"{table} line {row.line}: {written!r} has a row already on line {lines[name]}; delete one"
            )
        lines[name] = row.line
        found[name] = {column: cell for column, cell in row.cells.items() if column != "record"}
    return found


def _diagnoses(text: str) -> dict[str, tuple[str, ...]]:
    """Return the codes of a `Dx` comment, by scheme; no scheme where the comment gives none."""
    codes = tuple(code for code in items(text.replace(",", ";")) if code.lower() not in ("unknown", "nan"))
    if not codes:
        return {}
    # A SNOMED CT identifier has 6 to 18 digits.
    scheme = "snomed" if all(re.fullmatch("[0-9]{6,18}", code) for code in codes) else "dx"
    return {scheme: codes}
