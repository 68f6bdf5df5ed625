"""Labels of records as columns of a batch: what a record has, has not, and what nobody said about it.

A label is unknown in a record that says nothing in its scheme, and in all records of a database none of which has it:
nothing tells that anybody looked for it there. Otherwise a record without the label is negative.

A record's labels stand in its JSON, next to its signal in the shard. They are read when the record is first drawn and
kept, one byte each: so a run over a million records begins at once, and shards that are streamed need nothing else.

Shapes: N records, B windows of this rank, C labels.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm.errors import ConfigError
from ecgfm.labels.chapman import RHYTHM
from ecgfm.labels.scp import TASKS, task_labels
from ecgfm.labels.shared import SHARED18
from ecgfm.labels.snomed import scored_classes
from ecgfm.shards.reader import Shards

UNKNOWN, UNREAD = -1, -2
LISTED = 8
SEX = ("female", "male")


def label_sets() -> dict[str, tuple[str, ...]]:
    """Return the codes of the schemes that can be named as a whole."""
    tasks = {f"scp-{name}" if name != "all" else "scp": task_labels(name) for name in TASKS}
    challenge, chapman = (tuple(sorted(set(codes.values()))) for codes in (scored_classes(), RHYTHM))
    return {"shared18": SHARED18, "challenge": challenge, "chapman-rhythm": chapman, **tasks, "sex": ("female",)}


def label_names(words: Iterable[str]) -> tuple[str, ...]:
    """Return labels as `scheme:code`.

    Args:
        words: Labels written so, and names of `label_sets`, which stand for all of theirs.

    Raises:
        ConfigError: A word is neither, or a label comes twice.
    """
    sets = label_sets()
    names: list[str] = []
    for word in words:
        if ":" not in word and word not in sets:
            raise ConfigError(
                f"{word!r} is no set of labels: give labels as scheme:code, or one of {', '.join(sorted(sets))}"
            )
        names += [word] if ":" in word else [f"{word}:{code}" for code in sets[word]]
    if not names or len(set(names)) < len(names):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        raise ConfigError(f"labels must be given, and each once{': ' + ', '.join(twice) if twice else ''}")
    return tuple(names)


class LabelTable:
    """Labels of all records, filled in as they are drawn.

    Args:
        shards: The records; their files need not be here.
        names: Of `label_names`.

    Raises:
        ConfigError: No record of the shards has a label, or a folder says nothing about any of them.
    """

    def __init__(self, shards: Shards, names: tuple[str, ...]) -> None:
        self._shards = shards
        self.names = names
        self._columns: dict[str, dict[str, int]] = {}
        for column, name in enumerate(names):
            scheme, _, code = name.partition(":")
            self._columns.setdefault(scheme, {})[code] = column
        self._negative: list[dict[str, NDArray[np.int8]]] = []
        self._check_and_describe()
        self._table_NC: NDArray[np.int8] = np.full((len(shards), len(names)), UNREAD, dtype=np.int8)

    def _check_and_describe(self) -> None:
        """Find what a record of each folder is when it has no label of a scheme."""
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for manifest in self._shards.manifests:
            here = counts.setdefault(manifest.database, {})
            for scheme, codes in {**manifest.labels, "sex": manifest.sex}.items():
                known = here.setdefault(scheme, {})
                for code, number in codes.items():
                    known[code] = known.get(code, 0) + number
        everywhere = {
            f"{scheme}:{code}" for here in counts.values() for scheme, codes in here.items() for code in codes
        }
        # Of a whole set some may be in none of these databases, and then nothing is learnt of them; another is a slip.
        of_sets = {f"{scheme}:{code}" for scheme, codes in label_sets().items() for code in codes}
        missing = [name for name in self.names if name not in everywhere]
        if set(missing) - of_sets or len(missing) == len(self.names):
            missing = [name for name in missing if name not in of_sets] or missing
            raise ConfigError(
                f"no record of the shards has the label{'s' if len(missing) > 1 else ''} {_listed(missing)}: "
                f"{_near(missing[0], everywhere)}"
            )
        for folder, manifest in zip(self._shards.folders, self._shards.manifests, strict=True):
            carried = counts[manifest.database]
            negative = {}
            for scheme, columns in self._columns.items():
                negative[scheme] = np.full(len(self.names), UNKNOWN, dtype=np.int8)
                known_here = set(carried.get(scheme, ()))
                if scheme == "sex" and known_here:  # each of them answers for the other
                    known_here.update(SEX)
                negative[scheme][[column for code, column in columns.items() if code in known_here]] = 0
            if all((row == UNKNOWN).all() for row in negative.values()):
                raise ConfigError(
                    f"{folder} ({manifest.database}) says nothing about {_listed(self.names)}: leave it out of "
                    "--data.shards, or choose other labels"
                )
            self._negative.append(negative)

    def learn(self, index: int, content: memoryview | None = None) -> None:
        """Keep the labels of a record.

        Args:
            index: The record.
            content: The bytes of its shard, where that is not here.

        Raises:
            ShardError: Its JSON cannot be read.
        """
        if self._table_NC[index, 0] != UNREAD:
            return
        about = self._shards.about(index, content)
        row = np.full(len(self.names), UNKNOWN, dtype=np.int8)
        negative = self._negative[int(self._shards.folder_of[index])]
        said = {**about["labels"], "sex": [about["sex"]] if about["sex"] else None}
        for scheme, columns in self._columns.items():
            if (codes := said.get(scheme)) is not None:
                np.maximum(row, negative[scheme], out=row)
                row[[columns[code] for code in codes if code in columns]] = 1
        self._table_NC[index] = row

    def rows(self, index: NDArray[np.int64]) -> Tensor:
        """Return labels_BC of records that were learnt: float32, NaN for what is unknown."""
        rows_BC = self._table_NC[index]
        assert (rows_BC != UNREAD).all(), "labels are learnt with the signal"
        return torch.from_numpy(np.where(rows_BC == UNKNOWN, np.float32(np.nan), rows_BC.astype(np.float32)))


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more


def _near(name: str, known: set[str]) -> str:
    if not known:
        return "they hold no label at all"
    lower = {one.lower(): one for one in sorted(known)}
    code = name.partition(":")[2].lower()
    near = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    near += [one for one in sorted(known) if code in one.lower() and one not in near][:3]
    if near:
        return f"did you mean {_listed(near)}?"
    return f"there are {_listed(sorted(known))}"
