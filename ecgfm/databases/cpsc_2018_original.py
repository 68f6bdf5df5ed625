"""China Physiological Signal Challenge 2018 in its own files: 6,877 records of 6 to 144 s at 500 Hz.

Liu et al. 2018, https://doi.org/10.1166/jmihi.2018.2442; published at http://2018.icbeb.org/Challenge.html as three
archives of MATLAB files (version 5), A0001.mat to A6877.mat, each a struct ECG of sex, age and data (12, T), and a
table REFERENCE.csv of up to three of nine classes per record. The records are those of `cpsc-2018`, the copy of the
CinC Challenge 2021; pretrain on one of the two.

**What the files do not say** and the challenge's page does (not checked against the files): the rate of 500 Hz, the
millivolt, and the lead order I II III aVR aVL aVF V1 to V6. The order of the limb leads is borne out by the five
records that were looked at: II = I + III to the last digit, and aVR, aVL and aVF follow from I and II within 1.2
microvolt; that of the chest leads cannot be shown so.

**Why the counts are floats.** In two of the five records every lead is whole microvolts less its own mean over the
record, which is no whole number of any one step; the other three have a different value in every sample. No integer
scale gives back what is published, so records keep their float64, in millivolt.

Labels are the class numbers "1" to "9" in the order of the table, scheme `cpsc2018`: 1 normal, 2 atrial fibrillation,
3 first-degree AV block, 4 left and 5 right bundle branch block, 6 premature atrial and 7 premature ventricular
contraction, 8 ST depression, 9 ST elevation (not checked against the files). Records without a row have no label.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._matlab5 import read_struct
from ecgfm.databases._wfdb_header import find_files
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef

TABLE = "REFERENCE.csv"
SCHEME = "cpsc2018"
_COLUMNS = ("First_label", "Second_label", "Third_label")
_CLASSES = frozenset("123456789")


class Cpsc2018Original(Database):
    """CPSC 2018 in its own layout; see the module."""

    title = "China Physiological Signal Challenge 2018"
    licence = "NOASSERTION"  # its page states none
    citation = (
        "Liu et al. 2018, An Open Access Database for Evaluating the Algorithms of Electrocardiogram Rhythm and "
        "Morphology Abnormality Detection, Journal of Medical Imaging and Health Informatics 8 1368-1373, "
        "https://doi.org/10.1166/jmihi.2018.2442"
    )
    address = "https://doi.org/10.1166/jmihi.2018.2442"
    version = "2018"
    expected_records = 6_877
    typical_s = 16.0
    native_rates_hz = (500.0,)
    native_leads = LEADS
    download = Download(
        address="http://2018.icbeb.org/",
        sums="",
        steps="fetch the three archives of the training set and REFERENCE.csv from "
        "http://2018.icbeb.org/Challenge.html and unpack them into one folder; the same records are open one by one "
        "as cpsc-2018",
    )

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield every record below `root`, with its classes where a REFERENCE.csv below `root` has them.

        Raises:
            DatabaseError: `root` is missing or empty, holds other files (.mat, or headers: then it is the copy of
                the CinC Challenge), or tables that cannot be read or disagree.
        """
        top = folder(root, f"A0001.mat ... and {TABLE}")
        paths = []
        classes: dict[str, str] = {}
        for path in find_files(top, ".mat", ".hea", TABLE):
            if path.name == TABLE:
                _add_classes(classes, path)
            elif path.suffix == ".hea":
                raise DatabaseError(
                    f"{path} is a WFDB header, which the original files of CPSC 2018 do not have: if {top} is the copy "
                    "of the CinC Challenge, convert it as cpsc-2018"
                )
            elif not re.fullmatch(r"A\d{4}", path.stem):
                raise DatabaseError(f"{path} is not a record of CPSC 2018, called A0001.mat to A6877.mat")
            else:
                paths.append(path)
        if not paths:
            raise DatabaseError(f"{top} holds no record A0001.mat ...; unpack the training set of CPSC 2018 there")
        for path in paths:
            yield RecordRef(record=path.stem, file=str(path), info={"classes": classes.get(path.stem, "")})

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`. Also raises `file-malformed`, `signal-infinite`."""
        fields = read_struct(ref.path, "ECG")
        data_LT, age, sex = (fields.get(name) for name in ("data", "age", "sex"))
        if not isinstance(data_LT, np.ndarray) or data_LT.shape[0] != len(LEADS) or not data_LT.size:
            shape = data_LT.shape if isinstance(data_LT, np.ndarray) else "none"
            raise RecordError(
                "file-malformed", f"{ref.path}: ECG.data is of shape {shape}, expected 12 leads x samples"
            )
        if np.isinf(data_LT).any():
            raise RecordError("signal-infinite", f"{ref.path}: ECG.data holds infinite values")
        classes = ref.info["classes"]
        return Record(
            record=ref.record,
            database=self.name(),
            counts_LT=np.ascontiguousarray(data_LT),
            leads=LEADS,
            microvolt_per_count=np.full(len(LEADS), 1000.0),
            offset_counts=np.zeros(len(LEADS), dtype=np.int64),
            rate_hz=500.0,
            age=age_years(str(age.item())) if isinstance(age, np.ndarray) and age.size == 1 else None,
            sex=sex_of(sex) if isinstance(sex, str) else None,
            labels={SCHEME: tuple(classes.split())} if classes else {},
        )


def _add_classes(classes: dict[str, str], table: Path) -> None:
    """Add each record's classes, with spaces between."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in ("Recording", *_COLUMNS) if name not in (reader.fieldnames or ())]
            if missing:
                raise DatabaseError(f"{table} has no column {', '.join(missing)}: it is not that of CPSC 2018")
            for row in reader:
                record = row["Recording"].strip()
                codes = [code for code in (row[name].strip() for name in _COLUMNS) if code]
                if not codes or not _CLASSES.issuperset(codes):
                    raise DatabaseError(f"{table} line {reader.line_num}: classes {codes} are not of 1 to 9")
                text = " ".join(dict.fromkeys(codes))
                if classes.setdefault(record, text) != text:
                    raise DatabaseError(
                        f"{table} gives {record} the classes {text}, another table or line {classes[record]}: keep one"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatabaseError(f"{table} cannot be read: {error}") from error
