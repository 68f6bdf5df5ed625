"""embed, predict and info, as they are called: rows against the model's own, refusals, Ctrl-C, exit statuses."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ecgfm import ECGClassifier, ECGEncoder, config
from ecgfm.__main__ import main
from ecgfm.cli import over_files
from ecgfm.encoders.vit import ViT
from ecgfm.errors import RecordError
from ecgfm.files import Recording, read_recording
from ecgfm.leads import LEADS
from ecgfm.signal.contract import SignalContract

Write = Callable[..., Path]
Run = Callable[..., int]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with random weights on windows of 4 s at 250 Hz, saved."""
    contract = SignalContract(rate_hz=250, mean_mv=(0.0,) * 12, std_mv=(0.3,) * 12, clip=3.0, window_samples=1000)
    settings = ViT.Config(width=16, depth=1, num_heads=2, patch_samples=50)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = ECGEncoder(encoder=config.to_dict(settings), signal=config.to_dict(contract))
    folder = tmp_path_factory.mktemp("model") / "encoder"
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(encoder: Path) -> Path:
    model = ECGClassifier.from_pretrained(encoder, labels=["AF", "left, bundle"], seed=1)
    model.save_pretrained(encoder.with_name("classifier"))
    return encoder.with_name("classifier")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that calls the command line and gives its exit status."""

    def call(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["ecgfm", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


@pytest.fixture
def ward(tmp_path: Path, write_challenge: Write, counts_LT: NDArray[np.int16]) -> Path:
    """A folder of five good recordings of two rates and two lengths, and five bad ones."""
    folder = tmp_path / "ward"
    draw = np.random.default_rng(0)
    for number in (1, 2, 3):
        noise = draw.integers(-30, 30, counts_LT.shape)
        write_challenge(folder, f"E{number:05d}", (counts_LT * (0.5 + 0.2 * number) + noise).astype(np.int16))
    write_challenge(folder, "E00004", np.zeros((12, 5000), dtype=np.int16))  # flat
    write_challenge(folder, "E00005", counts_LT, leads=("I", "I", *LEADS[2:]))
    write_challenge(folder, "E00006", counts_LT, gain="2000000.0(0)/mV")
    write_challenge(folder, "E00007", counts_LT)
    (folder / "E00007.mat").write_bytes((folder / "E00007.mat").read_bytes()[:-8])
    np.save(folder / "many.npy", np.stack([counts_LT[:, :1500] * 1e-3, counts_LT[:, 2000:3500] * 2e-3]))
    (folder / "many.json").write_text(json.dumps({"rate_hz": 125, "leads": LEADS, "unit": "mV"}))
    np.save(folder / "untold.npy", np.zeros((12, 5000)))
    return folder


REFUSED = {
    ("E00004.hea", "signal"),
    ("E00005.hea", "leads"),
    ("E00006.hea", "signal"),
    ("E00007.hea", "truncated"),
    ("untold.npy", "not-told"),
}


def rows_of(path: Path) -> tuple[list[str], list[tuple[str, str]], NDArray[Any]]:
    """Return the names of the columns, file and record of each row, and the values."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as table:
            pairs = list(zip(table["files"].tolist(), table["records"].tolist(), strict=True))
            return table["columns"].tolist(), pairs, table["features"]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.read_table(path)
        columns = [table[name].to_pylist() for name in table.column_names]
        pairs = list(zip(columns[0], columns[1], strict=True))
        return table.column_names[2:], pairs, np.array(columns[2:], dtype=np.float32).T
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    return head[2:], [(row[0], row[1]) for row in rows], np.array([row[2:] for row in rows], dtype=np.float32)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".npz"])
def test_embed_gives_what_the_encoder_gives(
    run: Run, encoder: Path, ward: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "new" / f"f{ending}"
    assert run("embed", ward, "--encoder", encoder, "--out", out, "--batch-size", "4") == 0
    columns, pairs, values_RC = rows_of(out)
    assert columns == [f"ecg{number}" for number in range(16)]
    names = ["E00001", "E00002", "E00003", "many[0]", "many[1]"]
    assert [record for _, record in pairs] == names
    model = ECGEncoder.from_pretrained(encoder)
    signals = [read_recording(ward / f"E0000{number}.hea") for number in (1, 2, 3)]
    many = np.load(ward / "many.npy")
    wanted = [model.embed(one.signal_LT, rate_hz=500, leads=LEADS, unit="mV") for one in signals]
    wanted += [model.embed(one, rate_hz=125, leads=LEADS, unit="mV") for one in many]
    # Other batches, other orders of summation.
    np.testing.assert_allclose(values_RC, torch.cat(wanted).numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(values_RC[0] - values_RC[3]).max() > 0.01
    lines = [json.loads(line) for line in (out.parent / f"{out.name}.refused.jsonl").read_text().splitlines()]
    assert {(Path(line["file"]).name, line["reason"]) for line in lines} == REFUSED
    assert all(Path(line["file"]).name.partition(".")[0] in line["message"] for line in lines)
    said = " ".join(capsys.readouterr().err.split())
    assert "refused: 5" in said and "5 rows of 16 features" in said
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name, f"{out.name}.refused.jsonl"]


def test_predict_has_a_column_for_each_label(run: Run, classifier: Path, ward: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    files = [ward / "E00001", ward / "E00003.hea"]
    assert run("predict", *files, "--classifier", classifier, "--out", out, "--strict") == 0
    columns, pairs, values_RC = rows_of(out)
    assert columns == ["AF", "left, bundle"]
    assert pairs == [(str(ward / "E00001.hea"), "E00001"), (str(ward / "E00003.hea"), "E00003")]
    model = ECGClassifier.from_pretrained(classifier)
    signals = [read_recording(file).signal_LT for file in files]
    wanted = model.predict_proba(signals, rate_hz=500, leads=LEADS, unit="mV")
    np.testing.assert_allclose(values_RC, wanted.numpy(), rtol=1e-5)
    assert not (tmp_path / "p.csv.refused.jsonl").exists()


def test_options_tell_what_an_array_does_not(run: Run, encoder: Path, ward: Path, tmp_path: Path) -> None:
    first = read_recording(ward / "E00001.hea").signal_LT
    np.save(tmp_path / "a.npy", np.rint(first[[1, 0, *range(6, 12)]].T * 1000 / 4.88).astype(np.int16))
    told = "--rate-hz 500 --leads II,I,V1,V2,V3,V4,V5,V6 --unit counts --microvolt-per-count 4.88 --axes samples,leads"
    out = tmp_path / "f.npz"
    assert run("embed", tmp_path / "a.npy", *told.split(), "--encoder", encoder, "--out", out) == 0
    derived = first.copy()
    derived[2:6] = np.array([[-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]]) @ first[:2]
    model = ECGEncoder.from_pretrained(encoder)
    wanted = model.embed(derived, rate_hz=500, leads=LEADS, unit="mV").numpy()
    np.testing.assert_allclose(rows_of(out)[2], wanted, atol=0.02)  # counts of 4.88 microvolt were rounded


def test_the_status_tells_what_was_refused(
    run: Run, encoder: Path, ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.csv"
    how = ("--encoder", encoder, "--out", out)
    assert run("embed", ward / "E00004", ward / "gone.edf", *how) == 1
    assert "all 2 were refused" in capsys.readouterr().err and not out.exists()
    assert len((tmp_path / "f.csv.refused.jsonl").read_text().splitlines()) == 2
    assert run("embed", ward / "E00001", ward / "E00004", *how, "--strict") == 1
    assert "--strict allows none" in capsys.readouterr().err and len(rows_of(out)[1]) == 1
    assert run("embed", ward / "E00002", *how) == 1
    assert "--overwrite" in capsys.readouterr().err and rows_of(out)[1][0][1] == "E00001"
    assert run("embed", ward / "E00002", *how, "--overwrite") == 0
    assert rows_of(out)[1][0][1] == "E00002" and not (tmp_path / "f.csv.refused.jsonl").exists()
    for words, message, status in (
        ((ward, "--encoder", encoder, "--out", tmp_path / "f.txt"), "must end in .parquet, .csv, .npz", 1),
        (("--encoder", encoder, "--out", tmp_path / "g.csv"), "FILES is missing", 2),  # said before anything is run
        ((tmp_path / "model", "--encoder", tmp_path / "none", "--out", tmp_path / "g.csv"), "neither a folder nor", 1),
    ):
        assert run("embed", *words) == status
        caught = capsys.readouterr()
        assert message in " ".join((caught.err + caught.out).split())


def test_ctrl_c_keeps_what_is_done(
    run: Run,
    encoder: Path,
    ward: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []
    embed = ECGEncoder.embed

    def third_time_pressed(self: ECGEncoder, signal: Any, **how: Any) -> torch.Tensor:
        calls.append(len(signal))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, signal, **how)

    monkeypatch.setattr(ECGEncoder, "embed", third_time_pressed)
    out = tmp_path / "f.csv"
    assert run("embed", ward, "--encoder", encoder, "--out", out, "--batch-size", "1") == 130
    assert [record for _, record in rows_of(out)[1]] == ["E00001", "E00002"]
    assert "2 of 9 files are done" in capsys.readouterr().err
    assert calls == [1, 1, 1]


def test_gaps_are_filled_up_to_a_limit() -> None:
    signal = np.tile(np.arange(100.0), (12, 1))
    signal[4, 10:14] = np.nan
    recording = Recording(signal_LT=signal, rate_hz=100, leads=LEADS, unit="mV", name="a")
    np.testing.assert_allclose(over_files.filled(recording, 0.04).signal_LT, np.tile(np.arange(100.0), (12, 1)))
    with pytest.raises(RecordError, match=r"lead aVL lacks 0\.04 s"):
        over_files.filled(recording, 0.03)


def test_info_tells_contract_labels_and_limits(
    run: Run, encoder: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", encoder) == 0
    said = capsys.readouterr().out
    for words in ("250 Hz", "I II III aVR", "4 s", "apache-2.0", "Not a medical device", "Leakage"):
        assert words in said
    (encoder / "model.safetensors").rename(encoder / "hidden")  # it is not needed
    try:
        assert run("info", encoder, "--json") == 0
    finally:
        (encoder / "hidden").rename(encoder / "model.safetensors")
    facts = json.loads(capsys.readouterr().out)
    assert facts["contract"]["rate_hz"] == 250 and facts["kind"] == "encoder" and facts["classifier"] is None
    assert run("info", classifier) == 0
    said = capsys.readouterr().out
    assert "2 labels" in said and "left, bundle" in said and "multilabel" in said


def test_a_card_that_is_broken_or_missing_hides_no_contract(
    run: Run, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((encoder / "config.json").read_bytes())
    assert run("info", tmp_path) == 0
    assert "no card" in capsys.readouterr().out
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n# x\n\n## Leakage\n\nnone that we know\n")
    assert run("info", tmp_path) == 0
    said = capsys.readouterr().out
    assert "none that we know" in said and "not stated" in said and "250 Hz" in said
