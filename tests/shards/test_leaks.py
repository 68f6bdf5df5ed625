"""A held-out recording or patient in a mixture is found in every guise, and nothing else is called a leak."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfm import config
from ecgfm.errors import ShardError
from ecgfm.leads import LEADS
from ecgfm.shards.leaks import LeakReport, check_leaks, require_no_leak
from ecgfm.shards.manifest import MANIFEST, SCHEMA, Manifest, Members, Shard, write_json

Row = tuple[str, str, str, str]
"""Split, record, patient, content."""
Write = Callable[..., Path]


def content(number: int, flips: int = 0) -> str:
    """Return the fingerprint of recording `number`, with some bits flipped as another packaging has them."""
    bits = np.random.default_rng(number).integers(0, 2, (3, 128), dtype=np.uint8)
    bits[:, 122:] = 0
    bits.reshape(-1)[:flips] ^= 1
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a manifest of some records into a folder, one shard a split."""

    def run(database: str, rows: Sequence[Row], *, folder: str = "") -> Path:
        shards = []
        for split in sorted({row[0] for row in rows}):
            mine = [row for row in rows if row[0] == split]
            members = Members(
                offset=(512,) * len(mine),
                samples=(5000,) * len(mine),
                microvolt_per_count=(1.0,) * len(mine),
                json_offset=(0,) * len(mine),
                json_bytes=(2,) * len(mine),
                record=tuple(row[1] for row in mine),
                patient=tuple(row[2] for row in mine),
                content=tuple(row[3] for row in mine),
                flags=("",) * len(mine),
            )
            name = f"{database}-{split}-000000.tar"
            shards.append(Shard(name=name, split=split, samples=len(mine), bytes=0, sha256="", members=members))
        out = tmp_path / (folder or database)
        out.mkdir()
        write_json(out / MANIFEST, config.to_dict(manifest(database, tuple(shards))))
        return out

    return run


def manifest(database: str, shards: tuple[Shard, ...]) -> Manifest:
    facts: dict[str, Any] = dict.fromkeys(("title", "licence", "citation", "address", "version", "ecgfm"), "")
    counts: dict[str, Any] = {
        name: {} for name in ("options", "refused", "refused_segments", "mended", "derived", "flags", "rates_hz")
    }
    return Manifest(
        **facts,
        **counts,
        schema=SCHEMA,
        database=database,
        expected_records=None,
        leads=LEADS,
        seen=0,
        kept=0,
        segments=0,
        kept_s=0.0,
        cut_s=0.0,
        sex={},
        ages={},
        patients=0,
        mean_mv=(0.0,) * 12,
        std_mv=(1.0,) * 12,
        labels={},
        same_signal=(),
        shards=shards,
    )


@pytest.fixture
def ptb_xl(write: Write) -> Path:
    """Return PTB-XL with records 1 to 8 in train, 9 in val, 10 in test, each of a patient of its own."""
    splits = dict.fromkeys(range(1, 9), "train") | {9: "val", 10: "test"}
    return write("ptb-xl", [(split, f"{n:05d}", f"{n}.0", content(n)) for n, split in splits.items()])


def found(report: LeakReport) -> set[tuple[str, str, str]]:
    return {(leak.what, leak.pretraining.record, leak.held_out.record) for leak in report.leaks}


def test_a_published_split_alone_is_no_leak(ptb_xl: Path) -> None:
    report = require_no_leak([ptb_xl])
    assert (report.pretraining, report.held_out, report.without_content) == (8, 2, 0)
    assert not report.leaks and not report.doubled and not report.notes


@pytest.mark.parametrize("together", [True, False])
def test_a_held_out_fold_is_found_in_another_database(write: Write, ptb_xl: Path, together: bool) -> None:
    copy = write("wfdb-folder", [("all", "a", "", content(50)), ("all", "b", "", content(10, flips=20))])
    folders, held_out = ([ptb_xl, copy], []) if together else ([copy], [ptb_xl])
    report = check_leaks(folders, held_out)
    assert found(report) == {("recording", "b", "00010")}
    assert report.leaks[0].differ_bits == 20
    assert str(report.leaks[0]) == (
        f"wfdb-folder b (split all of {copy}) is the same recording as ptb-xl 00010 (split test of {ptb_xl})"
    )
    with pytest.raises(ShardError, match=r"1 of \d+ recordings .* wfdb-folder b .* ptb-xl 00010 .* Leave out"):
        require_no_leak(folders, held_out)


