"""Label maps: what a database publishes, said in the vocabularies that tasks and other databases use.

Labels stay as published, and schemes are added beside them:

| scheme | from | what |
|---|---|---|
| challenge | snomed | the 26 classes of the Challenge 2021 by abbreviation; see `snomed` |
| scp-diagnostic, -subdiagnostic, -superdiagnostic, -form, -rhythm | scp | tasks of PTB-XL; see `scp` |
| shared18 | snomed, or scp with heart-axis | what PTB-XL and Georgia share; see `shared` |
| chapman-rhythm | snomed, of Chapman-Shaoxing only | four groups; see `chapman` |

The task of all 71 statements is the scheme scp itself. A scheme is there whenever what it comes from is there, if need
be without a code: the record is negative. A record without the scheme is not labelled. That is also so for a record of
Chapman-Shaoxing whose codes name no rhythm group or several.

A code that no map knows stays as published; `unknown` lists such codes. What a database never annotates is
negative in all of its records, in a mapped scheme as in the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ecgfm.labels import chapman, scp, shared, snomed

Labels = Mapping[str, tuple[str, ...]]


def derived(labels: Labels, database: str) -> dict[str, tuple[str, ...]]:
    """Return the schemes that a record's published labels give besides themselves.

    Args:
        labels: Codes by scheme, as published.
        database: Name of the record's database, such as `georgia`.

    Returns:
        New schemes only, each without repeats, in the order of the published codes.
    """
    found: dict[str, tuple[str, ...]] = {}
    for scheme, maps in _maps():
        if scheme not in labels and all(source in labels for source in maps):
            new = (known[code] for source, known in maps.items() for code in labels[source] if code in known)
            found[scheme] = tuple(dict.fromkeys((*found.get(scheme, ()), *new)))
    if database == chapman.DATABASE and "snomed" in labels and "chapman-rhythm" not in labels:
        group = chapman.rhythm(labels["snomed"])
        if group is not None:
            found["chapman-rhythm"] = (group,)
    return found


def unknown(labels: Labels) -> dict[str, tuple[str, ...]]:
    """Return the codes of `snomed` and `scp` that no table of ours has, by scheme; a scheme without any is absent."""
    tables: dict[str, Mapping[str, object]] = {"snomed": snomed.diagnoses(), "scp": scp.statements()}
    strange = {
        scheme: tuple(code for code in labels.get(scheme, ()) if code not in known) for scheme, known in tables.items()
    }
    return {scheme: codes for scheme, codes in strange.items() if codes}


@lru_cache(maxsize=1)
def _maps() -> tuple[tuple[str, dict[str, Mapping[str, str]]], ...]:
    """Return new schemes, each with a map for every published scheme that it needs."""
    tasks = [name for name in scp.TASKS if name != "all"]
    return (
        ("challenge", {"snomed": snomed.scored_classes()}),
        ("shared18", {"snomed": shared.from_snomed()}),
        ("shared18", {"scp": shared.FROM_SCP, "heart-axis": shared.FROM_HEART_AXIS}),
        *((f"scp-{name}", {"scp": scp.task(name)}) for name in tasks),
    )
