"""What every conversion keeps, whatever the database holds; and what the check finds, whatever was changed."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
import re
import tarfile
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ecgfm.databases.base import Database, load_database
from ecgfm.errors import RecordError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef
from ecgfm.shards import workers as shard_workers
from ecgfm.shards import writer
from ecgfm.shards.check import check_shards
from ecgfm.shards.manifest import Manifest
from ecgfm.shards.writer import Options, Task, convert
from ecgfm.signal.canonical import Policy

Write = Callable[..., Path]
Counts = NDArray[np.int16]
NO_SAMPLE = -32768
LONG_S = 33
"""A recording of three segments of 10 s; 3 s are cut."""
REFUSED = {
    "short": "too-short", "all flat": "all-leads-flat", "long gap": "samples-missing", "no sample": "samples-missing",
    "lying gain": "implausible-amplitude", "cut": "truncated", "no signal": "file-missing",
    "changed": "header-signal-disagree", "no header": "header-malformed", "no V6": "lead-missing",
}  # fmt: skip
"""What must be refused, with its reason."""
KEPT = ("good", "flat lead", "dead lead", "high lead", "gap", "no aVL", "long", "long with a gap")
QUICKLY = (Phase.explicit, Phase.reuse, Phase.generate)
"""Every example is a whole conversion: making a failing one smaller would take minutes."""
DIAGNOSES = ("", "426783006", "164889003,164889003,", "59118001,713427006", "Unknown")


def write_record(write: Write, root: Path, name: str, kind: str, dx: str, seed: int) -> None:
    """Write a record with a fault of this kind, in the layout of the Challenge."""
    random = np.random.default_rng(seed)
    seconds = {"short": 9, "long": LONG_S, "long with a gap": LONG_S}.get(kind, 10)
    counts_LT = np.rint(random.normal(20, 250, (12, 500 * seconds))).astype(np.int16)
    lead = int(random.integers(12))
    if kind == "all flat":
        counts_LT[:] = random.integers(-50, 50, (12, 1))
    elif kind in ("flat lead", "dead lead"):
        counts_LT[lead] = 7 if kind == "flat lead" else 16_000
    elif kind == "high lead":
        counts_LT[lead] *= 40
    elif kind == "no sample":
        counts_LT[lead] = NO_SAMPLE
    elif kind in ("gap", "long gap", "long with a gap"):
        start = 5200 if seconds == LONG_S else 2000  # of a long one, the second segment
        counts_LT[lead, start : start + (50 if kind == "gap" else 51)] = NO_SAMPLE
    missing = {"no V6": "V6", "no aVL": "aVL"}.get(kind)
    leads = tuple(one for one in LEADS if one != missing)
    kept_LT = counts_LT[[LEADS.index(one) for one in leads]]
    gain = "2000000/mV" if kind == "lying gain" else "1000/mV"
    comments = (f"# Age: {random.integers(18, 99)}", "# Sex: Female", f"# Dx: {dx}")
    header = write(root / "g1", name, kept_LT, leads=leads, gain=gain, comments=comments)
    signal = header.with_suffix(".mat")
    if kind == "cut":
        signal.write_bytes(signal.read_bytes()[: -int(random.integers(1, 5000))])
    elif kind == "no signal":
        signal.unlink()
    elif kind == "changed":
        content = bytearray(signal.read_bytes())
        content[int(random.integers(24, len(content)))] ^= 1
        signal.write_bytes(content)
    elif kind == "no header":
        header.write_text("")


@st.composite
def databases(draw: st.DrawFn) -> list[tuple[str, str, int, bool]]:
    """Return records as (kind, diagnoses, seed, whether its name is there twice)."""
    kinds = st.one_of(st.sampled_from(KEPT), st.sampled_from(sorted(REFUSED)))
    record = st.tuples(
        kinds, st.sampled_from(DIAGNOSES), st.integers(0, 1 << 32), st.integers(0, 5).map(lambda n: n == 0)
    )
    return draw(st.lists(record, min_size=1, max_size=9))


def write_database(write: Write, root: Path, records: list[tuple[str, str, int, bool]]) -> dict[str, tuple[str, str]]:
    """Write a database; return (kind, diagnoses) by name."""
    written = {}
    for number, (kind, dx, seed, twice) in enumerate(records, 1):
        name = f"E{number:05d}"
        write_record(write, root, name, kind, dx, seed)
        written[name] = (kind, dx)
        if twice:
            write(root / "g2", name, np.zeros((12, 5000), np.int16))
    return written


def options(per_shard: int) -> Options:
    return Options(signal=Policy(segment_s=10.0), records_per_shard=per_shard)


def samples(out: Path) -> Iterator[tuple[dict[str, Any], Counts]]:
    """Yield what the shards hold, read without our reader."""
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for npy, about in zip(members[::2], members[1::2], strict=True):
                numbers, text = tar.extractfile(npy), tar.extractfile(about)
                assert numbers is not None and text is not None
                yield json.load(text), np.load(io.BytesIO(numbers.read()), allow_pickle=False)


def hashes(out: Path) -> dict[str, str]:
    files = (path for path in out.iterdir() if path.name not in (".lock", ".convert"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@settings(max_examples=20, phases=QUICKLY)
@given(records=databases(), per_shard=st.integers(1, 4))
def test_whatever_a_database_holds_every_record_is_kept_or_refused_and_all_numbers_are_true(
    tmp_path_factory: pytest.TempPathFactory,
    write_challenge: Write,
    records: list[tuple[str, str, int, bool]],
    per_shard: int,
) -> None:
    root = tmp_path_factory.mktemp("any")
    written = write_database(write_challenge, root / "georgia", records)
    manifest = convert(load_database("georgia"), root / "georgia", root / "out", options(per_shard))
    assert check_shards(root / "out") == []
    assert_refusals_are_those_written(root / "out", manifest, written, sum(twice for *_, twice in records))
    assert_counts_are_those_of_the_samples(root / "out", manifest, written)
    assert_statistics_are_those_of_the_samples(root / "out", manifest)


def assert_refusals_are_those_written(
    out: Path, manifest: Manifest, written: dict[str, tuple[str, str]], twice: int
) -> None:
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.keys() == {"record", "path", "reason", "message", "start_s"}
        assert Path(line["path"]).is_file() and Path(line["path"]).stem == line["record"]
        assert re.fullmatch(r"[a-z0-9-]+", line["reason"]) and len(line["message"]) > 10
    whole = [(line["record"], line["reason"]) for line in lines if line["start_s"] is None]
    expected = {(name, REFUSED[kind]) for name, (kind, _) in written.items() if kind in REFUSED}
    assert {one for one in whole if one[1] != "duplicate-record"} == expected
    assert len(whole) == len(expected) + twice
    pieces = [(line["record"], line["start_s"], line["reason"]) for line in lines if line["start_s"] is not None]
    gaps = [(name, 10.0, "samples-missing") for name, (kind, _) in written.items() if kind == "long with a gap"]
    assert sorted(pieces) == sorted(gaps)
    assert manifest.seen == len(written) + twice == manifest.kept + len(whole)
    assert manifest.refused == Counter(reason for _, reason in whole)


def assert_counts_are_those_of_the_samples(out: Path, manifest: Manifest, written: dict[str, tuple[str, str]]) -> None:
    first = {about["record"]: about for about, _ in reversed(list(samples(out)))}
    kept = {name: dx for name, (kind, dx) in written.items() if kind in KEPT}
    assert first.keys() == kept.keys() and manifest.kept == manifest.patients == len(kept)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for name, about in first.items():
        codes = {code for code in kept[name].split(",") if code.isdecimal()}
        assert set(about["labels"]["snomed"]) == codes
        for scheme, names in about["labels"].items():
            labels[scheme].update(set(names))
    assert manifest.labels == labels
    flags = [flag for about, _ in samples(out) for flag in about["flags"]]
    assert manifest.flags == Counter(flags)
    assert manifest.derived == Counter("aVL" for name in kept if written[name][0] == "no aVL")
    seconds = [counts_LT.shape[1] / 500 for _, counts_LT in samples(out)]
    assert manifest.segments == len(seconds) and set(seconds) <= {10.0}
    assert manifest.cut_s == 3 * sum(written[name][0].startswith("long") for name in kept)


def assert_statistics_are_those_of_the_samples(out: Path, manifest: Manifest) -> None:
    """Mean and deviation, two passes over float64, of the leads that no flag leaves out."""
    for index, lead in enumerate(LEADS):
        pieces = [np.zeros(0)]
        for about, counts_LT in samples(out):
            out_of_it = ("flat-lead", "dead-lead", "saturated-lead", "implausible-amplitude")
            if not any(lead in about["flags"].get(flag, ()) for flag in out_of_it):
                pieces.append(counts_LT[index] * np.float64(about["microvolt_per_count"]) / 1000)
        values = np.concatenate(pieces)
        mean, std = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
        np.testing.assert_allclose(
            (manifest.mean_mv[index], manifest.std_mv[index]), (mean, std), rtol=1e-9, atol=1e-12
        )


@settings(max_examples=2, phases=QUICKLY)
@given(records=databases(), per_shard=st.integers(1, 3))
def test_whatever_a_database_holds_the_number_of_workers_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory,
    write_challenge: Write,
    records: list[tuple[str, str, int, bool]],
    per_shard: int,
) -> None:
    root = tmp_path_factory.mktemp("workers")
    write_database(write_challenge, root / "georgia", [*records, *records[::-1]])
    for workers in (1, 2, 5):
        out = root / str(workers)
        convert(load_database("georgia"), root / "georgia", out, options(per_shard), workers=workers)
        assert hashes(out) == hashes(root / "1")


def test_ctrl_c_ends_all_workers_at_once(tmp_path: Path, write_challenge: Write, counts_LT: Counts) -> None:
    for number in range(1, 41):
        write_challenge(tmp_path / "in", f"E{number:05d}", counts_LT)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(load_database("georgia"), tmp_path / "in", tmp_path / "out", options(1), workers=2, progress=stop)
    assert multiprocessing.active_children() == []
    assert not list((tmp_path / "out").rglob("*.tmp")) and not (tmp_path / "out" / "manifest.json").exists()


# What the check finds.


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_challenge: Write) -> dict[str, bytes]:
    """Return the files of three shards of equal size, of eight records of which two are refused."""
    root = tmp_path_factory.mktemp("shards")
    kinds = ("dead lead", "good", "good", "no aVL", "good", "good", "short", "all flat")
    for number, kind in enumerate(kinds, 1):
        write_record(write_challenge, root / "georgia", f"E{number:05d}", kind, "426783006", number)
    convert(load_database("georgia"), root / "georgia", root / "out", options(2))
    assert check_shards(root / "out") == []
    return {path.name: path.read_bytes() for path in (root / "out").iterdir() if path.is_file()}


def faults_of(folder: Path, files: dict[str, bytes]) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return check_shards(folder)


TARS = tuple(f"georgia-all-{number:06d}.tar" for number in range(3))


@settings(max_examples=60)
@given(tar=st.sampled_from(TARS), share=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_byte_of_a_shard_that_changed_is_found(
    tmp_path_factory: pytest.TempPathFactory, shards: dict[str, bytes], tar: str, share: float, change: int
) -> None:
    content = bytearray(shards[tar])
    content[int(share * len(content))] ^= change
    assert any(tar in fault for fault in faults_of(tmp_path_factory.mktemp("changed"), shards | {tar: bytes(content)}))


def test_a_digit_of_a_json_that_changed_is_found(tmp_path: Path, shards: dict[str, bytes]) -> None:
    changed = shards[TARS[1]].replace(b'"sex":"female"', b'"sex":"unsaid"', 1)
    assert changed != shards[TARS[1]]
    assert faults_of(tmp_path / "out", shards | {TARS[1]: changed})


def test_swapped_shards_are_found(tmp_path: Path, shards: dict[str, bytes]) -> None:
    one, two = shards[TARS[1]], shards[TARS[2]]
    faults = faults_of(tmp_path / "out", shards | {TARS[1]: two, TARS[2]: one})
    assert {fault.split(":")[0] for fault in faults} == {TARS[1], TARS[2]}


@settings(max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_that_was_cut_anywhere_is_found(
    tmp_path_factory: pytest.TempPathFactory, shards: dict[str, bytes], share: float
) -> None:
    content = shards[TARS[0]]
    cut = shards | {TARS[0]: content[: int(share * len(content))]}
    assert any("cut or damaged" in fault for fault in faults_of(tmp_path_factory.mktemp("cut"), cut))


@pytest.mark.parametrize("member", ["E00001.pkl", "E00009.ecg.npy", "E00001.pyd", "../E00001.json", "E00001"])
def test_a_member_that_does_not_belong_there_is_found(tmp_path: Path, shards: dict[str, bytes], member: str) -> None:
    path = tmp_path / "grown.tar"
    path.write_bytes(shards[TARS[0]])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo(member)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"(lp0"))
    grown = path.read_bytes()
    # Also when the manifest was edited with it.
    manifest = json.loads(shards["manifest.json"])
    manifest["shards"][0] |= {"bytes": len(grown), "sha256": hashlib.sha256(grown).hexdigest()}
    edited = {TARS[0]: grown, "manifest.json": json.dumps(manifest).encode()}
    assert faults_of(tmp_path / "out", shards | edited)


@pytest.mark.parametrize(
    "place",
    [
        "shards/0/members/patient/0", "shards/1/members/content/0", "shards/0/members/flags/0",
        "shards/0/members/flags/1", "shards/2/members/record/1", "shards/0/members/samples/0",
        "shards/0/members/offset/0", "shards/0/members/json_offset/1", "shards/0/members/json_bytes/1",
        "shards/0/members/microvolt_per_count/0", "shards/0/split", "shards/0/sha256", "shards/0/bytes",
        "shards/0/samples", "shards/0/name", "database", "seen", "kept", "segments", "patients", "refused/too-short",
        "flags/dead-lead", "derived/aVL", "rates_hz/500", "labels/snomed/426783006", "labels/challenge/NSR",
        "mean_mv/3", "std_mv/11",
    ],
)  # fmt: skip
def test_an_edited_entry_of_the_manifest_is_found(tmp_path: Path, shards: dict[str, bytes], place: str) -> None:
    manifest = json.loads(shards["manifest.json"])
    holder = manifest
    *above, last = place.split("/")
    for name in above:
        holder = holder[int(name)] if isinstance(holder, list) else holder[name]
    key = int(last) if isinstance(holder, list) else last
    value = holder[key]
    holder[key] = f"{value}x" if isinstance(value, str) else value + (1 if isinstance(value, int) else 0.001)
    assert faults_of(tmp_path / "out", shards | {"manifest.json": json.dumps(manifest).encode()})


def test_reasons_that_were_exchanged_are_found(tmp_path: Path, shards: dict[str, bytes]) -> None:
    lines = shards["refused.jsonl"].replace(b"all-leads-flat", b"too-short")
    assert faults_of(tmp_path / "out", shards | {"refused.jsonl": lines})
    assert faults_of(tmp_path / "out", shards | {"refused.jsonl": b"\xff\n{}\n"})


# Memory, however large the database.


class Unreadable(Database):
    """A database of as many records as are asked for, none of which can be read."""

    title = citation = address = licence = version = "none"
    records = 30_000

    @classmethod
    def name(cls) -> str:
        """Return a name of its own."""
        return "unreadable"

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield references as a cohort of the Challenge has them."""
        for number in range(self.records):
            yield RecordRef(
                record=f"E{number:06d}", file=f"{root}/training/georgia/g{number // 1000}/E{number:06d}.hea"
            )

    def read(self, ref: RecordRef) -> Record:
        """Refuse the record."""
        raise RecordError("file-missing", "no such file")


