"""The layout that all cohorts of the PhysioNet/CinC Challenge 2021 share.

Reyna et al. 2021, https://doi.org/10.13026/34va-7q14: `training/<cohort>/g<number>/<record>.hea` and `.mat`.
Both styles of header are read: `16x1+24 1000.0(0)/mV` with `# Dx:`, and the older `16+24 1000/mV` with `#Dx:`.
Diagnoses are SNOMED CT codes. The challenge gives no patient numbers.

The first headers of three cohorts stated gains a thousand times too large or more. One such file has been seen
(PTB's S0001, 2000000 counts per mV where the truth is 1000); public code quotes 306000/mV for INCART. A gain is
mended only where the true one is known, by a rule that a cohort lists in `mends`; any other is refused as an
implausible amplitude. The addresses of the files were not tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._wfdb_files import signal_fields
from ecgfm.databases._wfdb_header import Header, comment_fields, find_headers
from ecgfm.databases._wfdb_named import read_named_header
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef

GAIN_RULE = "gain-2000000-is-1000"
GAIN_MENDS: Mapping[str, str] = {GAIN_RULE: "reads a gain of 2000000/mV in the header as 1000/mV"}
"""What a cohort whose headers were wrong so gives as its `mends`."""
_TRUE_GAINS = {GAIN_RULE: (2_000_000.0, 1000.0)}  # what headers state, and the truth, per mV


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """How the records of one cohort are called."""

    folder: str
    """Its folder below `training/`."""
    prefix: str
    database: str
    """The database that reads it."""
    numbers: range = range(1, 100_000)
    """Numbers of its records; Chapman-Shaoxing and Ningbo share the prefix JS and part its numbers."""


COHORTS: tuple[Cohort, ...] = (
    Cohort(folder="cpsc_2018", prefix="A", database="cpsc-2018"),
    Cohort(folder="cpsc_2018_extra", prefix="Q", database="cpsc-extra"),
    Cohort(folder="st_petersburg_incart", prefix="I", database="st-petersburg-incart"),
    Cohort(folder="ptb", prefix="S", database="ptb"),
    Cohort(folder="ptb-xl", prefix="HR", database="challenge-ptb-xl"),
    Cohort(folder="georgia", prefix="E", database="georgia"),
    Cohort(folder="chapman_shaoxing", prefix="JS", database="chapman-shaoxing", numbers=range(1, 10_647)),
    Cohort(folder="ningbo", prefix="JS", database="ningbo", numbers=range(10_647, 100_000)),
)
"""The eight public cohorts."""


class Challenge2021(Database):
    """One cohort of the Challenge; a database gives its facts and the name of its folder."""

    licence = "CC-BY-4.0"
    address = "https://doi.org/10.13026/34va-7q14"
    version = "1.0.3"
    native_rates_hz: ClassVar[tuple[float, ...]] = (500.0,)
    native_leads = LEADS

    cohort: ClassVar[str]
    """Name of the cohort's folder below `training/`."""
    split: ClassVar[str] = "all"
    """Of all its records; see `RecordRef.split`."""

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield every record of the cohort.

        Args:
            root: The folder of the whole challenge, its `training/`, the cohort's folder, or one `g1` of it.

        Raises:
            DatabaseError: `root` is missing or empty, or holds records of another cohort.
        """
        top = folder(root, f"the records of {self.cohort}")
        for below in (top / self.cohort, top / "training" / self.cohort):
            if below.is_dir():
                top = folder(below, f"the records of {self.cohort}")
                break
        empty = True
        for path in find_headers(top):
            empty = False
            self._check_cohort(path)
            yield RecordRef(record=path.stem, file=str(path), split=self.split)
        if empty:
            raise DatabaseError(
                f"{top} holds no header (.hea); give the folder {self.cohort} of the PhysioNet/CinC Challenge 2021"
            )

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_named_header(ref.file)
        header, mended = self._mended(header)
        fields = comment_fields(header)
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(header, ref.folder),
            age=age_years(fields.get("age", "")),
            sex=sex_of(fields.get("sex", "")),
            labels={"snomed": _codes(fields["dx"])} if "dx" in fields else {},
            mended=mended,
        )

    def _check_cohort(self, path: Path) -> None:
        """Refuse a record of another cohort: cohorts differ in licence, citation and overlap with others."""
        match = re.fullmatch(r"([A-Z]+)(\d{1,5})", path.stem)
        owner = None
        if match:
            prefix, number = match[1], int(match[2])
            owner = next((one for one in COHORTS if one.prefix == prefix and number in one.numbers), None)
        if owner is None:
            raise DatabaseError(
                f"{path} is not a record of the PhysioNet/CinC Challenge 2021; give the folder that holds the "
                f"records of {self.cohort} alone"
            )
        if owner.folder != self.cohort:
            raise DatabaseError(
                f"{path} is a record of {owner.folder}, not of {self.name()} (folder {self.cohort}): convert it as "
                f"{owner.database}"
            )

    def _mended(self, header: Header) -> tuple[Header, tuple[str, ...]]:
        """Return the header with its gain corrected where a rule that was asked for fits all its leads."""
        for rule in self.mend:
            stated, true = _TRUE_GAINS[rule]
            if all(spec.gain_per_unit == stated and spec.unit.lower() == "mv" for spec in header.signals):
                signals = tuple(spec._replace(gain_per_unit=true) for spec in header.signals)
                return replace(header, signals=signals), (rule,)
        return header, ()


def files_of(cohort: str) -> Download:
    """Return where the files of a cohort are."""
    return Download(address="https://physionet.org/files/challenge-2021/1.0.3/", files=(f"training/{cohort}/*",))


def _codes(text: str) -> tuple[str, ...]:
    """Return the codes of a list in their order; lists end in a comma, repeat codes and hold empty entries."""
    stripped = (code.strip() for code in text.split(","))
    return tuple(dict.fromkeys(code for code in stripped if code and code.lower() not in ("unknown", "nan")))
