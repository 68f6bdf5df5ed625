"""The layout that all cohorts of the PhysioNet/CinC Challenge 2021 share.

Reyna et al. 2021, https://doi.org/10.13026/34va-7q14: `training/<cohort>/g<number>/<record>.hea` and `.mat`.
Both styles of header are read: `16x1+24 1000.0(0)/mV` with `# Dx:`, and the older `16+24 1000/mV` with `#Dx:`.
Diagnoses are SNOMED CT codes. The challenge gives no patient numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._wfdb_files import Header, comment_fields, find_headers, read_header, signal_fields
from ecgfm.databases.base import Database, folder
from ecgfm.errors import DatabaseError
from ecgfm.record import Record, RecordRef


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """How the records of one cohort are called."""

    folder: str
    """Its folder below `training/`."""
    prefix: str
    database: str = ""
    """The database that reads it, where there is one."""
    numbers: range = range(1, 100_000)
    """Numbers of its records; Chapman-Shaoxing and Ningbo share the prefix JS and part its numbers."""


COHORTS: tuple[Cohort, ...] = (
    Cohort(folder="cpsc_2018", prefix="A"),
    Cohort(folder="cpsc_2018_extra", prefix="Q"),
    Cohort(folder="st_petersburg_incart", prefix="I"),
    Cohort(folder="ptb", prefix="S", database="ptb"),
    Cohort(folder="ptb-xl", prefix="HR", database="challenge-ptb-xl"),
    Cohort(folder="georgia", prefix="E", database="georgia"),
    Cohort(folder="chapman_shaoxing", prefix="JS", numbers=range(1, 10_647)),
    Cohort(folder="ningbo", prefix="JS", database="ningbo", numbers=range(10_647, 100_000)),
)
"""The eight public cohorts."""


class Challenge2021(Database):
    """One cohort of the Challenge; a database gives its facts and the name of its folder."""

    licence = "CC-BY-4.0"
    address = "https://doi.org/10.13026/34va-7q14"
    version = "1.0.3"

    cohort: ClassVar[str]
    """Name of the cohort's folder below `training/`."""
    split: ClassVar[str] = "all"
    """Of all its records; see `RecordRef.split`."""
    true_gains: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """By name of the rule in `mends`: a gain that headers of this cohort state, and the true one, per mV."""

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
            yield RecordRef(record=path.stem, path=path, split=self.split)
        if empty:
            raise DatabaseError(
                f"{top} holds no header (.hea); give the folder {self.cohort} of the PhysioNet/CinC Challenge 2021"
            )

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_header(ref.path)
        header, mended = self._mended(header)
        fields = comment_fields(header)
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(header, ref.path.parent),
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
            right = f"convert it as {owner.database}" if owner.database else "there is no reader for it"
            raise DatabaseError(
                f"{path} is a record of {owner.folder}, not of {self.name()} (folder {self.cohort}): {right}"
            )

    def _mended(self, header: Header) -> tuple[Header, tuple[str, ...]]:
        """Return the header with its gain corrected where a rule that was asked for fits all its leads."""
        for rule, (stated, true) in self.true_gains.items():
            fits = all(spec.gain_per_unit == stated and spec.unit.lower() == "mv" for spec in header.signals)
            if rule in self.mend and fits:
                signals = tuple(replace(spec, gain_per_unit=true) for spec in header.signals)
                return replace(header, signals=signals), (rule,)
        return header, ()


def _codes(text: str) -> tuple[str, ...]:
    """Return the codes of a list in their order; lists end in a comma, repeat codes and hold empty entries."""
    stripped = (code.strip() for code in text.split(","))
    return tuple(dict.fromkeys(code for code in stripped if code and code.lower() not in ("unknown", "nan")))
