"""Eighteen labels that PTB-XL and Georgia share, for transfer from the one to the other.

Verma, Dige and Gill 2021 transfer from PTB-XL to Georgia over 18 shared labels. Their list was not at hand. Ours comes
of a rule over the Challenge's published counts (`dx_mapping_scored.csv`): the classes that the Challenge 2021 scores,
equivalent codes merged, with at least 100 records in each of the two databases. Any limit from 84 to 118 gives these
18: the rarest in is LQT with 118 (PTB-XL), the commonest out RAD with 83 (Georgia). Whether they are the paper's 18
is not known.

The Challenge's copies of both databases bear SNOMED codes. PTB-XL's own files bear SCP statements, for which this is
our reading of the two vocabularies' names:

- Same name in other words: AFIB, 1AVB, CRBBB, IRBBB, LAFB, CLBBB, LVOLT, PAC, LNGQT, SARRH, SBRAD, STACH, INVT.
- IVCD to NSIVCB: the same, but that a "disturbance" is a "disorder".
- CLBBB and CRBBB are complete blocks only; Georgia's LBBB and RBBB do not say so. ILBBB is not counted, IRBBB is a
  label of its own.
- QWAVE (Q waves present) to QAb (Q wave abnormal): a Q wave may be normal.
- SR and NORM to NSR: the Challenge gives NSR to a normal ECG that has no SR, beside bradycardia or tachycardia
  (HR06002, HR06003). Georgia's NSR is rarer (17 % of its records, 83 % in PTB-XL): it seems to be kept for records
  with nothing else. The label that differs most between the two.
- NDT, NT_, TAB_, LOWT to TAb: the Challenge does so with NT_ (HR06000), the other three are read from their names. Low
  T waves (LOWT) are the least sure.
- PRC(S) (premature complexes of any origin) and SVARR are not PAC.
- No statement is left axis deviation. It is in the column `heart_axis`, as LAD or ALAD; AXL (borderline by the reports
  beside it) is left out. Whether the Challenge took the same values for its 5,146 LAD was not checked against the
  files. An empty axis counts as none: many of the devices wrote the axis only where it deviated. Without that column
  (label scheme `heart-axis`) PTB-XL has no `shared18`, for a quarter of its records would be wrongly negative.

Of these, SR, NORM, SBRAD, STACH, IRBBB and NT_ were seen in both copies of one record (ecg_id 6000 to 6004).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from ecgfm.labels.snomed import scored_classes

SHARED18: tuple[str, ...] = (
    "AF", "CLBBB", "CRBBB", "IAVB", "IRBBB", "LAD", "LAnFB", "LQRSV", "LQT",
    "NSIVCB", "NSR", "PAC", "QAb", "SA", "SB", "STach", "TAb", "TInv",
)  # fmt: skip
"""Named as by `ecgfm.labels.snomed.scored_classes`: CLBBB is also LBBB, CRBBB also RBBB, PAC also SVPB."""

FROM_SCP: Mapping[str, str] = MappingProxyType(
    {
        "AFIB": "AF", "CLBBB": "CLBBB", "CRBBB": "CRBBB", "1AVB": "IAVB", "IRBBB": "IRBBB", "LAFB": "LAnFB",
        "LVOLT": "LQRSV", "LNGQT": "LQT", "IVCD": "NSIVCB", "SR": "NSR", "NORM": "NSR", "PAC": "PAC", "QWAVE": "QAb",
        "SARRH": "SA", "SBRAD": "SB", "STACH": "STach", "NDT": "TAb", "NT_": "TAb", "TAB_": "TAb", "LOWT": "TAb",
        "INVT": "TInv",
    }
)  # fmt: skip
"""Label of each SCP statement that has one; see the module for the doubt of each."""

FROM_HEART_AXIS: Mapping[str, str] = MappingProxyType({"LAD": "LAD", "ALAD": "LAD"})
"""Label of each value of PTB-XL's `heart_axis` that has one."""


@lru_cache(maxsize=1)
def from_snomed() -> Mapping[str, str]:
    """Return the label of each SNOMED code that has one."""
    return MappingProxyType({code: label for code, label in scored_classes().items() if label in SHARED18})
