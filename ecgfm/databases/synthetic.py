"""Synthetic 12-lead recordings, written as WFDB files and read back as any database is.

They serve to try the software, end to end and without a download: every rhythm and morphology is schematic, so
numbers measured on them say nothing about hearts. How a recording is made is in `_synthetic_record.py`, after
McSharry et al. 2003, https://doi.org/10.1109/TBME.2003.808805, and Sameni et al. 2007,
https://doi.org/10.1155/2007/43407.

`write` makes the folder: `records/00012/syn00012345.hea` and `.dat` (WFDB format 16, 1000 counts per mV), `RECORDS`
with a line for each, and `SYNTHETIC`, which says what this is and how it was made. A recording depends on the
seed, its number, the rate and the length alone, so that a folder can be written in parts and extended.

Labels have the scheme `synthetic`: one rhythm and one morphology a record ("normal" is a morphology, and says
nothing of the rhythm). III, aVR, aVL and aVF follow from I and II exactly, count by count.

Shapes: L leads, T samples.
"""

from __future__ import annotations

import concurrent.futures
import functools
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._fields import age_years, sex_of
from ecgfm.databases._synthetic_dipole import COUNTS_PER_MV
from ecgfm.databases._synthetic_record import Heart, synthesise
from ecgfm.databases._wfdb_files import signal_fields
from ecgfm.databases._wfdb_header import comment_fields, read_header
from ecgfm.databases.base import Database, folder
from ecgfm.errors import ConfigError, DatabaseError
from ecgfm.leads import LEADS
from ecgfm.record import Record, RecordRef

GENERATOR = 1
"""Raised whenever the same seed gives other recordings."""
MARKER = "SYNTHETIC"
INDEX = "RECORDS"
RECORDS_PER_FOLDER = 1000
MOST_RECORDS = 10**8
RATES_HZ = (100.0, 2000.0)
LENGTHS_S = (5.0, 600.0)
_CHUNK = 50
_LINE = re.compile(r"records/\d{5}/(syn\d{8})")


class Synthetic(Database):
    """What `write` wrote; see the module."""

    title = "Synthetic 12-lead ECG"
    licence = "CC0-1.0"
    citation = (
        "McSharry et al. 2003, A dynamical model for generating synthetic electrocardiogram signals, IEEE Trans Biomed "
        "Eng 50 289-294, https://doi.org/10.1109/TBME.2003.808805; Sameni et al. 2007, Multichannel ECG and noise "
        "modeling, EURASIP J Adv Signal Process 043407, https://doi.org/10.1155/2007/43407"
    )
    address = "made by ecgfm: tools/synthesise.py"
    version = str(GENERATOR)

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield the records that the file RECORDS lists.

        Raises:
            DatabaseError: `root` is missing, was not written by tools/synthesise.py, or not to its end.
        """
        if not (folder(root, f"{MARKER}, {INDEX} and records/") / MARKER).is_file():
            raise DatabaseError(f"{root} has no file {MARKER}; make the database with tools/synthesise.py {root}")
        if not (root / INDEX).is_file():
            raise DatabaseError(f"{root} has no file {INDEX}: writing it was stopped; call tools/synthesise.py again")
        for number, line in enumerate((root / INDEX).read_text(encoding="utf-8").splitlines(), start=1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise DatabaseError(f"{root / INDEX} line {number}: {line[:80]!r} is not records/00000/syn00000000")
            yield RecordRef(record=match[1], file=f"{root}/{line}.hea")

    def read(self, ref: RecordRef) -> Record:
        """Read one record; see `Database.read`."""
        header = read_header(ref.file)
        fields = comment_fields(header)
        return Record(
            record=ref.record,
            database=self.name(),
            **signal_fields(header, ref.folder),
            patient=fields.get("patient"),
            age=age_years(fields.get("age", "")),
            sex=sex_of(fields.get("sex", "")),
            labels={"synthetic": tuple(label for label in fields.get("labels", "").split(",") if label)},
        )


def write(
    out: Path,
    *,
    records: int,
    first: int = 0,
    seed: int = 0,
    rate_hz: float = 500.0,
    seconds: float = 10.0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write recordings `first` to `first + records - 1`; those that are there already are kept.

    Recordings 0 to 99 and then 100 to 199 make the same folder as 0 to 199, whatever the order and the number of
    workers. Two calls at once into one folder are for recordings that differ.

    Args:
        out: Folder of the database; made if need be.
        records: How many.
        first: Number of the first.
        seed: Of the database: another seed is another database, with other patients.
        rate_hz: Samples per second, 100 to 2000.
        seconds: Length of each recording, 5 to 600.
        workers: Processes.
        progress: Called now and then with the records done and the records in all.

    Raises:
        ConfigError: A number is out of its bounds.
        DatabaseError: `out` holds something else, or cannot be written.
    """
    _check(records, first, rate_hz, seconds, workers)
    try:
        _mark(out, seed, rate_hz, seconds)
        missing = [index for index in range(first, first + records) if not _path(out, index).exists()]
        for parent in {_path(out, index).parent for index in missing}:
            parent.mkdir(parents=True, exist_ok=True)
        ready = records - len(missing)
        progress(ready, records)
        job = functools.partial(_write_chunk, out=out, seed=seed, rate_hz=rate_hz, seconds=seconds)
        _write_all(job, missing, workers, lambda done: progress(ready + done, records))
        found = sorted((out / "records").glob("?????/syn????????.hea"))
        lines = [path.relative_to(out).with_suffix("").as_posix() + "\n" for path in found]
        _write_file(out / INDEX, "".join(lines).encode())
    except OSError as error:
        raise DatabaseError(
            f"{error.filename or out} cannot be written: {error.strerror}; give a folder with enough space"
        ) from error


