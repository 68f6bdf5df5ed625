"""An archive of your own as arrays: NumPy or HDF5 files, and a table that says what is in them.

    python tools/convert.py numpy-folder SOURCE OUT

SOURCE holds `records.csv`, one line a record, and the files that it names. Three lines of it:

    record,file,rate_hz,unit,leads,patient,age,sex
    e0001,2019/e0001.npy,500,mV,I;II;III;aVR;aVL;aVF;V1;V2;V3;V4;V5;V6,p17,63,F
    e0002,2019/e0002.npy,500,mV,I;II;III;aVR;aVL;aVF;V1;V2;V3;V4;V5;V6,p18,,

| column | what |
|---|---|
| record | required: name of the record, each once |
| file | required: below SOURCE; .npy, .npz, .hdf5 or .h5 |
| dataset | the array inside of an .npz or HDF5 file |
| index | which record, from 0, of an array that holds several |
| rate_hz | samples per second |
| leads | standard names in the order of the array, separated by `;`. III, aVR, aVL, aVF may be left out |
| unit | mV, uV, V, or counts, which needs microvolt_per_count |
| microvolt_per_count | for the unit counts: how much one count is |
| axes | `leads;samples` (taken when it is not given) or `samples;leads` |
| patient | whose it is; the same text for the same person. Without it a record counts as a patient of its own |
| age | years, 0 to 150 |
| sex | female, male, F, M |
| split | all, train, val, test. Pretraining reads all and train. A table with this column fills every cell |
| fold | whole number |
| labels:SCHEME | codes separated by `;`; `none` where it was labelled and has none. Any number of such columns |

What is the same for all records can stand once in **dataset.json** instead of a column: rate_hz, leads, unit,
microvolt_per_count, axes and dataset; there also the archive's own title, licence (SPDX), citation, address and
version, which the manifest repeats:

    {"title": "ECG archive of our ward", "licence": "LicenseRef-internal", "rate_hz": 500, "unit": "mV",
     "leads": ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]}

Rate, leads and unit are never guessed. An array has the shape (leads, samples), or (records, leads, samples) with an
index; with the axes `samples;leads` the last two change places. Integers that fit are kept as int16, in which
-32768 stands for "no sample"; other integers become float64. Floats stay floats, in which NaN stands for "no sample".
Arrays of Python objects are refused, as reading one can run anything.

.npy and HDF5 files are read record by record. An array of an .npz that holds several records is kept in memory while
its file is read: big ones are better saved as .npy.
"""

from __future__ import annotations

import contextlib
import functools
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfm.databases._own_archive import (
    ABOUT,
    SUBJECT_COLUMNS,
    TABLE,
    items,
    read_about,
    read_table,
    subject,
    take_facts_,
    whole,
)
from ecgfm.databases.base import Database, folder
from ecgfm.errors import DatabaseError, LeadError, RecordError, SignalError
from ecgfm.leads import positions
from ecgfm.record import Counts, Record, RecordRef
from ecgfm.signal.units import millivolt_per

SIGNAL_COLUMNS = ("rate_hz", "leads", "unit", "microvolt_per_count", "axes")
CONSTANTS = (*SIGNAL_COLUMNS, "dataset")
"""What may stand in dataset.json instead of a column."""
_IN_ABOUT: dict[str, tuple[type | tuple[type, ...], str]] = {
    "rate_hz": ((int, float), "500"),
    "leads": (list, '["I", "II", "V1"]'),
    "unit": (str, '"mV"'),
    "microvolt_per_count": ((int, float), "4.88"),
    "axes": (list, '["samples", "leads"]'),
    "dataset": (str, '"tracings"'),
}
"""How dataset.json writes them: the type, and an example."""
COLUMNS = (*SUBJECT_COLUMNS, "file", "index", *CONSTANTS)
AXES = {("leads", "samples"): False, ("samples", "leads"): True}
SHOWN = 10
"""How many names of arrays a message lists."""
_KEYED = (".npz", ".hdf5", ".h5")
_LARGEST_INT16 = 32_767
_CHUNK_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class SignalFacts:
    """What the table says of a signal."""

    rate_hz: float
    leads: tuple[str, ...]
    microvolt_per_count: float
    samples_first: bool


