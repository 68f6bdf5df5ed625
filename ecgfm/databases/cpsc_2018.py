"""China Physiological Signal Challenge 2018, training set, as published in the CinC Challenge 2021.

6,877 records of 6 to 144 s at 500 Hz, called A0001 to A6877. Liu et al. 2018,
https://doi.org/10.1166/jmihi.2018.2442. The same records in the files of the Chinese challenge itself are
`cpsc-2018-original`; pretrain on one of the two. No file of this copy was at hand: its tests write the signals of
the original under its names.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of


class Cpsc2018(Challenge2021):
    """CPSC 2018, the copy of the Challenge; see the module."""

    title = "China Physiological Signal Challenge 2018 (CinC Challenge 2021 copy)"
    citation = (
        "Liu et al. 2018, An Open Access Database for Evaluating the Algorithms of Electrocardiogram Rhythm and "
        "Morphology Abnormality Detection, Journal of Medical Imaging and Health Informatics 8 1368-1373, "
        "https://doi.org/10.1166/jmihi.2018.2442"
    )
    expected_records = 6_877
    typical_s = 16.0
    cohort = "cpsc_2018"
    download = files_of(cohort)
