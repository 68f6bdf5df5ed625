"""Georgia 12-lead ECG Challenge Database (Emory University), as published in the CinC Challenge 2021.

10,344 records of up to 10 s at 500 Hz. Reyna et al. 2021, https://doi.org/10.13026/34va-7q14.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of


class Georgia(Challenge2021):
    """Georgia; see the module."""

    title = "Georgia 12-lead ECG Challenge Database"
    citation = (
        "Perez Alday et al. 2020, Classification of 12-lead ECGs: the PhysioNet/Computing in Cardiology Challenge "
        "2020, Physiological Measurement 41 124003, https://doi.org/10.1088/1361-6579/abc960"
    )
    expected_records = 10_344
    cohort = "georgia"
    download = files_of(cohort)
