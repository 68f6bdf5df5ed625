"""CODE-15%: 345,779 exams of 233,770 patients from Minas Gerais, at 400 Hz, with six diagnoses.

Ribeiro et al. 2021, https://doi.org/10.5281/zenodo.4916206: `exams.csv` and `exams_part0.hdf5` to
`exams_part17.hdf5`, each with `tracings` (N, 4096, 12) in millivolt and `exam_id` (N,). The files name neither the
leads nor the rate: that they are I II III aVR aVL aVF V1-V6 at 400 Hz is what the publication says. A record is
called by its exam_id. The parts are published as archives (exams_part0.zip to 17), which must be unpacked; each may
then lie beside `exams.csv` or in a folder of its own below.

Exams and rows of the table are matched by exam_id, never by their order, and the table's `trace_file` is not used.
Exams of the table that are in none of the parts are passed over, so that a partial download can be used; the
manifest shows how many records a whole copy has. An exam that the table lacks is refused: its patient is not known, so
that it could end up on both sides of a split. Rows with exam_id 0, as each part has one at its end, are padding.

Exams shorter than 4096 samples (10.24 s), most of them of 2934 (7.3 s), have zeros on both sides. We cut the samples
at either end in which all leads are 0; an exam that is all zeros is refused.

Labels are the diagnoses that are true, by the names of their columns, and `normal` where normal_ecg is true:
1dAVb (first-degree AV block), RBBB, LBBB (bundle branch blocks), SB, ST (sinus bradycardia, tachycardia), AF (atrial
fibrillation). An exam without any has an empty list. Baseline wander needs a high-pass filter for training.

Shapes: N exams, T samples, L leads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._fields import age_years
from ecgfm.databases._tables import rows
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError, RecordError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef, Sex

TABLE = "exams.csv"
SAMPLES = 4096
DIAGNOSES = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF", "normal_ecg")
"""Columns of the labels."""
_CODES = (*DIAGNOSES[:-1], "normal")
_SEX: dict[str, Sex] = {"true": "male", "false": "female"}
# Where a compressed chunk holds a slice of many exams, as many are read at once, or each exam would cost the decoding
# of all: 16 exams a second instead of 1,900 with chunks of (313, 128, 1). This bounds the memory, at 126 MB.
_LARGEST_BLOCK = 640
_EMPTY: NDArray[np.float32] = np.empty((0, SAMPLES, len(LEADS)), dtype=np.float32)


class Code15(Database):
    """CODE-15%; see the module."""

    title = "CODE-15%"
    licence = "CC-BY-4.0"
    citation = (
        "Ribeiro et al. 2021, CODE-15%: a large scale annotated dataset of 12-lead ECGs, version 1.0.0, Zenodo, "
        "https://doi.org/10.5281/zenodo.4916206"
    )
    address = "https://doi.org/10.5281/zenodo.4916206"
    version = "1.0.0"
    expected_records = 345_779
    native_rates_hz = (400.0,)
    native_leads = LEADS
    highpass_hz = 0.5
    download = Download(
        address="https://zenodo.org/records/4916206/files/",
        sums="https://zenodo.org/api/records/4916206",
        files=(TABLE, "exams_part*.zip"),
        archives=("exams_part*.zip",),
    )

    _part: _Part | None = None

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield the exams of every part that is there.

        Raises:
            DatabaseError: `root` is missing, has no table or no part, or one that is not CODE-15%'s.
        """
        table = folder(root, f"{TABLE} and exams_part0.hdf5") / TABLE
        exams = _exams(table)
        parts = _parts(root)
        if not parts:
            packed = next(iter(sorted(root.glob("exams_part*.zip"))), None)
            fix = f"unpack {packed.name} and the others" if packed else "download and unpack exams_part0.zip to 17"
            raise DatabaseError(f"{root} has the table {TABLE}, but no exams_part*.hdf5; {fix} beside it")
        unlisted: dict[str, str] = {}
        for path in parts:
            with _open(path) as file:
                numbers = file["exam_id"][:].tolist()
            for index, exam in enumerate(numbers):
                if exam != 0:
                    yield RecordRef(record=str(exam), file=str(path), index=index, info=exams.get(exam, unlisted))

    def read(self, ref: RecordRef) -> Record:
        """Read one exam; see `Database.read`.

        Also raises `not-in-table`, `table-malformed`, `signal-empty`, `signal-infinite`.
        """
        if not ref.info:
            raise RecordError(
                "not-in-table",
                f"exam {ref.record} of {ref.path} is not in {TABLE}, so that its patient is not known; is the table "
                "whole? Else download it again",
            )
        if self._part is None or self._part.path != ref.path:
            self._part = _Part(ref.path)
        exam_TL = self._part.exam(ref.index)
        if np.isinf(exam_TL).any():
            raise RecordError(
                "signal-infinite", f"exam {ref.record} is row {ref.index} of {ref.path} and holds infinite values"
            )
        # NaN is not 0, and so is not padding.
        filled = exam_TL.reshape(-1) != 0
        first = int(filled.argmax())
        if not filled[first]:
            raise RecordError("signal-empty", f"exam {ref.record} is row {ref.index} of {ref.path}: all zeros")
        last = len(filled) - 1 - int(filled[::-1].argmax())
        leads = len(LEADS)
        return Record(
            record=ref.record,
            database=self.name(),
            counts_LT=np.ascontiguousarray(exam_TL[first // leads : last // leads + 1].T),
            leads=LEADS,
            microvolt_per_count=np.full(leads, 1000.0),
            offset_counts=np.zeros(leads, dtype=np.int64),
            rate_hz=400.0,
            patient=ref.info["patient"],
            age=age_years(ref.info["age"]),
            sex=_SEX.get(ref.info["is_male"].lower()),
            labels={"code15": _labels(ref)},
        )


class _Part:
    """One part, open, with the block of exams that was read last: records are read in their order in the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tracings = _open(path)["tracings"]  # which keeps the file open
        except DatabaseError as error:
            raise RecordError("truncated", str(error)) from error
        self._exams = min(self._tracings.chunks[0], _LARGEST_BLOCK) if self._tracings.chunks else 1
        self._start = -1
        self._block_NTL: NDArray[np.float32] = _EMPTY

    def exam(self, index: int) -> NDArray[np.float32]:
        """Return shape (T, L), in millivolt; it must not be changed."""
        start = index - index % self._exams
        if start != self._start:
            # First let go of the old block, or there are two in memory.
            self._start, self._block_NTL = -1, _EMPTY
            try:
                self._block_NTL = self._tracings[start : start + self._exams]
            except OSError as error:
                raise RecordError("truncated", f"row {index} of {self.path} cannot be read: {error}") from error
            self._start = start
        exam_TL: NDArray[np.float32] = self._block_NTL[index - start]
        return exam_TL


def _open(path: Path) -> h5py.File:
    """Open a part and check that it is one.

    Raises:
        DatabaseError: It is not HDF5, is cut short, or holds other things.
    """
    try:
        # Locks are for writers, and some network disks have none.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise DatabaseError(f"{path} cannot be read as HDF5: {error}; download and unpack it again") from error
    tracings, numbers = file.get("tracings"), file.get("exam_id")
    if (
        isinstance(tracings, h5py.Dataset)
        and isinstance(numbers, h5py.Dataset)
        and tracings.dtype == np.float32
        and tracings.shape[1:] == (SAMPLES, len(LEADS))
        and numbers.dtype.kind in "iu"
        and numbers.shape == tracings.shape[:1]
    ):
        return file
    found = ", ".join(
        f"{name} {item.shape} {item.dtype}" for name, item in file.items() if isinstance(item, h5py.Dataset)
    )
    file.close()
    raise DatabaseError(
        f"{path} must hold tracings (N, {SAMPLES}, {len(LEADS)}) float32 and exam_id (N,), and holds "
        f"{found or 'neither'}; give CODE-15% as published"
    )


def _parts(root: Path) -> list[Path]:
    """Return the parts beside the table or one folder below, by number."""
    found = (*root.glob("exams_part*.hdf5"), *root.glob("*/exams_part*.hdf5"))
    numbered = [(int(match[1]), path) for path in found if (match := re.fullmatch(r"exams_part(\d+)", path.stem))]
    return [path for _, path in sorted(numbered)]


def _exams(table: Path) -> dict[int, dict[str, str]]:
    """Return what the table says of each exam.

    Raises:
        DatabaseError: The table is malformed, or says two things of one exam.
    """
    exams: dict[int, dict[str, str]] = {}
    for row in rows(table, ("exam_id", "patient_id", "age", "is_male", *DIAGNOSES), Code15.title):
        exam, patient, age, is_male, *diagnoses = row.values
        if not (exam.isdecimal() and patient.isdecimal()):
            raise DatabaseError(f"{table} line {row.line}: exam_id {exam!r} or patient_id {patient!r} is no number")
        # Interned: a few hundred different values in 345,779 rows.
        info = {
            "patient": patient,
            "age": sys.intern(age),
            "is_male": sys.intern(is_male),
            "diagnoses": sys.intern(",".join(diagnoses)),
        }
        if exams.setdefault(int(exam), info) != info:
            raise DatabaseError(f"{table} line {row.line}: exam {exam} is in the table twice, with different entries")
    return exams


def _labels(ref: RecordRef) -> tuple[str, ...]:
    """Return the diagnoses that are true."""
    truths = ref.info["diagnoses"].lower().split(",")
    if len(truths) != len(_CODES) or not {"true", "false"}.issuperset(truths):
        raise RecordError(
            "table-malformed",
            f"exam {ref.record}: {', '.join(DIAGNOSES)} are {', '.join(truths)}; each must be True or False",
        )
    return tuple(code for code, truth in zip(_CODES, truths, strict=True) if truth == "true")
