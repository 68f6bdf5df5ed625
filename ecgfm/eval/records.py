"""A record of shards by its name, and what to write above its picture."""

from __future__ import annotations

import difflib

from ecgfm.errors import ConfigError
from ecgfm.shards.reader import Sample, Shards

LONGEST = 110


def find_record(shards: Shards, record: str, start_s: float = 0.0) -> int:
    """Return the number of the record's segment that holds a second.

    Raises:
        ConfigError: There is no such record; the message has near ones.
    """
    members = [shard.members for manifest in shards.manifests for shard in manifest.shards]
    names = [name for member in members for name in member.record]
    if record not in names:
        near = difflib.get_close_matches(record, dict.fromkeys(names), n=3, cutoff=0.4) or names[:3]
        raise ConfigError(
            f"--record {record}: it is not among the {len(set(names))} records; there are {', '.join(near)}, ..."
        )
    found = [index for index, name in enumerate(names) if name == record]
    return max((index for index in found if shards.sample(index).start_s <= start_s), default=found[0])


def record_title(sample: Sample) -> str:
    """Return who and what is drawn, by the first scheme of labels that says something, and what is wrong with it."""
    person = [f"{sample.age:g} years" if sample.age is not None else "", sample.sex or ""]
    codes = next(filter(None, sample.labels.values()), [])
    place = f"from {sample.start_s:g} s" if sample.start_s else ""
    flags = ", ".join(f"{flag} {' '.join(leads)}".strip() for flag, leads in sample.flags.items())
    parts = [f"{sample.database} {sample.record}", place, ", ".join(filter(None, person)), "; ".join(codes)]
    text = "   ".join(filter(None, parts))
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return f"{text}   [{flags}]" if flags else text
