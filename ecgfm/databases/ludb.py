"""Lobachevsky University Database (LUDB) 1.0.1: 200 records of 10 s at 500 Hz from 200 subjects.

Kalyakulina et al. 2020, https://doi.org/10.1109/ACCESS.2020.3029211; https://doi.org/10.13026/eegm-h675.

**The gains in the headers are not used.** They scale every lead to 1.00 mV peak to peak, so that the leads of one
record have no common unit and II = I + III fails. The integers themselves satisfy II = I + III exactly in all 200
records, so they have one common scale. That it is 1 microvolt a count, with 0 V at 0, is inferred and not
published: the median peak to peak of I, II, III then is 1.09, 1.41, 1.18 mV, where twenty records of Georgia and
Ningbo have 0.97, 1.41, 1.18 mV. The rule is called `ludb-counts-are-microvolt`, always applied, and recorded in
`mended`.

Labels are the statements of the header's comments, as published, without the full stop at the end. They are those
of ludb.csv, which for nine paced records adds "pacemaker presence, undefined". An age of 90 stands for above 89
(ludb.csv). The delineation marks are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._wfdb_files import read_counts
from ecgfm.databases._wfdb_header import comment_fields, find_headers, lead_names
from ecgfm.databases._wfdb_named import read_named_header
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef

SCALE_RULE = "ludb-counts-are-microvolt"


class Ludb(Database):
    """LUDB; see the module."""

    title = "Lobachevsky University Electrocardiography Database"
    licence = "ODC-By-1.0"
    citation = (
        "Kalyakulina et al. 2020, LUDB: A New Open-Access Validation Tool for Electrocardiogram Delineation "
        "Algorithms, IEEE Access 8 186181-186190, https://doi.org/10.1109/ACCESS.2020.3029211"
    )
    address = "https://doi.org/10.13026/eegm-h675"
    version = "1.0.1"
    expected_records = 200
    native_rates_hz = (500.0,)
    native_leads = tuple(lead.lower() for lead in LEADS)
    download = Download(address="https://physionet.org/files/ludb/1.0.1/", files=("data/*.hea", "data/*.dat"))

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield every record below the database's folder, or below its `data`.

        Raises:
            DatabaseError: `root` is missing or empty, or holds records that are not called 1, 2, 3 ...
        """
        top = folder(root, "ludb.csv and data/")
        top = top / "data" if (top / "data").is_dir() else top
        empty = True
        for path in find_headers(top):
            empty = False
            if not (path.stem.isdecimal() and 1 <= int(path.stem) <= self.expected_records):
                raise DatabaseError(f"{path} is not a record of LUDB, called 1 to 200; give LUDB's own folder")
            yield RecordRef(record=path.stem, file=str(path))
        if empty:
            raise DatabaseError(f"{top} holds no header (.hea); give the folder of LUDB that holds data/")

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_named_header(ref.file)
        leads = lead_names(header)
        fields = comment_fields(header)
        start = header.comments.index("<diagnoses>:") if "<diagnoses>:" in header.comments else len(header.comments)
        statements = (comment.rstrip(". ") for comment in header.comments[start + 1 :])
        return Record(
            record=ref.record,
            database=self.name(),
            counts_LT=read_counts(header, ref.folder),
            leads=leads,
            microvolt_per_count=np.ones(len(leads)),
            offset_counts=np.zeros(len(leads), dtype=np.int64),
            rate_hz=header.rate_hz,
            patient=ref.record,
            age=age_years(fields.get("<age>", "")),
            sex=sex_of(fields.get("<sex>", "")),
            labels={"ludb": tuple(dict.fromkeys(statement for statement in statements if statement))},
            mended=(SCALE_RULE,),
        )