def test_a_fold_that_is_open_to_pretraining_may_come_from_another_database(write: Write, ptb_xl: Path) -> None:
    copy = write("georgia", [("all", "E1", "", content(3, flips=4)), ("all", "E2", "", content(60))])
    assert check_leaks([copy], [ptb_xl]).leaks == ()
    report = check_leaks([copy, ptb_xl])
    assert report.leaks == ()
    (doubled,) = report.doubled
    assert (doubled.databases, doubled.count) == (("georgia", "ptb-xl"), 1)
    assert [place.record for place in doubled.examples[0]] == ["E1", "00003"]


def test_splits_that_pretraining_does_not_read_are_no_leak(write: Write, ptb_xl: Path) -> None:
    copy = write("challenge-ptb-xl", [("unknown", f"HR{n:05d}", "", content(n)) for n in range(1, 11)])
    report = check_leaks([copy, ptb_xl])
    assert not report.leaks and not report.doubled and report.pretraining == 8
    assert len(check_leaks([copy], [ptb_xl], pretraining_splits=("unknown",)).leaks) == 2


def test_every_copy_of_a_held_out_recording_is_listed(write: Write, ptb_xl: Path) -> None:
    copies = write("georgia", [("all", f"E{n}", "", content(9, flips=n % 3)) for n in range(6)])
    assert found(check_leaks([copies], [ptb_xl])) == {("recording", f"E{n}", "00009") for n in range(6)}


def test_a_patient_on_both_sides_is_a_leak_within_a_database_alone(write: Write) -> None:
    split = write("code-15", [("train", "1", "p", content(1)), ("test", "2", "p", content(2))])
    assert found(check_leaks([split])) == {("patient", "1", "2")}
    other = write("mimic-iv-ecg", [("all", "1", "p", content(3)), ("all", "2", "q", content(4))])
    assert check_leaks([other], [split]).leaks == ()
    with pytest.raises(ShardError, match="of patient 'p', as is code-15 2"):
        require_no_leak([split])


def test_a_record_without_a_patient_is_a_patient_of_its_own(write: Write) -> None:
    mine = write("ludb", [("all", "1", "", ""), ("all", "2", "", "")])
    held_out = write("ludb", [("test", "2", "", ""), ("test", "3", "", "")], folder="again")
    report = check_leaks([mine], [held_out])
    assert found(report) == {("patient", "2", "2")} and report.without_content == 4


def test_patients_of_two_folders_of_a_users_own_are_not_the_same(write: Write) -> None:
    mine = write("numpy-folder", [("train", "1", "p", content(1))])
    held_out = write("numpy-folder", [("test", "1", "p", content(2))], folder="other")
    assert check_leaks([mine], [held_out]).leaks == ()


def test_a_folder_without_splits_can_be_held_out_whole(write: Write) -> None:
    mine = write("georgia", [("all", "E1", "", content(1))])
    hospital = write("wfdb-folder", [("all", "h", "", content(1, flips=3))])
    assert check_leaks([mine, hospital]).leaks == ()
    assert found(check_leaks([mine], [hospital])) == {("recording", "E1", "h")}


def test_a_folder_that_is_named_twice_is_read_once(ptb_xl: Path) -> None:
    again = ptb_xl.parent / "." / "ptb-xl" / ".." / "ptb-xl"
    report = check_leaks([ptb_xl, again], [ptb_xl])
    assert report.pretraining == 8 and report.held_out == 2 and not report.leaks and not report.doubled


def test_segments_of_a_record_do_not_double_each_other(write: Write) -> None:
    rows = [("all", "I01", "", content(1, flips=n)) for n in range(3)]
    assert check_leaks([write("st-petersburg-incart", rows)]).doubled == ()
    more = write("ptb", [*rows, ("all", "I02", "", content(1)), ("all", "I03", "", content(9))])
    (doubled,) = check_leaks([more]).doubled
    assert (doubled.databases, doubled.count) == (("ptb", "ptb"), 1)
    assert [place.record for place in doubled.examples[0]] == ["I01", "I02"]


def test_without_ptb_xl_the_report_says_what_it_cannot_know(write: Write, ptb_xl: Path) -> None:
    mine = write("georgia", [("all", "E1", "", content(1))])
    (note,) = check_leaks([mine]).notes
    assert "--held-out" in note
    assert check_leaks([mine], [ptb_xl]).notes == ()


def test_a_folder_that_was_not_converted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="does not exist"):
        check_leaks([tmp_path])