class NumpyFolder(Database):
    """A table and the arrays that it names; see the module."""

    title = "An archive of your own as arrays"
    licence = "LicenseRef-unknown"
    citation = "not published"
    address = "not published"
    version = "unknown"
    native_unit = "as the table says"

    def __init__(self, *, mend: tuple[str, ...] = ()) -> None:
        super().__init__(mend=mend)
        # The last file, and its arrays of several records. One file is enough: records come in order of file.
        self._file: tuple[Path, Any] | None = None
        self._held: dict[str, Any] = {}

    def refs(self, root: Path) -> Iterator[RecordRef]:
        """Yield the records of the table; files are not looked at.

        Raises:
            DatabaseError: `root` is missing, or its table or facts are missing or wrong.
        """
        top = folder(root, f"{TABLE} and the arrays that it names")
        table = top / TABLE
        if not table.exists():
            raise DatabaseError(
                f"{table} does not exist; write one line a record, such as 'e0001,e0001.npy' below 'record,file'"
            )
        about = read_about(top, CONSTANTS)
        take_facts_(self, about)
        constants = _constants(top / ABOUT, about)
        names: dict[str, int] = {}
        places: dict[tuple[Path, str, int], int] = {}
        for row in read_table(table, columns=COLUMNS, required=("record", "file")):
            try:
                ref = _ref(top, row.cells, constants)
                place = (ref.path, ref.info.get("dataset", ""), ref.index)
                _check_once(f"record {ref.record!r}", names.setdefault(ref.record, row.line), row.line)
                _check_once(f"the array in {' '.join(map(str, place))}", places.setdefault(place, row.line), row.line)
            except DatabaseError as error:
                raise DatabaseError(f"{table} line {row.line}: {error}") from error
            yield ref
        if not names:
            raise DatabaseError(f"{table} has no row; write one line a record")

    def read(self, ref: RecordRef) -> Record:
        """Read one record.

        Raises:
            RecordError: `file-missing`; `array-unreadable`: no array of numbers can be read there; `array-mismatch`:
                its shape is not what the table says; `signal-infinite`.
        """
        facts = signal_facts(ref.info)
        with _readable(ref.path):
            array = self._array(ref.path, ref.info.get("dataset", ""))
            where = _check_array(ref, array, facts)
            signal = np.asarray(array[ref.index] if "index" in ref.info else array[...])
        size = len(facts.leads)
        return Record(
            record=ref.record,
            database=self.name(),
            counts_LT=_counts(signal.T if facts.samples_first else signal, where),
            leads=facts.leads,
            microvolt_per_count=np.full(size, facts.microvolt_per_count),
            offset_counts=np.zeros(size, dtype=np.int64),
            rate_hz=facts.rate_hz,
            **subject(ref.info),
        )

    def _array(self, path: Path, dataset: str) -> Any:
        """Return an array or HDF5 dataset, new or kept from an earlier call."""
        if self._file is None or self._file[0] != path:
            self._file, self._held = None, {}
            self._file = (path, _open(path))
        if dataset in self._held:
            return self._held[dataset]
        opened = self._file[1]
        array: Any = opened.get(dataset) if dataset else opened
        if getattr(array, "shape", None) is None:  # there is none, or it is a group, a type or an empty one of HDF5
            there = ", ".join(sorted(opened)[:SHOWN]) + (", ..." if len(opened) > SHOWN else "")
            raise RecordError("array-unreadable", f"{path} has no array {dataset!r} (it has: {there})")
        if len(array.shape) == 3:
            self._held[dataset] = array
        return array


def signal_facts(cells: Mapping[str, str]) -> SignalFacts:
    """Return what a row says of its signal.

    Raises:
        DatabaseError: Rate, leads or unit are missing or cannot be meant. The message gives the column and the value.
    """
    return _signal_facts(*(cells.get(name, "") for name in SIGNAL_COLUMNS))


