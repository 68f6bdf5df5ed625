"""The four rhythm groups of the Chapman-Shaoxing database.

Zheng et al. 2020, Scientific Data 7 48, https://doi.org/10.1038/s41597-020-0386-x, merge eleven rhythms: AFIB is
fibrillation and flutter; GSVT the supraventricular tachycardias (SVT, AT, SAAWR, ST, AVNRT, AVRT); SB sinus
bradycardia; SR sinus rhythm and sinus irregularity.

The codes are those of the Challenge's copy, whose counts of them add up to its 10,247 records, as they do when each
record has one rhythm. The authors' own list of codes differs in two. AVNRT is 251166008 in the Challenge and 233896004
in the list; both are taken. SAAWR is 17366009 in the Challenge and 195101003 in the list, which gives 195101003 also to
a finding (WAVN) that stands beside a rhythm; it is not taken, and the counts add up without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

DATABASE = "chapman-shaoxing"

RHYTHM: Mapping[str, str] = MappingProxyType(
    {
        "164889003": "AFIB",  # AF
        "164890007": "AFIB",  # AFL
        "426761007": "GSVT",  # SVT
        "713422000": "GSVT",  # ATach
        "17366009": "GSVT",  # SAAWR
        "427084000": "GSVT",  # STach
        "251166008": "GSVT",  # AVNRT
        "233896004": "GSVT",  # AVNRT
        "233897008": "GSVT",  # AVRT
        "426177001": "SB",
        "426783006": "SR",  # NSR
        "427393009": "SR",  # SA
    }
)
"""Group of each SNOMED code of a rhythm."""


def rhythm(codes: Sequence[str]) -> str | None:
    """Return the group of a record's SNOMED codes, or None when they name no group or several.

    The groups exclude each other, so a record of several has no answer; none is preferred.
    """
    groups = {RHYTHM[code] for code in codes if code in RHYTHM}
    return groups.pop() if len(groups) == 1 else None
