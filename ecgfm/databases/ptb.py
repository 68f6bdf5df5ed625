"""PTB Diagnostic ECG Database, in the 12-lead copy of the CinC Challenge 2021.

516 records of 32 to 120 s at 1000 Hz. Bousseljot et al. 1995; https://doi.org/10.13026/34va-7q14.

Headers of this cohort have stated 2000000 counts per mV, which makes an ECG of half a microvolt. The truth is
1000: S0001 is the recording s0010_re of the PTB Diagnostic ECG Database itself (correlation 0.999998), where the
gain is 2000 and every count about twice as large. Such records are refused as implausible unless the rule
`gain-2000000-is-1000` is asked for. The recordings in full, with patients: `ptb-diagnostic`.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import GAIN_MENDS, Challenge2021, files_of


class Ptb(Challenge2021):
    """PTB, the copy of the Challenge; see the module."""

    title = "PTB Diagnostic ECG Database (CinC Challenge 2021 copy)"
    citation = (
        "Bousseljot, Kreiseler, Schnabel 1995, Nutzung der EKG-Signaldatenbank CARDIODAT der PTB ueber das Internet, "
        "Biomedizinische Technik 40 Ergaenzungsband 1 S317, https://doi.org/10.1515/bmte.1995.40.s1.317"
    )
    expected_records = 516
    typical_s = 110.0
    native_rates_hz = (1000.0,)
    cohort = "ptb"
    download = files_of(cohort)
    mends = GAIN_MENDS