# An archive has few rates, units and lead orders.
@functools.lru_cache(maxsize=1024)
def _signal_facts(rate: str, leads: str, unit: str, microvolt: str, axes: str) -> SignalFacts:
    for name, text in (("rate_hz", rate), ("leads", leads), ("unit", unit)):
        if not text:
            raise DatabaseError(
                f"{name} is not given, and is never guessed; fill the column {name}, or write {name} into {ABOUT} when "
                "it is the same for all records"
            )
    names = tuple(name.strip() for name in leads.split(";"))
    if len(names) == 1 and len(leads.replace(",", " ").split()) > 1:
        raise DatabaseError(f"leads {leads!r}: separate the names by semicolons, as in I;II;III")
    try:
        positions(names)
    except LeadError as error:
        raise DatabaseError(str(error)) from error
    order = items(axes) or ("leads", "samples")
    if order not in AXES:
        raise DatabaseError(f"axes {axes!r} is not leads;samples or samples;leads")
    return SignalFacts(
        rate_hz=_positive("rate_hz", rate),
        leads=names,
        microvolt_per_count=_microvolt(unit, microvolt),
        samples_first=AXES[order],
    )


def _microvolt(unit: str, microvolt: str) -> float:
    """Return the microvolt of one count, or of 1.0 of a float."""
    if unit.lower() == "counts":
        if not microvolt:
            raise DatabaseError(
                "unit counts needs microvolt_per_count: how much one count is, as the device's manual or export says"
            )
        return _positive("microvolt_per_count", microvolt)
    if microvolt:
        raise DatabaseError(
            f"unit {unit!r} and microvolt_per_count {microvolt!r} are both given; write the unit counts, or leave "
            "microvolt_per_count out"
        )
    try:
        return 1e3 * millivolt_per(unit)
    except SignalError as error:
        raise DatabaseError(f"{error}, or counts with microvolt_per_count") from error


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise DatabaseError(f"{name} {text!r} is not a number above 0")
    return value


def _constants(path: Path, about: Mapping[str, Any]) -> dict[str, str]:
    """Return what dataset.json says of all records, as the cells of a table would."""
    constants = {}
    for name in CONSTANTS:
        if name not in about:
            continue
        value, (kind, example) = about[name], _IN_ABOUT[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DatabaseError(f"{path}: {name} is {value!r}, expected as in {example}")
        constants[name] = ";".join(map(str, value)) if isinstance(value, list) else str(value)
    return constants


def _ref(top: Path, cells: Mapping[str, str], constants: Mapping[str, str]) -> RecordRef:
    """Return the reference of one row."""
    doubled = next((name for name in constants if name in cells), None)
    if doubled:
        raise DatabaseError(f"{doubled} is given here and in {ABOUT}; leave it out of one of them")
    info = {**constants, **cells}
    signal_facts(info)
    record, file = info.pop("record"), PurePosixPath(info.pop("file"))
    if file.is_absolute() or ".." in file.parts:
        raise DatabaseError(f"file {str(file)!r} must lie below {top}; give its path from there")
    if file.suffix not in (".npy", *_KEYED):
        raise DatabaseError(f"file {str(file)!r} is not {', '.join(('.npy', *_KEYED))}; save it as one of them")
    if file.suffix in _KEYED and "dataset" not in info:
        raise DatabaseError(f"file {str(file)!r} needs dataset: the name of the array in it")
    if file.suffix not in _KEYED and "dataset" in info:
        raise DatabaseError(f"file {str(file)!r} has one array without a name; leave dataset {info['dataset']!r} out")
    index = whole(info.get("index", "0"))
    if index is None:
        raise DatabaseError(f"index {info['index']!r} is not a whole number from 0")
    return RecordRef(record=record, file=str(top / file), index=index, split=info.pop("split", "all"), info=info)


def _check_once(what: str, first: int, line: int) -> None:
    if first != line:
        raise DatabaseError(f"{what} is on line {first} already; each has one row")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of the libraries that read `path` into the record's."""
    try:
        yield
    except RecordError:
        raise
    # zipfile raises a RuntimeError where a password is needed, and its subclass for packings that it does not know.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError("array-unreadable", f"{path} cannot be read: {error}") from error


def _open(path: Path) -> Any:
    """Return an array, or what gives arrays by name."""
    if not path.is_file():
        raise RecordError("file-missing", f"{path} does not exist; correct its path in {TABLE}")
    if path.suffix == ".npy":
        # Reads no other format and never unpickles.
        return np.lib.format.open_memmap(path, mode="r")
    if path.suffix == ".npz":
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise RecordError("array-unreadable", f"{path} is no .npz file, in spite of its name")
        return archive
    import h5py

    # Chunks that hold several records are unpacked once, not once a record.
    # Locks are for writers, and some network disks have none.
    return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES, locking=False)


