"""CPSC-Extra: unused records of the China Physiological Signal Challenge 2018, from the CinC Challenge 2021.

3,453 records of 8 to 98 s at 500 Hz, called Q0001 to Q3581, not all numbers used (the last number was not checked
against the files). They are not the test set of the Chinese challenge. Q0400 and Q2961 are flat, and refused. Perez
Alday et al. 2020, https://doi.org/10.1088/1361-6579/abc960. No file of it was at hand: its tests write the signals
of CPSC 2018 under its names.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of


class CpscExtra(Challenge2021):
    """CPSC-Extra; see the module."""

    title = "China Physiological Signal Challenge 2018, extra records (CPSC-Extra)"
    citation = (
        "Perez Alday et al. 2020, Classification of 12-lead ECGs: the PhysioNet/Computing in Cardiology Challenge "
        "2020, Physiological Measurement 41 124003, https://doi.org/10.1088/1361-6579/abc960"
    )
    expected_records = 3_453
    typical_s = 16.0
    cohort = "cpsc_2018_extra"
    download = files_of(cohort)
