"""Windows that no step trains on: by patient, the same in every run.

Whom a share holds out follows from a hash of database and patient, and from nothing else: not from the run's seed, the
order of the folders, or who else is there. So runs can be compared, and a larger share holds out the same patients and
more. Copies of their recordings in other databases are known by their fingerprints, and held out with them. What a
database publishes as its `val` split is never trained on, and is validated on too.

Shapes: N windows, L leads, T samples.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfm.data.batch import Batch
from ecgfm.data.labels import LabelTable
from ecgfm.data.patients import number_people, people
from ecgfm.errors import ConfigError
from ecgfm.leads import LEADS
from ecgfm.shards.leaks import PRETRAINING_SPLITS
from ecgfm.shards.reader import Shards
from ecgfm.shards.same import match
from ecgfm.signal.fingerprint import SAME_BITS, to_bytes

SPLIT = "val"
"""The split of validation records."""
ReadShard = Callable[[int], memoryview]


@dataclass(frozen=True, kw_only=True)
class ValidationWindows:
    """One window of each of some records, at a place that never changes."""

    shards: Shards
    window_samples: int
    index_N: NDArray[np.int64]
    """Numbers of the records, in an order that does not depend on the folders' order."""
    starts_N: NDArray[np.int64]
    """The sample that each window begins at."""
    records: int
    """Records that could be chosen from."""
    patients: int
    """Theirs."""
    labels: LabelTable | None = None
    """What gives the windows their labels."""
    person_N: NDArray[np.int64] | None = None
    """Whose each record of the shards is, where the objective asks; see `ecgfm.data.patients`."""

    def __len__(self) -> int:
        return len(self.index_N)

    def read(self, first: int, last: int, read_shard: ReadShard | None = None) -> Batch:
        """Return windows [first, last), as int16 counts.

        Args:
            first: The first window.
            last: One past the last.
            read_shard: Returns the bytes of a shard by its number, where the shards are not on this machine.

        Raises:
            ShardError: A record cannot be read.
        """
        index = self.index_N[first:last]
        signal_BLT = torch.empty(len(index), len(LEADS), self.window_samples, dtype=torch.int16)
        out = signal_BLT.numpy()
        shard_of = self.shards.shard_of[index]
        for shard in dict.fromkeys(shard_of.tolist()):
            content = read_shard(shard) if read_shard else None
            for row in np.flatnonzero(shard_of == shard).tolist():
                record, start = int(index[row]), int(self.starts_N[first + row])
                if content is None:
                    self.shards.check(record)
                    counts_LT = self.shards.counts(record)
                else:
                    counts_LT = self.shards.cut(record, content)
                if self.labels:
                    self.labels.learn(record, content)
                out[row] = counts_LT[:, start : start + self.window_samples]
        return Batch(
            signal_BLT=signal_BLT,
            microvolt_per_count_B=torch.from_numpy(self.shards.microvolt_per_count[index]),
            database_B=torch.from_numpy(self.shards.folder_of[index]),
            labels_BC=self.labels.rows(index) if self.labels else None,
            patient_B=torch.from_numpy(self.person_N[index]) if self.person_N is not None else None,
        )


def hold_out_(shards: Shards, share: float) -> None:
    """Move all records of a share of the patients, and copies of them, from what pretraining reads to `val`.

    Args:
        shards: Of the run; only its `split_of` is changed.
        share: Of the patients; 0 holds out none.

    Raises:
        ConfigError: It holds out no patient, or all of them.
    """
    if not share:
        return
    read = np.isin(shards.split_of, PRETRAINING_SPLITS)
    person_N, everyone = number_people(shards)
    concerned = np.bincount(person_N[read], minlength=len(everyone)) > 0
    chosen = np.fromiter((_uniform("validation patient", *who)[0] < share for who in everyone), dtype=bool) & concerned
    # A copy belongs to somebody, all of whose records follow, and so on.
    while (copies := _copies(shards, read, chosen[person_N] & read)).any():
        chosen[person_N[copies]] = True
    number, everybody = int(chosen.sum()), int(concerned.sum())
    if number in (0, everybody):
        raise ConfigError(
            f"--data.validation-share {share:g} of {everybody:,} patients (or records without a patient) holds out "
            f"{'all' if number else 'none'} of them; give a {'smaller' if number else 'larger'} share"
        )
    splits = shards.split_of.astype(object)
    splits[chosen[person_N] & read] = SPLIT
    shards.split_of = splits.astype(str)


def validation_windows(
    shards: Shards, window_samples: int, exclude_flags: tuple[str, ...], most: int, *, by_shard: bool = False
) -> ValidationWindows | None:
    """Return the windows that a run validates on; None where there is no record for it.

    Args:
        shards: After `hold_out_`.
        window_samples: T.
        exclude_flags: Quality flags; records that have one are not read.
        most: Windows; fewer where there are not so many records.
        by_shard: Choose records that lie together, of as few shards as can be, for where reading a shard is dear.
    """
    usable = (shards.split_of == SPLIT) & (shards.num_samples >= window_samples) & ~shards.flagged(exclude_flags)
    if not usable.any():
        return None
    database = [manifest.database for manifest in shards.manifests]
    segments: Counter[tuple[str, str]] = Counter()
    seen, found = set(), []
    for index, who in enumerate(people(shards)):
        record = (database[shards.folder_of[index]], shards.name(index)) if shards.split_of[index] == SPLIT else None
        if record is None:
            continue
        number, segments[record] = segments[record], segments[record] + 1
        if not usable[index]:
            continue
        seen.add(who)
        order, place = _uniform("validation window", *record, str(number))
        shard = shards.path(int(shards.shard_of[index])).name if by_shard else ""
        rank = _uniform("validation shard", record[0], shard)[0] if by_shard else 0.0
        room = int(shards.num_samples[index]) - window_samples
        found.append((rank, shard, order, index, min(int(place * (room + 1)), room)))
    chosen = sorted(found)[:most]
    return ValidationWindows(
        shards=shards,
        window_samples=window_samples,
        index_N=np.asarray([index for *_, index, _ in chosen], dtype=np.int64),
        starts_N=np.asarray([start for *_, start in chosen], dtype=np.int64),
        records=len(found),
        patients=len(seen),
    )


def _copies(shards: Shards, read: NDArray[np.bool_], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which records of pretraining are the same recordings as held-out ones."""
    texts = [text for manifest in shards.manifests for shard in manifest.shards for text in shard.members.content]
    known = np.fromiter(map(bool, texts), dtype=bool)
    here, there = np.flatnonzero(known & read & ~held), np.flatnonzero(known & held)
    found = np.zeros(len(shards), dtype=bool)
    if len(here) and len(there):
        nearest, _ = match(to_bytes([texts[i] for i in here]), to_bytes([texts[i] for i in there]), SAME_BITS)
        found[here[nearest >= 0]] = True
    return found


def _uniform(*words: str) -> tuple[float, float]:
    """Return two numbers in [0, 1) that belong to some words."""
    # Lengths keep words apart that could be cut in another way.
    key = "".join(f"{len(word)} {word}" for word in words).encode()
    digest = hashlib.blake2b(key, digest_size=16).digest()
    # 53 bits are what a float holds: below 1 for certain.
    first, second = ((int.from_bytes(part, "little") >> 11) / 2**53 for part in (digest[:8], digest[8:]))
    return first, second
