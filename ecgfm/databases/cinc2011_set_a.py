"""PhysioNet/CinC Challenge 2011, set A: ECGs from mobile phones, judged acceptable or unacceptable.

1,000 records of 10 s at 500 Hz. Silva, Moody, Celi 2011, "Improving the quality of ECGs collected using mobile
phones", https://physionet.org/content/challenge-2011/1.0.0/.

The judgement is read from `quality.csv` (record, quality) or, in the layout as published, from the lists
`RECORDS-acceptable` and `RECORDS-unacceptable`; records in neither have no label. Headers of copies that were made
from the text files say 200 counts per mV, a gain that is inferred from the amplitudes and not stated by the source.
Dead leads stand at one value, often 16,000 counts up or down, and are refused as flat.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ecgfm.databases._wfdb_files import find_headers, read_header, signal_fields
from ecgfm.databases.base import Database, folder
from ecgfm.errors import DatabaseError
from ecgfm.record import Record, RecordRef

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
            yield RecordRef(record=path.stem, path=path, info={"quality": quality})
        if empty:
            raise DatabaseError(f"{root} holds no header (.hea); give the folder of set A of the Challenge 2011")

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_header(ref.path)
        quality = ref.info["quality"]
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(header, ref.path.parent),
            labels={"quality": (quality,)} if quality else {},
        )


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
