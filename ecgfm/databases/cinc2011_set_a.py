"""PhysioNet/CinC Challenge 2011, set A: ECGs from mobile phones, judged acceptable or unacceptable.

1,000 records of 10 s at 500 Hz. Silva, Moody, Celi 2011, "Improving the quality of ECGs collected using mobile
phones", https://physionet.org/content/challenge-2011/1.0.0/.

The judgement is read from `quality.csv` (record, quality) or, in the layout as published, from the lists
`RECORDS-acceptable` and `RECORDS-unacceptable`; records in neither have no label. Headers of copies that were made
from the text files say 200 counts per mV, a gain that is inferred from the amplitudes and not stated by the source.
Dead leads stand at one value, often 16,000 counts up or down.

**aVL and aVF stand in each other's place** in the headers of copies that were made from the text files: with the names
as they are, the identities aVL = I - II / 2 and aVF = II - I / 2 fail in all 619 records that were judged acceptable
and could be measured, and with the two names exchanged they hold in all of them. So the names are exchanged in every
record in which the identities fit better so; the rule is called `avl-and-avf-exchanged`, always applied, and recorded
in `mended`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._wfdb_files import signal_fields
from ecgfm.databases._wfdb_header import find_headers
from ecgfm.databases._wfdb_named import read_named_header
from ecgfm.databases.base import Database, Download, folder
from ecgfm.errors import DatabaseError
from ecgfm.leads import LEADS, positions
from ecgfm.record import Record, RecordRef

EXCHANGE_RULE = "avl-and-avf-exchanged"
JUDGEMENTS = ("acceptable", "unacceptable")


class Cinc2011SetA(Database):
    """Set A of the Challenge 2011; see the module."""

    title = "PhysioNet/CinC Challenge 2011, set A"
    licence = "ODC-By-1.0"
    citation = (
        "Silva, Moody, Celi 2011, Improving the quality of ECGs collected using mobile phones: the "
        "PhysioNet/Computing in Cardiology Challenge 2011, Computing in Cardiology 38 273-276"
    )
    address = "https://physionet.org/content/challenge-2011/1.0.0/"
    version = "1.0.0"
    expected_records = 1000
    native_rates_hz = (500.0,)
    native_leads = LEADS
    download = Download(
        address="https://physionet.org/files/challenge-2011/1.0.0/",
        files=("set-a/*.hea", "set-a/*.dat", "set-a/RECORDS*"),
    )

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield every record below `root`.

        Raises:
            DatabaseError: `root` is missing or empty, or has no list of judgements.
        """
        judged = _judgements(folder(root, "the records and quality.csv of set A"))
        empty = True
        for path in find_headers(root):
            empty = False
            quality = judged.get(path.stem, "")
            yield RecordRef(record=path.stem, file=str(path), info={"quality": quality})
        if empty:
            raise DatabaseError(f"{root} holds no header (.hea); give the folder of set A of the Challenge 2011")

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_named_header(ref.file)
        quality = ref.info["quality"]
        fields = signal_fields(header, ref.folder)
        exchanged = _exchanged(fields["leads"], fields["counts_LT"], fields["microvolt_per_count"])
        if exchanged:
            fields["leads"] = exchanged
        return Record(
            record=ref.record,
            database=self.name(),
            **fields,
            mended=(EXCHANGE_RULE,) if exchanged else (),
            labels={"quality": (quality,)} if quality else {},
        )


def _exchanged(
    leads: tuple[str, ...], counts_LT: NDArray[np.int16], microvolt_L: NDArray[np.float64]
) -> tuple[str, ...] | None:
    """Return the leads' names with aVL and aVF exchanged when the limb leads fit better so, or None."""
    place = positions(leads)
    if not {"I", "II", "aVL", "aVF"} <= place.keys():
        return None
    one, two, avl, avf = (counts_LT[place[lead]] * microvolt_L[place[lead]] for lead in ("I", "II", "aVL", "aVF"))
    true_avl, true_avf = one - two / 2, two - one / 2
    as_named = np.square(avl - true_avl).sum() + np.square(avf - true_avf).sum()
    if np.square(avf - true_avl).sum() + np.square(avl - true_avf).sum() >= as_named:
        return None
    names = list(leads)
    names[place["aVL"]], names[place["aVF"]] = names[place["aVF"]], names[place["aVL"]]
    return tuple(names)


def _judgements(root: Path) -> dict[str, str]:
    """Return acceptable or unacceptable by record."""
    table = root / "quality.csv"
    lists = {name: root / f"RECORDS-{name}" for name in JUDGEMENTS}
    try:
        if table.is_file():
            with table.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, restval=""))
            if rows and not {"record", "quality"} <= rows[0].keys():
                raise DatabaseError(f"{table} needs the columns record and quality, has {', '.join(rows[0])}")
            found = {row["record"].strip(): row["quality"].strip() for row in rows}
        elif all(path.is_file() for path in lists.values()):
            found = {record: name for name, path in lists.items() for record in path.read_text("utf-8").split()}
        else:
            raise DatabaseError(
                f"{root} has neither quality.csv nor RECORDS-acceptable and RECORDS-unacceptable; give the folder of "
                "set A of the Challenge 2011"
            )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatabaseError(f"the judgements in {root} cannot be read: {error}") from error
    strange = sorted({quality for quality in found.values() if quality not in ("", *JUDGEMENTS)})
    if strange:
        raise DatabaseError(f"{table} judges a record {strange[0]!r}; expected acceptable, unacceptable, or nothing")
    return found
