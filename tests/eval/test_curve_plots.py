"""What the curves show is what scikit-learn and plain loops compute."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from ecgfm.errors import ConfigError
from ecgfm.eval import curve_plots
from ecgfm.eval.bootstrap import Interval
from ecgfm.eval.curve_plots import Curve
from ecgfm.eval.inline_svg import inline_svg


def curve_of(seed: int, positives: int = 15, name: str = "a") -> Curve:
    draw = np.random.default_rng(seed)
    target = np.zeros(60)
    target[:positives] = 1
    target[-3:] = np.nan
    return Curve(name=name, target_N=target, score_N=draw.beta(2, 3, 60).round(2) + 0.2 * (target == 1))


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_legend_says_the_area_and_the_average_precision() -> None:
    curves = [curve_of(seed, name=f"label {seed}") for seed in range(3)]
    known = [~np.isnan(curve.target_N) for curve in curves]
    for plot, score in (
        (curve_plots.plot_roc, roc_auc_score),
        (curve_plots.plot_precision_recall, average_precision_score),
    ):
        wanted = [f"{score(c.target_N[k], c.score_N[k]):.3f}  {c.name}" for c, k in zip(curves, known, strict=True)]
        assert legend_of(plot(curves)) == wanted


def test_only_labels_with_both_answers_are_drawn_and_of_many_the_most_frequent() -> None:
    curves = [curve_of(seed, positives=seed + 1, name=str(seed)) for seed in range(12)]
    alone = Curve(name="alone", target_N=np.zeros(5), score_N=np.zeros(5))
    assert [curve.name for curve in curve_plots.shown([alone, *curves])] == [str(n) for n in range(5, 12)]


def test_reliability_dots_are_shares_of_bins() -> None:
    curve = curve_of(1)
    people = [str(number // 2) for number in range(60)]
    figure = curve_plots.plot_reliability(curve, None, people, (0.25, None))
    assert legend_of(figure) == ["as given, ECE 0.250"]
    (line,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    wanted = []
    for number in range(15):
        inside = [
            (p, t)
            for p, t in zip(curve.score_N, curve.target_N, strict=True)
            if not np.isnan(t) and number / 15 < p <= (number + 1) / 15
        ]
        if inside:
            wanted.append(tuple(np.mean(inside, axis=0)))
    np.testing.assert_allclose(np.column_stack(line.get_data()), wanted, atol=1e-12)


def test_confusion_is_that_of_scikit_learn_and_unknown_records_are_left_out() -> None:
    draw = np.random.default_rng(0)
    truth, probability = draw.integers(0, 4, 50), draw.dirichlet(np.ones(4), 50)
    target = np.eye(4)[truth]
    target[7] = np.nan
    keep = np.arange(50) != 7
    wanted = confusion_matrix(truth[keep], probability[keep].argmax(1))
    np.testing.assert_array_equal(curve_plots.confusion(target, probability), wanted)
    figure = curve_plots.plot_confusion(target, probability, list("abcd"))
    assert [text.get_text() for text in figure.axes[0].texts] == [str(count) for count in wanted.ravel()]


def test_label_efficiency_is_drawn_in_the_order_of_the_records() -> None:
    part = [Interval(value=v, low=v - 0.1, high=v + 0.05, draws=9) for v in (0.9, 0.7)]
    figure = curve_plots.plot_label_efficiency({"pretrained": [(100, part[0]), (10, part[1])]})
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(np.column_stack(line.get_data()), [(10, 0.7), (100, 0.9)])
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["10", "100"]


def test_features_are_laid_out_by_their_principal_components() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5)) * [5, 3, 1, 1, 1] + 10
    place, names = curve_plots.layout(features)
    reference = PCA(2).fit(features)
    # A component's sign is arbitrary.
    np.testing.assert_allclose(np.abs(place), np.abs(reference.transform(features)), atol=1e-9)
    assert names[0] == f"first component, {reference.explained_variance_ratio_[0]:.0%} of the variance"
    with pytest.raises(ConfigError, match="3 or more"):
        curve_plots.layout(features[:2])
    with pytest.raises(ConfigError, match="a name for each"):
        curve_plots.plot_layout(place, ["a"], ("x", "y"))


def test_umap_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install umap-learn, or use --layout pca"):
        curve_plots.layout(np.eye(5), "umap")


def test_umap_is_seeded_and_tells_groups_apart() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    draw = np.random.default_rng(0)
    features = np.concatenate([draw.normal(size=(20, 5)), draw.normal(size=(20, 5)) + 20])
    place, _ = curve_plots.layout(features, "umap")
    again, _ = curve_plots.layout(features, "umap")
    np.testing.assert_array_equal(place, again)
    centres = place[:20].mean(0), place[20:].mean(0)
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * place[:20].std(axis=0).max()


def test_svgs_of_one_page_share_no_id_name_nothing_outside_and_take_its_colours() -> None:
    texts = []
    for number in range(2):
        figure = curve_plots.plot_roc([curve_of(0, name='a < b & "c" $x$ #b0b0b0'), curve_of(1, name="d")])
        texts.append(inline_svg(figure, f'Curve <{number}> & "more"'))
    ids = [re.findall(r' id="([^"]+)"', text) for text in texts]
    assert ids[0] and not set(ids[0]) & set(ids[1])
    for text, own in zip(texts, ids, strict=True):
        root = ElementTree.fromstring(text)
        assert root.attrib["aria-label"].startswith("Curve <") and "width" not in root.attrib
        words = [item.text or "" for item in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(word.endswith('a < b & "c" $x$ #b0b0b0') for word in words)
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
        assert {a or b for a, b in used} <= set(own)
        assert set(re.findall(r"https?://[^\"]+", text)) == {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert "<style" not in text and "DejaVu" not in text
        assert {"var(--series-0, #0072b2)", "var(--line, #e6e6e6)"} <= set(re.findall(r"var\([^)]*\)", text))
