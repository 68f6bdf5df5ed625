"""St Petersburg INCART 12-lead Arrhythmia Database, as published in the CinC Challenge 2021.

74 records of half an hour (462,600 samples) at 257 Hz, called I0001 to I0074; gains of 240 to 1063 per mV, another
for each record, and leads AVR AVL AVF in upper case. https://doi.org/10.13026/C2V88N. They are Holter recordings
with a wandering baseline and are high-passed at 0.5 Hz unless another filter is asked for, as Weimann and Conrad
2024 (https://arxiv.org/abs/2410.13867) found essential for stable training.

**Patients.** The records come from 32 patients, several of each, and the challenge does not say which: every record
counts as a patient of its own, so a split by patient does not keep these apart. Keep the whole database on one side.

No file of it was at hand. Headers that state a thousandfold gain (306000/mV) are quoted in public code; the true
gain of such a record is not known (306 if the counts are the original's, 1000 if they were computed anew, as PTB's
were), so no rule mends it and the record is refused as implausible.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of
from ecgfm.leads import LEADS


class StPetersburgIncart(Challenge2021):
    """INCART, the copy of the Challenge; see the module."""

    title = "St Petersburg INCART 12-lead Arrhythmia Database (CinC Challenge 2021 copy)"
    citation = (
        "Tihonenko, Khaustov, Ivanov, Rivin, Yakushenko 2008, St Petersburg INCART 12-lead Arrhythmia Database, "
        "PhysioNet, https://doi.org/10.13026/C2V88N"
    )
    expected_records = 74
    typical_s = 1800.0
    native_rates_hz = (257.0,)
    native_leads = tuple(lead.upper() for lead in LEADS)
    highpass_hz = 0.5
    cohort = "st_petersburg_incart"
    download = files_of(cohort)
