"""MIMIC-IV-ECG 1.0: 800,035 records of 10 s at 500 Hz from 161,352 patients, with what the ECG machine wrote.

Gow et al. 2023, https://doi.org/10.13026/4nqg-sb35: `record_list.csv`, `machine_measurements.csv` and
`files/p1000/p10000032/s40689238/40689238.hea`. The leads are published in the order I II III aVR aVF aVL V1-V6, as
the headers say; nothing here goes by position. 10,554 records hold samples that are missing. A record is called by
its study_id, its patient by subject_id.

Labels are the statements of the machine, `report_0` to `report_17`, as published and without the empty ones. Where
`machine_measurements.csv` is not there, records have no labels. Intervals and axes are not kept: several of their
values (29999, 32767, -32768, 65535) are marks and no measurements.

Age and sex are not part of this database. They are read from `patients.csv` of MIMIC-IV (module `hosp`, which needs
PhysioNet's credentialed access) where somebody has put that file, unpacked, beside `record_list.csv`: the age is
`anchor_age` and the years from `anchor_year` to the recording. An `anchor_age` of 91 stands for every age above 89;
we take it as it is. The names of these columns and the 91 are those of MIMIC-IV's documentation, and were not
checked against the file.

Nearly a million records on a network disk cannot be looked at one by one, so what is there is found by listing the
folder of each patient: rows of the table whose folder `s...` is not there are passed over, so that a partial download
can be used (the manifest shows how many records a whole copy has), and a folder without its files, as a download
that was broken off leaves it, is refused when it is read. Of each row no more is kept than where its line of
`machine_measurements.csv` begins.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._tables import row_at, rows
from ecgfm.databases._wfdb_files import signal_fields
from ecgfm.databases._wfdb_named import read_named_header
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.record import Record, RecordRef

TABLE = "record_list.csv"
MEASUREMENTS = "machine_measurements.csv"
PATIENTS = "patients.csv"


class MimicIvEcg(Database):
    """MIMIC-IV-ECG; see the module."""

    title = "MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset"
    licence = "ODbL-1.0"
    citation = (
        "Gow et al. 2023, MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset, version 1.0, PhysioNet, "
        "https://doi.org/10.13026/4nqg-sb35"
    )
    address = "https://doi.org/10.13026/4nqg-sb35"
    version = "1.0"
    expected_records = 800_035
    native_rates_hz = (500.0,)
    native_leads = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
    download = Download(
        address="https://physionet.org/files/mimic-iv-ecg/1.0/",
        files=("LICENSE.txt", TABLE, MEASUREMENTS, "files/*"),
    )

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield the records of the table whose folder is there.

        Raises:
            DatabaseError: `root` is missing, has no table or one that is not this database's, holds no record of
                it, or a folder below cannot be listed.
        """
        table = folder(root, f"{TABLE} and files/") / TABLE
        listing = _Listing(root)
        measurements = root / MEASUREMENTS
        bytes_of_study = _Positions(measurements) if measurements.exists() else None
        people = _people(root / PATIENTS) if (root / PATIENTS).exists() else {}
        empty = True
        patient = ""
        for row in rows(table, ("subject_id", "study_id", "ecg_time", "path"), self.title):
            subject, study, time, place = row.values
            if not listing.has(place.rpartition("/")[0]):
                continue
            empty = False
            # The rows of a patient follow each other, and share one copy of the number.
            patient = subject if subject != patient else patient
            info = {"patient": patient}
            if not (subject.isdecimal() and study.isdecimal()):
                raise DatabaseError(
                    f"{table} line {row.line}: subject_id {subject!r} or study_id {study!r} is no number"
                )
            byte = bytes_of_study.find(int(study)) if bytes_of_study else None
            if byte is not None:
                # How far up the table is, not where: a copy that was moved is still the same conversion.
                info |= {"byte": str(byte), "up": sys.intern(str(place.count("/")))}
            if subject in people:
                info |= _person(*people[subject], time)
            yield RecordRef(record=study, file=f"{root}/{place}.hea", info=info)
        if empty:
            raise DatabaseError(
                f"{root} has the table {TABLE}, but none of its records; download the folder files/ beside it"
            )

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`. Also raises `table-malformed`."""
        header = read_named_header(ref.file)
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(header, ref.folder),
            patient=ref.info["patient"],
            age=age_years(ref.info.get("age", "")),
            sex=sex_of(ref.info.get("sex", "")),
            labels={"report": _statements(ref)} if "byte" in ref.info else {},
        )


def _statements(ref: RecordRef) -> tuple[str, ...]:
    """Return what the machine wrote about a record, in the order of its lines."""
    table = ref.path.parents[int(ref.info["up"])] / MEASUREMENTS
    try:
        row = row_at(table, int(ref.info["byte"]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(
            "table-malformed", f"the row of study {ref.record} in {table} cannot be read: {error}"
        ) from error
    if row.get("study_id") != ref.record:
        raise RecordError(
            "table-malformed",
            f"byte {ref.info['byte']} of {table} is not the row of study {ref.record} any more: the table was changed "
            "while it was in use; convert again",
        )
    numbers = sorted(int(match[1]) for name in row if (match := re.fullmatch(r"report_(\d+)", name)))
    lines = (row[f"report_{number}"].strip() for number in numbers)
    return tuple(line for line in lines if line)


class _Positions:
    """Where the row of a study begins: 16 bytes a study, as 800,000 of them are in memory at once."""

    def __init__(self, table: Path) -> None:
        studies, starts = array("q"), array("q")
        for row in rows(table, ("subject_id", "study_id"), MimicIvEcg.title):
            study = row.values[1]
            if not study.isdecimal():
                raise DatabaseError(f"{table} line {row.line}: study_id {study!r} is no number")
            studies.append(int(study))
            starts.append(row.byte)
        order = np.argsort(np.array(studies), kind="stable")
        self._studies = array("q", np.array(studies)[order].tobytes())
        self._starts = array("q", np.array(starts)[order].tobytes())

    def find(self, study: int) -> int | None:
        """Return the byte, of the first row where there are several; None where there is none."""
        index = bisect_left(self._studies, study)
        found = index < len(self._studies) and self._studies[index] == study
        return self._starts[index] if found else None


class _Listing:
    """Which folders are there. The disk is asked once a folder as long as the table goes folder by folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._latest: dict[int, tuple[str, frozenset[str]]] = {}

    def has(self, place: str) -> bool:
        """Return whether a folder such as `files/p1000/p10000032/s40689238` is below the root."""
        above, slash, name = place.rpartition("/")
        # Nothing is above the first name: a path from the top of the disk is not ours.
        return bool(above or not slash) and name in self._below(above)

    def _below(self, place: str) -> frozenset[str]:
        depth = place.count("/") if place else -1
        latest, names = self._latest.get(depth, (None, frozenset()))
        if latest != place:
            names = self._names(self._root / place) if not place or self.has(place) else frozenset()
            self._latest[depth] = (place, names)
        return names

    def _names(self, place: Path) -> frozenset[str]:
        try:
            with os.scandir(place) as entries:
                return frozenset(entry.name for entry in entries)
        except NotADirectoryError:
            return frozenset()
        except OSError as error:
            raise DatabaseError(f"{place} cannot be listed: {error.strerror}; check its permissions") from error


def _people(table: Path) -> dict[str, tuple[str, int]]:
    """Return of each subject the sex as written, and the year in which the age was 0."""
    people: dict[str, tuple[str, int]] = {}
    for row in rows(table, ("subject_id", "gender", "anchor_age", "anchor_year"), "MIMIC-IV (module hosp)"):
        subject, sex, age, year = row.values
        if not (age.isdecimal() and year.isdecimal()):
            raise DatabaseError(f"{table} line {row.line}: anchor_age {age!r} or anchor_year {year!r} is no number")
        people[subject] = (sys.intern(sex), int(year) - int(age))
    return people


def _person(sex: str, birth_year: int, time: str) -> dict[str, str]:
    """Return sex and age at a time such as 2180-07-23 08:44:00; no age where the time is not known."""
    year = re.match(r"(\d{4})-", time)
    return {"sex": sex} | ({"age": sys.intern(str(int(year[1]) - birth_year))} if year else {})
