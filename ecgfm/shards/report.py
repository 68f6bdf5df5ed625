"""What one shard adds to the manifest, summed while it is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef
from ecgfm.shards.manifest import COUNTS, Members, Refused, Shard, ShardReport
from ecgfm.shards.tar import Place, TarWriter
from ecgfm.signal.canonical import Canonical, Segment

NOT_IN_STATISTICS = ("flat-lead", "dead-lead", "saturated-lead", "implausible-amplitude")
"""A lead with one of these flags does not enter mean and standard deviation: one lead at its amplifier's rail is
enough to make a database's standard deviation ten times too large."""


TEXT_SCHEMES = ("report", "ptb-diagnosis")
FREE_TEXT = "(text)"
"""What stands for the sentences of these schemes in the counts: almost every record has its own."""


class Sums:
    """Adds up what a shard's report says."""

    def __init__(self) -> None:
        self._members: dict[str, list[Any]] = {name: [] for name in Members.__dataclass_fields__}
        self._refused: list[Refused] = []
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTS}
        self._labels: dict[str, Counter[str]] = defaultdict(Counter)
        self._signal_sha256: list[str] = []
        self._kept = 0
        self._kept_s = self._cut_s = 0.0
        self._count = np.zeros(len(LEADS), dtype=np.int64)
        self._sum_mv = np.zeros(len(LEADS))
        self._sum_square_mv = np.zeros(len(LEADS))

    @property
    def samples(self) -> int:
        """Segments so far."""
        return len(self._signal_sha256)

    def refuse(self, ref: RecordRef, reason: str, message: str, start_s: float | None = None) -> None:
        """Count a record that is left out, or the segment of one that starts at `start_s`."""
        self._refused.append(Refused(record=ref.record, path=ref.file, reason=reason, message=message, start_s=start_s))

    def keep(
        self,
        ref: RecordRef,
        record: Record,
        form: Canonical,
        labels: dict[str, list[str]],
        places: list[Place],
    ) -> None:
        """Count a record that is kept, its segments written at `places`."""
        self._kept += 1
        self._cut_s += form.cut_s
        _count(self._counts["mended"], record.mended)
        _count(self._counts["derived"], form.derived)
        if record.sex is not None:
            self._counts["sex"][record.sex] += 1
        if record.age is not None:
            self._counts["ages"][f"{int(record.age)}"] += 1
        for scheme, codes in labels.items():
            _count(self._labels[scheme], (FREE_TEXT,) if scheme in TEXT_SCHEMES and codes else dict.fromkeys(codes))
        for refusal in form.refused:
            self.refuse(ref, refusal.reason, refusal.message, refusal.start_s)
        for segment, place in zip(form.segments, places, strict=True):
            self._add(record, segment, place)
            self._kept_s += segment.counts_LT.shape[1] / form.rate_hz
            self._counts["rates_hz"][f"{form.rate_hz:g}"] += 1
            _count(self._counts["flags"], segment.flags)

    def _add(self, record: Record, segment: Segment, place: Place) -> None:
        entry: dict[str, Any] = {
            "offset": place.offset,
            "samples": segment.counts_LT.shape[1],
            "microvolt_per_count": segment.microvolt_per_count,
            "json_offset": place.json_offset,
            "json_bytes": place.json_bytes,
            "record": record.record,
            "patient": record.patient or "",
            "content": segment.content,
            "flags": ",".join(segment.flags),
        }
        for name, values in self._members.items():
            values.append(entry[name])
        self._signal_sha256.append(place.sha256)
        good: NDArray[np.bool_] | slice = slice(None)
        bad = {LEADS.index(lead) for flag in NOT_IN_STATISTICS for lead in segment.flags.get(flag, ())}
        if bad:
            good = np.array([index not in bad for index in range(len(LEADS))])
        millivolt = segment.microvolt_per_count * 1e-3
        self._count[good] += segment.counts_LT.shape[1]
        self._sum_mv[good] += segment.assessment.sum_L[good] * millivolt
        self._sum_square_mv[good] += segment.assessment.sum_square_L[good] * millivolt**2

    def report(self, *, name: str, split: str, seen: int, tar: TarWriter) -> ShardReport:
        """Return the report of a shard that is written to its end."""
        shard = Shard(
            name=name,
            split=split,
            samples=self.samples,
            bytes=tar.bytes,
            sha256=tar.sha256.hexdigest(),
            members=Members(**{name: tuple(values) for name, values in self._members.items()}),
        )
        return ShardReport(
            shard=shard if self.samples else None,
            seen=seen,
            kept=self._kept,
            refused=tuple(self._refused),
            counts={name: dict(counts) for name, counts in self._counts.items()},
            labels={scheme: dict(counts) for scheme, counts in self._labels.items()},
            signal_sha256=tuple(self._signal_sha256),
            kept_s=self._kept_s,
            cut_s=self._cut_s,
            count=tuple(self._count.tolist()),
            sum_mv=tuple(self._sum_mv.tolist()),
            sum_square_mv=tuple(self._sum_square_mv.tolist()),
        )


def _count(counter: Counter[str], names: Iterable[str]) -> None:
    """Count each name: Counter.update takes ten times as long for the few that a record has."""
    for name in names:
        counter[name] += 1
