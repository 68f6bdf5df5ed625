"""PTB-XL in the copy of the CinC Challenge 2021, with SNOMED CT codes instead of SCP statements.

21,837 records of 10 s at 500 Hz; HR00001 is PTB-XL's ecg_id 1. Wagner et al. 2020,
https://doi.org/10.1038/s41597-020-0495-6.

The copy has neither patients nor folds: its records hold PTB-XL's folds 9 and 10 as well, which must not enter
pretraining. So its shards are of the split `unknown`, which pretraining does not read; pretrain on `ptb-xl` itself.
"""

from __future__ import annotations

from ecgfm.databases._challenge2021 import Challenge2021, files_of


class ChallengePtbXl(Challenge2021):
    """PTB-XL, the copy of the Challenge; see the module."""

    title = "PTB-XL (CinC Challenge 2021 copy)"
    citation = (
        "Wagner et al. 2020, PTB-XL, a large publicly available electrocardiography dataset, Scientific Data 7 154, "
        "https://doi.org/10.1038/s41597-020-0495-6"
    )
    expected_records = 21_837
    native_unit = "mv"
    cohort = "ptb-xl"
    download = files_of(cohort)
    split = "unknown"
