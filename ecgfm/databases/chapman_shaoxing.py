"""Chapman-Shaoxing 12-lead ECG database (Shaoxing People's Hospital), as published in the CinC Challenge 2021.

10,247 records of 10 s at 500 Hz, called JS00001 to JS10646; 399 of these numbers have no record. From JS10647 on,
records are Ningbo's, which has the same layout. Zheng et al. 2020, https://doi.org/10.1038/s41597-020-0386-x. No
file of it was at hand: its tests write records of Ningbo under its names.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of


class ChapmanShaoxing(Challenge2021):
    """Chapman-Shaoxing; see the module."""

    title = "Chapman-Shaoxing 12-lead ECG Database"
    citation = (
        "Zheng et al. 2020, A 12-lead electrocardiogram database for arrhythmia research covering more than 10,000 "
        "patients, Scientific Data 7 48, https://doi.org/10.1038/s41597-020-0386-x"
    )
    expected_records = 10_247
    cohort = "chapman_shaoxing"
    download = files_of(cohort)
