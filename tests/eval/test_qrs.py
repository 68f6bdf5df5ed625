"""The QRS detector against what cardiologists marked, and the shares of masks against loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from torch import Tensor

from ecgfm.eval.qrs import qrs_of, qrs_share

RATE_HZ = 500.0
RECORDS = ("1", "5", "8", "34", "77", "101", "150", "200")


def beats(times_s: list[float], seconds: float = 8.0) -> Tensor:
    """Return signal_BLT of one window: narrow R waves, and broad T waves as high, in three leads beside a flat one."""
    time_T = torch.arange(round(seconds * RATE_HZ), dtype=torch.float64) / RATE_HZ
    lead_T = torch.zeros_like(time_T)
    for at in times_s:
        lead_T += torch.exp(-(((time_T - at) / 0.012) ** 2)) + torch.exp(-(((time_T - at - 0.3) / 0.07) ** 2))
    return torch.stack([lead_T, -0.3 * lead_T, 0.1 * lead_T + 2.0, torch.zeros_like(lead_T)])[None]


@pytest.fixture(scope="module")
def marked(ecg_data: Path) -> list[tuple[Tensor, np.ndarray, slice]]:
    """Return of some recordings the signal, where half of the leads are marked as QRS, and from where to where."""
    folder = ecg_data / "ludb" / "data"
    if not folder.exists():
        pytest.skip(f"the Lobachevsky University database is not at {folder}")
    found = []
    for name in RECORDS:
        record = wfdb.rdrecord(str(folder / name))
        inside_LT = np.zeros(record.p_signal.T.shape, dtype=bool)
        for lead, wanted in enumerate(record.sig_name):
            marks = wfdb.rdann(str(folder / name), wanted.lower())
            for number in range(1, len(marks.symbol) - 1):
                if marks.symbol[number - 1 : number + 2] == ["(", "N", ")"]:  # onset, peak, offset
                    inside_LT[lead, marks.sample[number - 1] : marks.sample[number + 1] + 1] = True
        places = np.flatnonzero(inside_LT.any(axis=0))
        signal_BLT = torch.from_numpy(record.p_signal.T.copy())[None]
        found.append((signal_BLT, inside_LT.mean(axis=0) >= 0.5, slice(places[0], places[-1] + 1)))
    return found


def runs(inside_T: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside_T.astype(int), [0]])))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def test_complexes_are_those_that_cardiologists_marked(marked: list[tuple[Tensor, np.ndarray, slice]]) -> None:
    same = total = 0
    for signal_BLT, wanted_T, span in marked:
        found, wanted = qrs_of(signal_BLT, RATE_HZ)[0].numpy()[span], wanted_T[span]
        assert all(found[first:last].any() for first, last in runs(wanted))
        assert all(wanted[max(first - 25, 0) : last + 25].any() for first, last in runs(found))
        same, total = same + int((found & wanted).sum()), total + int(found.sum() + wanted.sum())
    # Of all 200 recordings it is 0.94.
    assert 2 * same / total > 0.9


def test_a_mask_of_the_marked_complexes_covers_them_and_little_else(
    marked: list[tuple[Tensor, np.ndarray, slice]],
) -> None:
    covered = []
    for signal_BLT, wanted_T, span in marked:
        mask_BNT = torch.from_numpy(np.stack([wanted_T, ~wanted_T]))[None, :, span]
        share = qrs_share(mask_BNT.double(), signal_BLT[:, :, span], RATE_HZ)
        covered.append(share.qrs_BN[0, 0].item())
        assert covered[-1] == pytest.approx(1.0 - share.qrs_BN[0, 1].item())
        assert share.all_BN[0, 0].item() == pytest.approx(wanted_T[span].mean()) and share.all_BN[0, 0] < 0.25
    assert min(covered) > 0.7 and sum(covered) / len(covered) > 0.9


def test_beats_are_found_where_they_are_in_any_unit_and_t_waves_are_none() -> None:
    times = [0.5, 1.3, 2.0, 3.1, 4.0, 4.5, 5.6, 6.4, 7.6]
    signal_BLT = beats(times)
    found_T = qrs_of(signal_BLT, RATE_HZ)[0].numpy()
    middles = [(first + last - 1) / 2 / RATE_HZ for first, last in runs(found_T)]
    assert middles == pytest.approx(times, abs=0.01)
    assert all(0.02 < (last - first) / RATE_HZ < 0.14 for first, last in runs(found_T))
    moved = qrs_of(1000.0 * signal_BLT - 70.0, RATE_HZ)[0].numpy()
    assert (moved == found_T).all()
    # Of another rate: the same times, to a sample of it.
    slow = qrs_of(signal_BLT[:, :, ::2], RATE_HZ / 2)[0].numpy()
    assert [first / 250 for first, _ in runs(slow)] == pytest.approx(
        [first / 500 for first, _ in runs(found_T)], abs=0.01
    )


def test_shares_are_those_of_a_loop_over_windows_masks_and_samples() -> None:
    signal_BLT = torch.cat([beats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), beats([0.7, 1.9, 3.3, 4.1, 5.2, 6.6])])
    mask_BNT = torch.rand(2, 3, signal_BLT.shape[2], generator=torch.Generator().manual_seed(0))
    mask_BNT[1, 2] = 1.0
    share, qrs_BT = qrs_share(mask_BNT, signal_BLT, RATE_HZ), qrs_of(signal_BLT, RATE_HZ)
    for window in range(2):
        for mask in range(3):
            values = mask_BNT[window, mask].tolist()
            inside = [value for value, here in zip(values, qrs_BT[window].tolist(), strict=True) if here]
            assert share.qrs_BN[window, mask].item() == pytest.approx(sum(inside) / len(inside), rel=1e-9)
            assert share.all_BN[window, mask].item() == pytest.approx(sum(values) / len(values), rel=1e-9)
    assert share.qrs_BN[1, 2] == share.all_BN[1, 2] == 1.0


def test_a_window_without_a_complex_has_no_share_of_any() -> None:
    share = qrs_share(torch.ones(1, 1, 1000), torch.zeros(1, 2, 1000), RATE_HZ)
    assert share.qrs_BN.isnan().all() and share.all_BN.item() == 1.0
