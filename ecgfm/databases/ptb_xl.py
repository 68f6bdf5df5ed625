"""PTB-XL 1.0.3: 21,799 records of 10 s from 18,869 patients, with SCP statements and ten folds.

Wagner et al. 2020, https://doi.org/10.1038/s41597-020-0495-6; https://doi.org/10.13026/kfzx-aw45.

Each record is published at 500 Hz (`records500`) and at 100 Hz (`records100`). Where the folder holds
`records500`, those are read, otherwise `records100`; the two are never mixed. A record is called by its ecg_id
in five digits, whatever the rate. Rows of the table whose header is not there are passed over, so that a partial
download can be used; the manifest shows how many records a whole copy has.

Folds 1 to 8 are split `train`, 9 is `val`, 10 is `test`, as the authors recommend.

The table's sex is 0 for male and 1 for female (table 2 of the paper). Ages above 89 are hidden as 300, and given as
90; see `_fields.age_years`.

Statements (`scp_codes`) come with a likelihood in percent, 0 where none was given. The codes are kept in the
order of falling likelihood, equal ones as published; the numbers are not kept. No statement says that the axis
deviates: that is in the column `heart_axis`, which is a scheme of its own. The reports, free text in German and other
languages, are not kept.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ecgfm.databases._fields import age_years
from ecgfm.databases._tables import rows
from ecgfm.databases._wfdb_files import signal_fields
from ecgfm.databases._wfdb_named import read_named_header
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import Record, RecordRef, Sex

TABLE = "ptbxl_database.csv"
_KEPT = ("patient_id", "age", "sex", "scp_codes", "heart_axis", "strat_fold")
_SPLITS = {**dict.fromkeys(range(1, 9), "train"), 9: "val", 10: "test"}
_SEX: dict[str, Sex] = {"0": "male", "1": "female"}


class PtbXl(Database):
    """PTB-XL in its own layout; see the module."""

    title = "PTB-XL"
    licence = "CC-BY-4.0"
    citation = (
        "Wagner et al. 2020, PTB-XL, a large publicly available electrocardiography dataset, Scientific Data 7 154, "
        "https://doi.org/10.1038/s41597-020-0495-6"
    )
    address = "https://doi.org/10.13026/kfzx-aw45"
    version = "1.0.3"
    expected_records = 21_799
    native_rates_hz = (500.0, 100.0)
    native_leads = ("I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")
    download = Download(
        address="https://physionet.org/files/ptb-xl/1.0.3/",
        files=("LICENSE.txt", TABLE, "scp_statements.csv", "records500/*"),
    )

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield the records of the table whose header is there.

        Raises:
            DatabaseError: `root` is missing, has no table or one that is not PTB-XL's, or holds no record of it.
        """
        table = folder(root, TABLE) / TABLE
        column = "filename_hr" if (root / "records500").is_dir() else "filename_lr"
        empty = True
        for row in rows(table, ("ecg_id", column, *_KEPT), self.title):
            number, place, *kept = row.values
            path = root / f"{place}.hea"
            if not _is_there(path):
                continue
            empty = False
            info = dict(zip(_KEPT, kept, strict=True))
            fold = _whole(info["strat_fold"])
            if fold not in _SPLITS:
                raise DatabaseError(f"{table} line {row.line}: strat_fold {info['strat_fold']!r} is not 1 to 10")
            identity = _whole(number)
            if identity is None:
                raise DatabaseError(f"{table} line {row.line}: ecg_id {number!r} is not a number")
            yield RecordRef(record=f"{identity:05d}", file=str(path), split=_SPLITS[fold], info=info)
        if empty:
            raise DatabaseError(
                f"{root} has the table {TABLE}, but none of its records; download records500 or records100 beside it"
            )

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`. Also raises `table-malformed`."""
        header = read_named_header(ref.file)
        patient = _whole(ref.info["patient_id"])
        axis = ref.info["heart_axis"].strip()
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(header, ref.folder),
            patient=None if patient is None else str(patient),
            age=age_years(ref.info["age"]),
            sex=_SEX.get(ref.info["sex"].strip().removesuffix(".0")),
            labels={"scp": statements(ref.info["scp_codes"]), "heart-axis": (axis,) if axis else ()},
            fold=_whole(ref.info["strat_fold"]),
        )


def statements(text: str) -> tuple[str, ...]:
    """Return the codes of an `scp_codes` field by falling likelihood, equal ones as published.

    Raises:
        RecordError: `table-malformed`: it is not a dict of likelihoods written as Python does.
    """
    try:
        likelihoods = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError) as error:
        raise RecordError("table-malformed", f"scp_codes {text!r} is not a dict of codes") from error
    if not isinstance(likelihoods, dict) or not all(
        isinstance(code, str) and isinstance(value, int | float) for code, value in likelihoods.items()
    ):
        raise RecordError("table-malformed", f"scp_codes {text!r} is not a dict of codes and likelihoods")
    return tuple(sorted(likelihoods, key=lambda code: -likelihoods[code]))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise DatabaseError(f"{path} cannot be looked at: {error.strerror}; check its permissions") from error


def _whole(text: str) -> int | None:
    """Return a whole number that may be written as a float ("15709.0"), or None."""
    return int(text.split(".")[0]) if re.fullmatch(r"\d+(\.0*)?", text.strip()) else None
