"""WFDB headers of databases whose records have one name: that of the file, of the header and of the table's row.

A header that lies under the name of another record points to the other's signal, which would get this one's patient,
fold and labels: a held-out recording could so enter pretraining. In all 1,060 headers of eight databases that were
looked at, file and record line give the same name. Archives of a person's own may rename their files, and are not
asked.
"""

from __future__ import annotations

from ecgfm.databases._wfdb_header import Header, read_header
from ecgfm.errors import RecordError


def read_named_header(path: str) -> Header:
    """Read a `.hea` file whose record must be called as the file.

    Raises:
        RecordError: `file-missing`, `header-malformed`; `header-misplaced`: it is the header of another record.
    """
    header = read_header(path)
    if header.record != path.rpartition("/")[2].removesuffix(".hea"):
        raise RecordError(
            "header-misplaced",
            f"{path} is the header of record {header.record}: files were exchanged or renamed; download it again",
        )
    return header