def test_planning_takes_half_a_kilobyte_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[tuple[int, int]] = []

    def write_nothing(work: object, tasks: list[Task], workers: int, progress: object) -> None:
        planned.append((sum(len(task.refs) for task in tasks), tracemalloc.get_traced_memory()[1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "run_all", write_nothing)
    tracemalloc.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            convert(Unreadable(), Path("/data/physionet.org/challenge"), tmp_path, Options())
    finally:
        tracemalloc.stop()
    ((records, peak_bytes),) = planned
    # Measured 425: 0.4 GB for a million records.
    assert records == Unreadable.records and peak_bytes < 500 * records


class Threads(concurrent.futures.ThreadPoolExecutor):
    """Threads in the place of worker processes, which note how many shards were handed to them at once at most."""

    made: ClassVar[list[Threads]] = []

    def __init__(self, workers: int, *, mp_context: object, initializer: object, initargs: tuple[Any, ...]) -> None:
        super().__init__(workers)
        self.handed: list[concurrent.futures.Future[Any]] = []
        self.most = 0
        self.made.append(self)
        shard_workers._COUNTER = initargs[0]

    def submit(self, *words: Any, **more: Any) -> concurrent.futures.Future[Any]:
        """Note what is not done yet."""
        self.handed.append(super().submit(*words, **more))
        self.most = max(self.most, sum(not one.done() for one in self.handed))
        return self.handed[-1]


def test_workers_are_handed_a_few_shards_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_workers, "_COUNTER", None)
    monkeypatch.setattr(writer, "load_database", lambda name, mend: Unreadable())
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(Unreadable, "records", 60)
    manifest = convert(Unreadable(), tmp_path, tmp_path / "out", Options(records_per_shard=1), workers=3)
    (pool,) = Threads.made
    assert len(pool.handed) == 60 and pool.most <= 2 * 3
    assert manifest.refused == {"file-missing": 60}
