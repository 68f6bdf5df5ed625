"""Verify a folder of shards against its manifest, to the last byte.

What the manifest counts and averages is counted and averaged anew from the shards; what it says of the database and of
the options stands nowhere else.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.errors import ShardError
from ecgfm.leads import LEADS
from ecgfm.shards.manifest import COUNTS, MANIFEST, REFUSED, Manifest, Shard, read_manifest
from ecgfm.shards.report import FREE_TEXT, NOT_IN_STATISTICS, TEXT_SCHEMES
from ecgfm.shards.tar import array_header

ABOUT = {"record", "patient", "database", "rate_hz", "source_rate_hz", "microvolt_per_count", "start_s"}
LARGEST_MV = 200.0  # beyond any amplifier's range, offset included: a wrong scale
ABOUT |= {"age", "sex", "labels", "fold", "split", "flags", "content", "derived", "mended", "sha256"}


def check_shards(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Return what is wrong with a folder of shards; nothing, when it is whole.

    Every hash, name, shape and type is compared, the unit range too, and members that do not belong
    there are reported. Nothing is unpickled.

    Args:
        folder: A folder that `tools/convert.py` wrote.
        progress: Called after each record with the records done and in all.

    Raises:
        ShardError: There is no manifest that can be read.
    """
    manifest = read_manifest(folder)
    faults = []
    done = 0
    progress(done, manifest.segments)
    known = {shard.name for shard in manifest.shards}
    faults += [f"{path.name}: not in the manifest" for path in sorted(folder.glob("*.tar")) if path.name not in known]
    recount = Recount()
    for shard in manifest.shards:
        for fault in _check_shard(folder / shard.name, shard, manifest, recount):
            if fault is None:
                done += 1
                progress(done, manifest.segments)
            else:
                faults.append(f"{shard.name}: {fault}")
    if done == manifest.segments:
        faults += recount.faults(manifest)
    faults += _check_counts(folder, manifest)
    return faults


