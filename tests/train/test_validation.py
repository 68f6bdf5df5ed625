"""Looking at the quality of a run is exact on any number of ranks, and moves nothing of the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ecgfm import parts
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.prepare import Prepare
from ecgfm.data.validation import ValidationWindows
from ecgfm.databases.base import load_database
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.encoders.vit import ViT
from ecgfm.errors import CheckpointError, ConfigError, ShardError
from ecgfm.objectives.base import Losses, Objective, Progress, build_objective
from ecgfm.objectives.jepa import JEPA
from ecgfm.objectives.reconstruct import Reconstruct
from ecgfm.rng import derive
from ecgfm.shards.writer import Options, convert
from ecgfm.train import validation
from ecgfm.train.loop import train
from ecgfm.train.plan import open_shards, run_prepare, signal_contract
from ecgfm.train.run import Data, Run, check_same, identity
from ecgfm.train.validation import Validation
from tests.objectives.takers import encoder_for
from tests.parity.launch import launch_ranks

WINDOW = 1000
AT = Progress(step=7, schedule_steps=100)


@dataclass
class OneOf:
    """A rank whose means are its own part, so that the test can add the ranks up."""

    rank: int = 0
    size: int = 1

    @property
    def device(self) -> torch.device:
        """Where the rank computes."""
        return torch.device("cpu")

    def mean(self, values: Tensor) -> Tensor:
        """Return this rank's part."""
        return values.double()

    def agree(self, error: Exception | None, *, patient: bool = False) -> None:
        """Raise this rank's error."""
        if error:
            raise error


class Noise(ValidationWindows):
    """Windows of noise that need no shards."""

    def read(self, first: int, last: int, read_shard: Any = None) -> Batch:
        """Return noise that belongs to each number."""
        windows = [
            np.random.default_rng(number).integers(-900, 900, (12, WINDOW), dtype=np.int16)
            for number in range(first, last)
        ]
        return Batch(
            signal_BLT=torch.from_numpy(np.stack(windows)),
            microvolt_per_count_B=torch.ones(last - first),
            database_B=torch.zeros(last - first, dtype=torch.int64),
            labels_BC=torch.ones(last - first, len(self.labels.names)) if self.labels else None,
        )


def noise(number: int, names: tuple[str, ...] = ()) -> Noise:
    index: Any = np.arange(number)
    unused: Any = None
    labels: Any = SimpleNamespace(names=names) if names else None
    return Noise(
        shards=unused,
        window_samples=WINDOW,
        index_N=index,
        starts_N=index,
        records=number,
        patients=number,
        labels=labels,
    )


@pytest.fixture
def objective() -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_objective(
            JEPA.Config(), ViT.Config(width=16, patch_samples=25, depth=1, num_heads=2), WINDOW, 500.0
        )


def prepare() -> Prepare:
    return Prepare(torch.zeros(1, 12), torch.full((1, 12), 0.3), 5.0)


def look(objective: Objective, number: int, ranks: int) -> dict[str, float]:
    """Return the figures of all ranks together."""
    worlds: list[Any] = [OneOf(rank, ranks) for rank in range(ranks)]
    windows = noise(number, objective.labels(objective.config))
    found = [Validation(world, objective, prepare(), windows, autocast=False).figures(AT) for world in worlds]
    return {name: sum(part[name] for part in found) / ranks for name in found[0]}


# 70 windows are two chunks and a part of one; of four ranks one has nothing to do.
@pytest.mark.parametrize("number", [5, 70])
def test_the_figure_is_the_mean_over_windows_on_any_number_of_ranks(objective: Objective, number: int) -> None:
    total = torch.zeros((), dtype=torch.float64)
    for chunk, first in enumerate(range(0, number, validation.CHUNK)):
        rows = min(validation.CHUNK, number - first)
        draws = Draws(
            seed=derive(0, "validation masks"), step=chunk, rows=(0, rows), all_rows=rows, device=torch.device("cpu")
        )
        views = objective.views(prepare()(noise(number).read(first, first + rows)), draws)
        with torch.no_grad():
            total += rows * objective(views, AT)["loss"].double()
    for ranks in (1, 2, 3, 4):
        # A sum of doubles in another order.
        assert look(objective, number, ranks)["val_loss"] == pytest.approx(float(total / number), rel=1e-12)


