"""Long recordings in pieces: INCART's half hours become 180 samples of 10 s instead of one of which a crop is seen.

Segments follow each other without overlap and without a gap, so that no sample is counted twice and a segment's start
says where it was.
"""

from __future__ import annotations

from itertools import pairwise

from ecgfm.errors import ConfigError


def cut(samples: int, rate_hz: float, *, segment_s: float | None, min_s: float) -> tuple[tuple[int, int], ...]:
    """Return the segments of a recording as (start, stop) in samples.

    Args:
        samples: Length of the recording.
        rate_hz: Samples per second.
        segment_s: Length of a segment; None keeps recordings whole, as are those that are not longer.
        min_s: Shortest segment that is kept. The rest of a recording that is shorter is left out, as is a whole
            recording; the caller counts what is missing.

    Returns:
        Segments in order. Border k is at `round(k * segment_s * rate_hz)`, so that at 257 Hz, too, rounding does not
        add up; lengths differ by a sample at most where a segment is no whole number of samples.

    Raises:
        ConfigError: A length or the rate is not above 0, or `min_s` is longer than `segment_s`: then every recording
            longer than a segment would be lost.
    """
    if not rate_hz > 0.0 or min_s < 0.0 or (segment_s is not None and not segment_s * rate_hz >= 1.0):
        raise ConfigError(f"segments of {segment_s} s, at least {min_s} s, at {rate_hz} Hz: give lengths above 0")
    if segment_s is not None and min_s > segment_s:
        raise ConfigError(f"segments of {segment_s:g} s are shorter than the shortest that is kept, {min_s:g} s")
    if segment_s is None or samples <= segment_s * rate_hz:
        borders = [0, samples]
    else:
        count = int(samples / (segment_s * rate_hz)) + 2
        inside = (round(border * segment_s * rate_hz) for border in range(count))
        borders = [*(border for border in inside if border < samples), samples]
    # A segment of 10 s at 257.3 Hz has 2573 samples, or 2572 where both borders were rounded: less than a sample short.
    least = min_s * rate_hz - 1
    return tuple((start, stop) for start, stop in pairwise(borders) if stop - start > max(least, 0))
