"""Ningbo First Hospital database, as published in the CinC Challenge 2021.

34,905 records of 10 s at 500 Hz. Its records are called JS10647 and up; those below are of Chapman-Shaoxing,
which has the same layout. Some records hold nothing but zeros in V2, V4 and V6 (2 of the 10 that this reader was
tried with); they are refused as flat. Zheng et al. 2020, https://doi.org/10.1038/s41598-020-59821-7.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of


class Ningbo(Challenge2021):
    """Ningbo; see the module."""

    title = "Ningbo First Hospital 12-lead ECG Database"
    citation = (
        "Zheng et al. 2020, Optimal Multi-Stage Arrhythmia Classification Approach, Scientific Reports 10 2898, "
        "https://doi.org/10.1038/s41598-020-59821-7"
    )
    expected_records = 34_905
    cohort = "ningbo"
    download = files_of(cohort)