def test_figures_of_databases_are_those_of_all_their_windows_on_any_number_of_ranks() -> None:
    encoder = UResNet.Config(width=8, patch_samples=10, widths=(4, 6), strides=(5, 2), kernel=5, norm="group")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = build_objective(Reconstruct.Config(), encoder, WINDOW, 500.0)
    ready = Prepare(torch.zeros(2, 12), torch.full((2, 12), 0.3), 5.0, databases=("ptb", "ludb"))

    class Mixed(Noise):
        def read(self, first: int, last: int, read_shard: Any = None) -> Batch:
            # The last chunk has one of the second database, the first none: a mean of means would be another.
            folder_B = torch.tensor([int(number > 60 or number in (33, 40)) for number in range(first, last)])
            return replace(super().read(first, last), database_B=folder_B)

    class Both(OneOf):
        parts: list[Tensor]

        def mean(self, values: Tensor) -> Tensor:
            """Return the mean over the ranks that were here so far."""
            self.parts.append(values)
            return torch.stack(self.parts).mean(dim=0)

    number, found = 67, []
    for ranks in (1, 2, 3):
        parts: list[Tensor] = []
        for rank in range(ranks):
            world: Any = Both(rank, ranks)
            world.parts = parts
            figures = Validation(world, objective, ready, Mixed(**vars(noise(number))), autocast=False).figures(AT)
        found.append(figures)
    assert not [name for name in found[0] if name.endswith("over")]
    share = 8 / number  # 33, 40 and 61 to 66
    for figures in found:
        # Sums of float32 means in another order.
        assert figures == pytest.approx(found[0], rel=1e-6)
        whole = share * figures["val_mse_all_mv2.ludb"] + (1 - share) * figures["val_mse_all_mv2.ptb"]
        assert whole == pytest.approx(figures["val_mse_all_mv2"], rel=1e-6)
        assert figures["val_mse_all_mv2.ludb"] != pytest.approx(figures["val_mse_all_mv2.ptb"], rel=1e-4)


