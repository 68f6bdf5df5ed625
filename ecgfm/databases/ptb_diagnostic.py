"""PTB Diagnostic ECG Database 1.0.0 as published: 549 records of 32 to 120 s at 1000 Hz from 290 patients.

Bousseljot et al. 1995; https://doi.org/10.13026/C28C71. `patient001/s0010_re.hea` describes 15 signals of 2000
counts per mV: the twelve leads, in lower case, in a `.dat` file, and the Frank leads vx vy vz in a `.xyz` file.

The `.xyz` file is never read: the canonical form has no Frank leads, and copies of the database often lack these
files, so a record has its twelve leads whether the file is there or not. Three of the four headers that were looked
at give 0 as first sample and sum of every signal, which is not true of their signals: they were never filled in,
and nothing is compared with them.

The folder gives the patient; a record that lies in another folder has none. The label is the header's "Reason for
admission" as written, scheme `ptb-diagnosis`; a reason that is "n/a" is no label. The other clinical fields are not
read. 516 of the records, at half the resolution and without patients, are the Challenge's `ptb`; pretrain on one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._wfdb_files import signal_fields
from ecgfm.databases._wfdb_header import comment_fields, find_headers, of_standard_leads
from ecgfm.databases._wfdb_named import read_named_header
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef

SCHEME = "ptb-diagnosis"


class PtbDiagnostic(Database):
    """PTB Diagnostic in its own layout; see the module."""

    title = "PTB Diagnostic ECG Database"
    licence = "ODC-By-1.0"
    citation = (
        "Bousseljot, Kreiseler, Schnabel 1995, Nutzung der EKG-Signaldatenbank CARDIODAT der PTB ueber das Internet, "
        "Biomedizinische Technik 40 Ergaenzungsband 1 S317, https://doi.org/10.1515/bmte.1995.40.s1.317"
    )
    address = "https://doi.org/10.13026/C28C71"
    version = "1.0.0"
    expected_records = 549
    typical_s = 110.0
    native_rates_hz = (1000.0,)
    native_leads = (*(lead.lower() for lead in LEADS), "vx", "vy", "vz")
    download = Download(address="https://physionet.org/files/ptbdb/1.0.0/", files=("patient*/*.hea", "patient*/*.dat"))

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield every record below `root`.

        Raises:
            DatabaseError: `root` is missing or empty, or holds records that are not called s0010_re, s0014lre ...
        """
        top = folder(root, "patient001, patient002 ...")
        empty = True
        for path in find_headers(top):
            empty = False
            if not re.fullmatch(r"s\d{4}[a-z_]*re", path.stem):
                raise DatabaseError(
                    f"{path} is not a record of the PTB Diagnostic ECG Database, called s0010_re, s0014lre ...; give "
                    "the database's own folder (records S0001 ... are the Challenge's: convert them as ptb)"
                )
            yield RecordRef(record=path.stem, file=str(path))
        if empty:
            raise DatabaseError(f"{top} holds no header (.hea); give the folder that holds patient001, patient002 ...")

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_named_header(ref.file)
        fields = comment_fields(header)
        reason = fields.get("reason for admission", "")
        home = ref.path.parent.name
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(of_standard_leads(header), ref.folder),
            patient=home if re.fullmatch(r"patient\d{3}", home) else None,
            age=age_years(fields.get("age", "")),
            sex=sex_of(fields.get("sex", "")),
            labels={SCHEME: (reason,)} if reason and reason.lower() != "n/a" else {},
        )
