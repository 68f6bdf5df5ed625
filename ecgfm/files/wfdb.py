"""WFDB records, by their header; all signal formats, and those of the Challenge's MATLAB files.

https://physionet.org/physiotools/wag/. Gain, baseline and unit are exactly the header's: a gain that is missing is
refused, and one that lies cannot be known here (the readers of the databases know theirs; see tools/databases.py).
Where a record has any of the twelve leads, other signals are left out.

Shapes: L leads, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._wfdb_any import any_signal_fields
from ecgfm.databases._wfdb_header import comment_fields, read_header
from ecgfm.files.base import FileFormat, Recording, Told, reads
from ecgfm.record import MISSING


class Wfdb(FileFormat):
    """WFDB records; see the module."""

    title = "WFDB"
    endings = (".hea",)
    self_describing = True

    def read(self, path: Path, told: Told) -> Iterator[Recording]:
        """Yield the one recording of a header; see `FileFormat.read`."""
        header = read_header(path)
        with reads(path):
            fields = any_signal_fields(header, path)
        counts_LT = fields["counts_LT"]
        millivolt_L = fields["microvolt_per_count"] * 1e-3
        signal_LT = (counts_LT - fields["offset_counts"][:, None].astype(np.float64)) * millivolt_L[:, None]
        if counts_LT.dtype == np.int16:
            signal_LT[counts_LT == MISSING] = np.nan
        said = comment_fields(header)
        yield Recording(
            signal_LT=signal_LT,
            rate_hz=fields["rate_hz"],
            leads=fields["leads"],
            unit="mV",
            name=header.record,
            age=age_years(said.get("age", "")),
            sex=sex_of(said.get("sex", "")),
        )