class Restless(JEPA):
    """Has whatever could be moved by being looked at: dropout, and a queue that training moves."""

    queue: Tensor

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("queue", torch.zeros(4))

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Move the queue in training only, as objectives must."""
        if self.training:
            self.queue.add_(1)
        losses = super().forward(batch, at)
        return {**losses, "dropped": self.dropout(losses["loss"]), "nowhere": losses["loss"] * torch.nan}


def test_looking_moves_no_weight_buffer_mode_gradient_or_generator(objective: Objective) -> None:
    restless = Restless(JEPA.Config(), objective.encoder)
    restless.train()
    restless.predictor.eval()  # as somebody may have left it
    state = {name: tensor.clone() for name, tensor in restless.state_dict().items()}
    modes = [part.training for part in restless.modules()]
    generator = torch.get_rng_state()
    world: Any = OneOf()
    here = Validation(world, restless, prepare(), noise(40), autocast=False)
    first, again = here.figures(AT), here.figures(AT)
    assert first["val_loss"] == first["val_dropped"] == again["val_loss"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in restless.state_dict().items())
    assert [part.training for part in restless.modules()] == modes
    assert all(weight.grad is None for weight in restless.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", parts.names("ecgfm.objectives"))
def test_every_objective_lets_itself_be_looked_at_without_moving(name: str) -> None:
    settings = parts.load("ecgfm.objectives", name, Objective).Config()  # type: ignore[type-abstract]
    with torch.random.fork_rng():
        objective = build_objective(settings, encoder_for(settings, WINDOW, 500.0), WINDOW, 500.0)
    state = {place: tensor.clone() for place, tensor in objective.state_dict().items()}
    assert "val_loss" in look(objective, 8, 1)
    assert all(torch.equal(tensor, state[place]) for place, tensor in objective.state_dict().items())


def test_the_figure_follows_the_weights(objective: Objective) -> None:
    world: Any = OneOf()
    here = Validation(world, objective, prepare(), noise(8), autocast=False)
    before = here.figures(AT)["val_loss"]
    with torch.no_grad():
        for weight in objective.encoder.parameters():
            weight.mul_(1.5)
    assert here.figures(AT)["val_loss"] != before


def test_a_shard_from_afar_is_read_once_for_all_chunks_of_it(objective: Objective) -> None:
    class Streamed(Noise):
        def read(self, first: int, last: int, read_shard: Any = None) -> Batch:
            assert bytes(read_shard(first // 64)) == b"shard"
            return super().read(first, last)

    asked: list[int] = []

    def read_shard(number: int) -> memoryview:
        asked.append(number)
        return memoryview(b"shard")

    world: Any = OneOf()
    Validation(world, objective, prepare(), Streamed(**vars(noise(100))), autocast=False, read_shard=read_shard)
    assert asked == [0, 1]  # of four chunks


def test_a_record_that_cannot_be_read_is_told_to_all_ranks(objective: Objective) -> None:
    class Broken(Noise):
        def read(self, first: int, last: int, read_shard: Any = None) -> Batch:
            raise ShardError("shard 3 is cut")

    told: list[Exception | None] = []

    class Listening(OneOf):
        def agree(self, error: Exception | None, *, patient: bool = False) -> None:
            told.append(error)
            raise CheckpointError("told")

    world: Any = Listening()
    with pytest.raises(CheckpointError, match="told"):
        Validation(world, objective, prepare(), Broken(**vars(noise(4))), autocast=False)
    assert isinstance(told[0], ShardError)


@pytest.mark.parametrize(
    "settings", [{"validation_share": 1.0}, {"validation_share": -0.1}, {"validation_windows": -1}]
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--data\.validation-share must be 0 to below 1"):
        Data(**settings)
    with pytest.raises(ConfigError, match="--validate-every must be at least 1"):
        Run(encoder=ViT.Config(), objective=JEPA.Config(), validate_every=0)


@pytest.fixture
def planned(training_shards: Path, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that gives a dry run of 30 records."""

    def plan(**settings: Any) -> Run:
        data = Data(shards=(str(training_shards),), batch_size=8, **settings)
        encoder = ViT.Config(width=16, patch_samples=100, depth=1, num_heads=2)
        objective = JEPA.Config(min_block=4)
        return Run(encoder=encoder, objective=objective, data=data, out=tmp_path / "run", dry_run=True)

    return plan