def _check(records: int, first: int, rate_hz: float, seconds: float, workers: int) -> None:
    for name, number, least in (("records", records, 1), ("first", first, 0), ("workers", workers, 1)):
        if number < least:
            raise ConfigError(f"--{name} must be at least {least}, got {number}")
    if first + records > MOST_RECORDS:
        raise ConfigError(f"--first {first} and --records {records}: the last record would have more than 8 digits")
    for name, value, (low, high) in (("rate-hz", rate_hz, RATES_HZ), ("seconds", seconds, LENGTHS_S)):
        if not low <= value <= high:
            raise ConfigError(f"--{name} must be {low:g} to {high:g}, got {value:g}")


def _mark(out: Path, seed: int, rate_hz: float, seconds: float) -> None:
    """Write down what the folder is, and refuse to mix it with anything else."""
    text = (
        "These are not recordings of people. They are synthetic electrocardiograms, made by ecgfm\n"
        "(tools/synthesise.py) to try software. Do not draw medical conclusions from them.\n"
        "Licence: CC0-1.0.\n\n"
        f"generator: {GENERATOR}\nseed: {seed}\nrate_hz: {rate_hz:.12g}\nseconds: {seconds:.12g}\n"
    )
    marker = out / MARKER
    if not marker.exists():
        if out.is_dir() and any(out.iterdir()):
            raise DatabaseError(f"{out} is not empty and holds no synthetic database; give a new or an empty folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_file(marker, text.encode())
        return
    old = marker.read_text(encoding="utf-8")
    if old != text:
        changed = " and ".join(
            f"{now!r} wanted, {then!r} there" for then, now in zip(old.splitlines(), text.splitlines()) if then != now
        )
        raise DatabaseError(
            f"{out} holds another synthetic database ({changed or 'its SYNTHETIC differs'}); give another folder"
        )


def _path(out: Path, index: int) -> Path:
    """Return where the header of a recording lies; its signal lies beside it."""
    return out / "records" / f"{index // RECORDS_PER_FOLDER:05d}" / f"syn{index:08d}.hea"


def _write_all(
    job: Callable[[list[int]], int], indices: list[int], workers: int, progress: Callable[[int], None]
) -> None:
    """Write in this process or in several."""
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    done = 0
    if workers == 1 or len(chunks) <= 1:
        for chunk in chunks:
            done += job(chunk)
            progress(done)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the threads of a progress bar or of BLAS
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(chunks)), mp_context=context, initializer=_leave_interrupt_to_parent
    )
    try:
        for future in concurrent.futures.as_completed([pool.submit(job, chunk) for chunk in chunks]):
            done += future.result()
            progress(done)
    finally:
        # After Ctrl-C the chunks in work are finished, the others are for the next call.
        pool.shutdown(cancel_futures=True)


def _leave_interrupt_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_chunk(indices: list[int], *, out: Path, seed: int, rate_hz: float, seconds: float) -> int:
    for index in indices:
        counts_LT, source = synthesise(seed, index, rate_hz=rate_hz, seconds=seconds)
        path = _path(out, index)
        # The header comes last: where there is one, the recording is whole.
        _write_file(path.with_suffix(".dat"), counts_LT.astype("<i2").tobytes(order="F"))
        _write_file(path, _header(path.stem, counts_LT, rate_hz, source).encode())
    return len(indices)


def _header(name: str, counts_LT: NDArray[np.int16], rate_hz: float, source: Heart) -> str:
    """Return the text of a WFDB header."""
    sums_L = counts_LT.sum(axis=1, dtype=np.int64) % 65536
    gain = f"{COUNTS_PER_MV:.1f}(0)/mV"
    lines = [f"{name} {len(LEADS)} {rate_hz:.12g} {counts_LT.shape[1]}"]
    for lead, start, checksum in zip(LEADS, counts_LT[:, 0].tolist(), sums_L.tolist(), strict=True):
        lines.append(f"{name}.dat 16 {gain} 16 0 {start} {checksum} 0 {lead}")
    owner = source.patient
    lines += [
        f"# Age: {owner.age}",
        f"# Sex: {owner.sex.capitalize()}",
        f"# Patient: p{owner.number:06d}",
        f"# Labels: {','.join(source.labels)}",
    ]
    return "\n".join(lines) + "\n"


def _write_file(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename. There is no fsync: a recording can always be made again."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