def _check_array(ref: RecordRef, array: Any, facts: SignalFacts) -> str:
    """Return the words for this signal in messages, after its type and shape were found to be as they must.

    Raises:
        RecordError: `array-unreadable`, `array-mismatch`.
    """
    if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
        raise RecordError(
            "array-unreadable", f"{ref.path} holds {array.dtype}; save integers or floats of up to 64 bits"
        )
    return _check_shape(ref, tuple(array.shape), facts)


def _check_shape(ref: RecordRef, shape: tuple[int, ...], facts: SignalFacts) -> str:
    """Return the words for this signal in messages, after its array's shape was found to be as the table says."""
    words = f"{ref.path} {ref.info.get('dataset', '')}".strip()
    if "index" in ref.info:
        if len(shape) != 3:
            raise RecordError(
                "array-mismatch",
                f"{words} has the shape {shape}, and index {ref.index} needs three axes, the first of which are the "
                "records; leave index empty when the array is one record",
            )
        if ref.index >= shape[0]:
            raise RecordError(
                "array-mismatch", f"{words} has {shape[0]} records, so that there is no index {ref.index}"
            )
        shape = shape[1:]
        words = f"{words} index {ref.index}"
    if len(shape) != 2:
        fix = "give the column index, which record it is" if len(shape) == 3 else "save one array of two axes a record"
        raise RecordError("array-mismatch", f"{words} has the shape {shape}, expected are two axes; {fix}")
    said, other = ("samples;leads", "leads;samples") if facts.samples_first else ("leads;samples", "samples;leads")
    leads = len(facts.leads)
    leads_axis = 1 if facts.samples_first else 0
    if shape[leads_axis] != leads:
        fix = (
            f"write the axes {other}"
            if shape[1 - leads_axis] == leads
            else f"the table names {leads} leads, {', '.join(facts.leads)}"
        )
        raise RecordError("array-mismatch", f"{words} has the shape {shape}, which is not {said}: {fix}")
    if shape[1 - leads_axis] == 0:
        raise RecordError("array-mismatch", f"{words} has the shape {shape}: it is empty")
    return words


def _counts(signal_LT: NDArray[Any], where: str) -> Counts:
    """Return the signal in a type that a `Record` may hold, with the same values."""
    kind, size = signal_LT.dtype.kind, signal_LT.dtype.itemsize
    # Copies: a view would change with the file, or with the array that is kept for the next record.
    if kind == "f":
        floats_LT: Counts
        if size == 8:
            floats_LT = np.array(signal_LT, dtype=np.float64, order="C")
        else:
            floats_LT = np.array(signal_LT, dtype=np.float32, order="C")
        if np.isinf(floats_LT).any():
            raise RecordError("signal-infinite", f"{where} holds infinite values; write NaN where there is no sample")
        return floats_LT
    # In wider integers -32768 is a value like others.
    is_int16 = kind == "i" and size == 2
    if is_int16 or (signal_LT.min() >= -_LARGEST_INT16 and signal_LT.max() <= _LARGEST_INT16):
        return np.array(signal_LT, dtype=np.int16, order="C")
    return np.array(signal_LT, dtype=np.float64, order="C")
