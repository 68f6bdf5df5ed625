"""What the pictures say is what the numbers say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from ecgfm.errors import ConfigError
from ecgfm.eval.bootstrap import Interval
from ecgfm.eval.curve_plots import layout
from ecgfm.eval.plots import plot_features, plot_probe, save
from ecgfm.eval.probe import Result


def test_features_are_placed_by_their_principal_components() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1] + 10
    labels = ["a"] * 30 + ["b"] * 20
    place, names = layout(features)
    axes = plot_features(place, labels, names).axes[0]
    reference = PCA(2).fit(features)
    wanted = reference.transform(features)
    got = np.concatenate([np.asarray(item.get_offsets()) for item in axes.collections])
    # A component's sign is arbitrary.
    np.testing.assert_allclose(np.abs(got), np.abs(wanted), atol=1e-9)
    assert f"{reference.explained_variance_ratio_[0]:.0%}" in axes.get_xlabel()
    assert [str(item.get_label()) for item in axes.collections] == ["a (30)", "b (20)"]


def test_rare_labels_share_grey() -> None:
    labels = [f"label {number}" for number in range(20) for _ in range(20 - number)]
    axes = plot_features(np.random.default_rng(0).normal(size=(len(labels), 2)), labels, ("x", "y")).axes[0]
    names = [str(item.get_label()) for item in axes.collections]
    assert len(names) == 8 and names[0] == f"other ({sum(range(1, 14))})"
    with pytest.raises(ConfigError, match="a label for each"):
        plot_features(np.zeros((5, 2)), ["a"], ("x", "y"))


def test_a_probes_dots_and_bars_are_its_intervals() -> None:
    part = [Interval(value=at, low=at - 0.1, high=at + 0.05, draws=10) for at in (0.9, 0.7, 0.2)]
    result = Result(
        label="a:b",
        records=9,
        unknown=0,
        positive=3,
        patients=9,
        pretrained=part[0],
        untrained=part[1],
        difference=part[2],
    )
    axes = plot_probe([result]).axes[0]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in axes.lines[:4]]
    assert drawn == [[part[0].low, part[0].high], [0.9], [part[1].low, part[1].high], [0.7]]


def test_saving_makes_the_folder_and_refuses_an_unknown_ending(tmp_path: Path) -> None:
    figure = plot_features(np.eye(4)[:, :2], ["a"] * 4, ("x", "y"))
    save(figure, tmp_path / "new" / "x.PDF")
    assert (tmp_path / "new" / "x.PDF").read_bytes().startswith(b"%PDF")
    with pytest.raises(ConfigError, match="ending must be one of"):
        save(figure, tmp_path / "x.xyz")
    assert "matplotlib.pyplot" not in sys.modules
