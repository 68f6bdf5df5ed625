"""Missing samples: where they are, how long they last, and linear interpolation over them.

Some databases hold NaN (10,554 records of MIMIC-IV-ECG), and public training code interpolates them all, however
long: a lead that is missing for eight seconds becomes a straight line that no flag tells from an ECG. Here the caller
asks `longest_gap` first and refuses what is too long to be believed.

Shapes: L leads, T samples, R runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Runs:
    """Runs of missing samples, ordered by lead and start."""

    lead_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    """First missing sample."""
    stop_R: NDArray[np.int64]
    """First sample after the run."""


def runs(missing_LT: NDArray[np.bool_]) -> Runs:
    """Return every run of missing samples."""
    leads, samples = missing_LT.shape
    # One sample that is there closes each lead, so that no run goes on into the next.
    closed = np.zeros((leads, samples + 1), dtype=np.bool_)
    closed[:, :samples] = missing_LT
    edges = np.flatnonzero(np.diff(closed.ravel(), prepend=False))
    lead_R, start_R = np.divmod(edges[::2], samples + 1)
    return Runs(lead_R=lead_R, start_R=start_R, stop_R=edges[1::2] - lead_R * (samples + 1))


def longest_gap(missing_LT: NDArray[np.bool_], start: int, stop: int) -> tuple[int, int]:
    """Return the longest run that touches a segment, in samples, and its lead.

    A run that the segment's border cuts counts in full, with what lies outside: that no sample was seen is as true of
    half of it.

    Args:
        missing_LT: Where there is no sample, over the whole recording.
        start: First sample of the segment.
        stop: First sample after it.

    Returns:
        (0, 0) when nothing is missing; of equal runs, the first lead's.
    """
    found = runs(missing_LT[:, start:stop])
    lengths_R = found.stop_R - found.start_R
    if not len(lengths_R):
        return 0, 0
    # Only the runs at a border, one a lead and side, are followed outside: a segment is a small part of half an hour.
    for run in np.flatnonzero(found.start_R == 0):
        lengths_R[run] += _first_known(missing_LT[found.lead_R[run], :start][::-1])
    for run in np.flatnonzero(found.stop_R == stop - start):
        lengths_R[run] += _first_known(missing_LT[found.lead_R[run], stop:])
    longest = int(lengths_R.argmax())
    return int(lengths_R[longest]), int(found.lead_R[longest])


def _first_known(missing_T: NDArray[np.bool_]) -> int:
    """Return how many samples are missing before the first that is there."""
    return len(missing_T) if missing_T.all() else int(missing_T.argmin())


def fill(signal_LT: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the signal with every NaN filled, lead by lead.

    Inside a lead the value lies on the line between the samples on either side; before the first and after the last it
    is theirs. A lead without any sample becomes 0: it has a run over the whole recording, which the caller refuses or
    reports.

    Args:
        signal_LT: Shape (L, T), NaN where there is no sample.

    Returns:
        Shape (L, T), a new array.
    """
    out_LT = signal_LT.astype(np.float64)
    missing_LT = np.isnan(out_LT)
    for lead in np.flatnonzero(missing_LT.any(axis=1)):
        missing_T = missing_LT[lead]
        known = np.flatnonzero(~missing_T)
        out_LT[lead, missing_T] = (
            np.interp(np.flatnonzero(missing_T), known, out_LT[lead, known]) if len(known) else 0.0
        )
    return out_LT