class Recount:
    """Counts and averages what the shards hold."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in COUNTS}
        self._labels: dict[str, Counter[str]] = defaultdict(Counter)
        self._patients: set[str] = set()
        self._record = ""
        self._count_L, self._sum_L, self._square_L = (np.zeros(len(LEADS)) for _ in range(3))

    def add(self, facts: Mapping[str, Any], counts_LT: NDArray[np.int16]) -> None:
        """Add a sample; those of one record follow each other."""
        self._counts["rates_hz"][f"{facts['rate_hz']:g}"] += 1
        self._counts["flags"].update(facts["flags"].keys())
        bad = {lead for flag in NOT_IN_STATISTICS for lead in facts["flags"].get(flag, ())}
        good_L = np.array([lead not in bad for lead in LEADS])
        signal_LT = counts_LT * (facts["microvolt_per_count"] * 1e-3)
        self._count_L += good_L * signal_LT.shape[1]
        self._sum_L += good_L * signal_LT.sum(axis=1)
        self._square_L += good_L * np.square(signal_LT).sum(axis=1)
        if facts["record"] == self._record:
            return
        self._record = facts["record"]
        self._patients.add(facts["patient"] or f"record {facts['record']}")
        for name in ("derived", "mended"):
            self._counts[name].update(facts[name])
        if facts["sex"] is not None:
            self._counts["sex"][facts["sex"]] += 1
        if facts["age"] is not None:
            self._counts["ages"][f"{int(facts['age'])}"] += 1
        for scheme, codes in facts["labels"].items():
            self._labels[scheme].update({FREE_TEXT} if scheme in TEXT_SCHEMES and codes else set(codes))

    def faults(self, manifest: Manifest) -> Iterator[str]:
        """Yield where the manifest says something else."""
        labels = {scheme: dict(counts) for scheme, counts in self._labels.items()}
        found: dict[str, Any] = {**self._counts, "labels": labels, "patients": len(self._patients)}
        for name, value in found.items():
            if getattr(manifest, name) != value:
                yield f"{MANIFEST}: {name} are not those of the samples in the shards"
        mean_L = self._sum_L / np.maximum(self._count_L, 1)
        std_L = np.sqrt(np.maximum(self._square_L / np.maximum(self._count_L, 1) - mean_L**2, 0.0))
        for name, value_L in (("mean_mv", mean_L), ("std_mv", std_L)):
            if not np.allclose(getattr(manifest, name), value_L, rtol=1e-6, atol=1e-6):
                yield f"{MANIFEST}: {name} are not those of the samples in the shards"


def _check_counts(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what does not add up: nothing that was seen may be neither kept nor refused."""
    kept = len({record for shard in manifest.shards for record in shard.members.record})
    refused = sum(manifest.refused.values())
    if kept != manifest.kept or kept + refused != manifest.seen:
        yield f"{MANIFEST}: {manifest.seen} seen is not {kept} in the shards and {refused} refused"
    segments = sum(shard.samples for shard in manifest.shards)
    if segments != manifest.segments:
        yield f"{MANIFEST}: {segments} samples in the shards, it says {manifest.segments}"
    expected = refused + sum(manifest.refused_segments.values())
    path = folder / REFUSED
    lines = path.read_bytes().splitlines() if path.exists() else []
    if len(lines) != expected:
        yield f"{REFUSED}: {len(lines)} lines, the manifest says {expected}"
        return
    try:
        reasons = Counter(json.loads(line)["reason"] for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        yield f"{REFUSED}: cannot be read: {error}"
        return
    if reasons != Counter(manifest.refused) + Counter(manifest.refused_segments):
        yield f"{REFUSED}: its reasons are not those that the manifest counts"


def _check_shard(path: Path, shard: Shard, manifest: Manifest, recount: Recount) -> Iterator[str | None]:
    """Yield each fault of a shard, and None for each sample that is right."""
    if not path.is_file():
        yield "missing"
        return
    content = path.read_bytes()
    if len(content) != shard.bytes:
        yield f"{len(content)} bytes, the manifest says {shard.bytes}: cut or damaged"
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != shard.sha256:
        yield f"SHA-256 is {sha256[:16]}..., the manifest says {shard.sha256[:16]}...: changed since it was written"
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        yield f"not a whole tar: {error}"
        return
    strange = [member.name for member in members if not member.name.endswith((".ecg.npy", ".json"))]
    for name in strange:
        yield f"member {name} does not belong here and may be code: delete the shard and convert again"
    members = [member for member in members if member.name not in strange]
    if len(members) != 2 * shard.samples:
        yield f"{len(members)} members, wanted are 2 for each of {shard.samples} samples"
        return
    for number in range(shard.samples):
        npy, about = members[2 * number], members[2 * number + 1]
        yield _check_sample(content, npy, about, number, shard, manifest, recount)


def _check_sample(
    content: bytes,
    npy: tarfile.TarInfo,
    about: tarfile.TarInfo,
    number: int,
    shard: Shard,
    manifest: Manifest,
    recount: Recount,
) -> str | None:
    """Return the first fault of a sample, or None."""
    key = npy.name.removesuffix(".ecg.npy")
    if about.name != f"{key}.json":
        return f"member {npy.name} is followed by {about.name}"
    raw = content[npy.offset_data : npy.offset_data + npy.size]
    text = content[about.offset_data : about.offset_data + about.size]
    members = shard.members
    # The header is compared and not parsed: NumPy's parser evaluates what stands there, and fails in many ways.
    header = array_header(len(LEADS), members.samples[number])
    if not raw.startswith(header) or len(raw) != len(header) + 2 * len(LEADS) * members.samples[number]:
        return f"sample {key} is not int16 of shape (12, {members.samples[number]}) as NumPy writes it"
    counts = np.frombuffer(raw, "<i2", offset=len(header)).reshape(len(LEADS), -1)
    try:
        facts = json.loads(text)
    except ValueError as error:
        return f"sample {key} cannot be read: {error}"
    if not facts.keys() >= ABOUT:
        return f"sample {key} lacks {', '.join(sorted(ABOUT - facts.keys()))}"
    if hashlib.sha256(counts.tobytes()).hexdigest() != facts["sha256"]:
        return f"sample {key}: the signal is not the one that was hashed"
    place = npy.offset_data + npy.size - counts.nbytes
    index = (members.offset[number], members.json_offset[number], members.json_bytes[number])
    if index != (place, about.offset_data, about.size):
        return f"sample {key} is not where the manifest's index says"
    said = {name: facts[name] for name in ("record", "content", "microvolt_per_count")}
    said |= {"patient": facts["patient"] or "", "flags": sorted(facts["flags"])}
    listed = {name: getattr(members, name)[number] for name in said}
    listed["flags"] = sorted(flag for flag in listed["flags"].split(",") if flag)  # in any order
    for name, value in said.items():
        if value != listed[name]:
            return f"sample {key}: its {name} is {value!r}, the manifest's index says {listed[name]!r}"
    if facts["split"] != shard.split:
        return f"sample {key} is of split {facts['split']}, the manifest says {shard.split}"
    if facts["database"] != manifest.database:
        return f"sample {key} is of {facts['database']}, the manifest is of {manifest.database}"
    largest = float(np.abs(counts.astype(np.int32)).max()) * facts["microvolt_per_count"] * 1e-3
    if not 0 < largest <= LARGEST_MV:
        return f"sample {key} reaches {largest:.3g} mV"
    if facts["rate_hz"] <= 0 or f"{facts['rate_hz']:g}" not in manifest.rates_hz:
        return f"sample {key} is at {facts['rate_hz']} Hz, the manifest says {', '.join(manifest.rates_hz)}"
    recount.add(facts, counts)
    return None


def require_whole(folder: Path) -> None:
    """Raise on the first fault of a folder of shards.

    Raises:
        ShardError: Naming it, and how many more there are.
    """
    faults = check_shards(folder)
    if faults:
        raise ShardError(
            f"{folder}: {faults[0]}" + (f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else "")
        )