def test_a_dry_run_says_who_is_held_out_and_refuses_what_cannot_be(
    planned: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    train(planned(validation_share=0.3, validation_windows=6))
    said = capsys.readouterr().out
    assert "data: georgia 22 records" in said and "left out: 8 records" in said
    assert "validation: 6 windows of 8 records of 8 patients, every 1,000 steps" in said
    train(planned())
    assert "validation:" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds out none of them; give a larger share"):
        train(planned(validation_share=0.001))
    # Records are 10.1 to 13 s: some of the trained ones are long enough, and none of these held out.
    with pytest.raises(ConfigError, match=r"are shorter than --data\.window-s 13 or have"):
        train(planned(validation_share=0.3, window_s=13.0))


def test_a_run_scaled_by_record_publishes_that(planned: Callable[..., Run]) -> None:
    run = planned(scale="record")
    shards = open_shards(run)
    contract = signal_contract(run, shards)
    assert contract.scale == "record" and run_prepare(run, shards, contract).per_window
    fixed = planned()
    assert signal_contract(fixed, shards).scale == "fixed"
    assert not run_prepare(fixed, shards, contract).per_window
    with pytest.raises(ConfigError, match=r"data\.scale"):
        check_same(identity(fixed), identity(run), run)


def test_where_and_how_often_is_looked_may_change_and_who_is_held_out_may_not(planned: Callable[..., Run]) -> None:
    before = identity(planned(validation_share=0.3))
    check_same(before, identity(planned(validation_share=0.3, validation_windows=3)), planned())
    other = replace(planned(validation_share=0.3), validate_every=7)
    check_same(before, identity(other), other)
    with pytest.raises(ConfigError, match=r"data\.validation_share was 0\.3, is now 0\.2"):
        check_same(before, identity(planned(validation_share=0.2)), planned())


ENGINES = {
    "float32": "--engine.precision float32 --engine.accumulation 2",
    "autocast": "--engine.precision bfloat16 --engine.zero-stage 2",
    "masters": "--engine.precision bfloat16-weights --engine.zero-stage 1",
    "stage-3": "--engine.precision float32 --engine.zero-stage 3",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], write_challenge: Callable[..., Path]) -> Path:
    """Return a folder of runs on two ranks, each engine once with validation and probe and once without."""
    folder = tmp_path_factory.mktemp("quality")
    rng = np.random.default_rng(1)
    for number in range(26):
        loud = number % 2
        signal = rng.normal(0, 90 + 60 * loud, (12, 5000)).cumsum(axis=1) % (300 + 300 * loud)
        code = "164889003" if loud else "426783006"
        comments = ("# Age: 50", "# Sex: Male", f"# Dx: {code}")
        counts = np.rint(signal).astype(np.int16)
        write_challenge(folder / "archive", f"E{number + 501:05d}", counts, comments=comments)
    convert(load_database("georgia"), folder / "archive", folder / "probe", Options(records_per_shard=8))
    look = f"--probe.shards {folder / 'probe'} --probe.label snomed:164889003 --probe.every 4 --validate-every 2"
    jobs = []
    for name, engine in ENGINES.items():
        words = [*tiny, *engine.split(), "--data.validation-share", "0.3", "--steps", "5"]
        without = [*words, "--data.validation-windows", "0", "--out", str(folder / f"{name}-without")]
        jobs += [[*words, *look.split(), "--out", str(folder / name)], without]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    launch_ranks(2, ["tests/parity/worker.py", str(folder / "jobs.json")], folder / "logs")
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_has_the_same_bits_with_validation_and_probe_as_without(runs: Path, name: str) -> None:
    with_look, without = metrics(runs / name), metrics(runs / f"{name}-without")
    assert [line["step"] for line in with_look] == [1, 2, 3, 4, 5]
    for one, other in zip(with_look, without, strict=True):
        for figure in ("loss", "lr", "target_std", "gradient_norm"):
            assert one.get(figure) == other.get(figure), figure
    files = [
        run / "checkpoints" / "step-00000005" / "engine.safetensors" for run in (runs / name, runs / f"{name}-without")
    ]
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[place]) for place, tensor in first.items())


@pytest.mark.parametrize("name", ENGINES)
def test_figures_come_at_their_steps_and_are_those_of_any_engine(runs: Path, name: str) -> None:
    lines = metrics(runs / name)
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4, 5]
    assert [line["step"] for line in lines if "probe_auc" in line] == [4, 5]
    assert not any("val_loss" in line or "probe_auc" in line for line in metrics(runs / f"{name}-without"))
    reference = metrics(runs / "float32")
    # Sixteen bits in the matrices; another order of sums in float32.
    most = 2e-2 if name in ("autocast", "masters") else 1e-5
    for step in (2, 4, 5):
        assert lines[step - 1]["val_loss"] == pytest.approx(reference[step - 1]["val_loss"], rel=most)
        # The records are alike, and so is the loss of what is trained.
        assert lines[step - 1]["val_loss"] == pytest.approx(lines[step - 1]["loss"], rel=0.1)
    for line in lines[3:5]:
        assert 0 <= line["probe_auc_low"] <= line["probe_auc"] <= line["probe_auc_high"] <= 1
        assert line["probe_auc"] > 0.9  # loud and quiet, which random weights tell apart
