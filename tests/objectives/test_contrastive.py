"""SimCLR, MoCo and CMSC against slow versions written from the papers, and two ranks against one.

`python test_contrastive.py RANK FOLDER` is one of the ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from ecgfm.data.augment.base import Augment
from ecgfm.data.augment.gaussian_noise import GaussianNoise
from ecgfm.data.batch import Batch, Draws
from ecgfm.encoders.resnet1d import ResNet1d
from ecgfm.encoders.ts_cnn import TSCNN
from ecgfm.encoders.vit import ViT
from ecgfm.errors import ConfigError
from ecgfm.objectives.base import Objective, Progress, build_objective, move_averages_
from ecgfm.objectives.cmsc import CMSC
from ecgfm.objectives.moco import MoCo
from ecgfm.objectives.moco_v3 import MoCoV3
from ecgfm.objectives.simclr import SimCLR
from ecgfm.train.flops import window_flops
from tests.two_ranks import one_of_two, run_two_ranks

SAMPLES, RATE_HZ, ROWS = 400, 500.0, 8
SETTINGS: dict[str, Objective.Config] = {
    "simclr": SimCLR.Config(projector=(12, 6)),
    "cmsc": CMSC.Config(projector=(6,), projector_norm="batch"),
    "cmsc_patient": CMSC.Config(projector=(6,), projector_norm="batch", positives="patient"),
    "moco": MoCo.Config(projector=(12, 6), queue=12, momentum=0.9),
    "moco_v3": MoCoV3.Config(projector=(12, 12, 6), predictor=(12, 6)),
}
VIT = ViT.Config(width=16, num_leads=12, patch_samples=25, depth=1, num_heads=2)
PATIENTS = (0, 1, 1, 1, 3, 0, 0, 4)
"""Whose the rows are: of two ranks with two rows each, the second has more pairs than the first."""
# A network with batch norm, whose batch is that of all ranks.
RESNET = ResNet1d.Config(
    width=8, patch_samples=4, layers=(1, 1, 1), doubles=False, kernels=(3, 3), stem_stride=1, stem_pool=False
)


def build(settings: Objective.Config, encoder: Any = VIT, device: str = "cpu") -> Any:
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return build_objective(settings, encoder, SAMPLES, RATE_HZ)


def views(objective: Objective, rows: tuple[int, int] = (0, ROWS), step: int = 0) -> Batch:
    first, last = rows
    batch = Batch(
        signal_BLT=torch.randn(ROWS, 12, SAMPLES, generator=torch.Generator().manual_seed(step))[first:last],
        microvolt_per_count_B=torch.ones(last - first),
        database_B=torch.zeros(last - first, dtype=torch.int64),
        rate_hz=RATE_HZ,
        mean_mv_BL=torch.zeros(last - first, 12),
        std_mv_BL=torch.ones(last - first, 12),
        patient_B=torch.tensor(PATIENTS[first:last]) if objective.asks_patients(objective.config) else None,
    )
    return objective.views(batch, Draws(seed=0, step=step, rows=rows, all_rows=ROWS, device=torch.device("cpu")))


def at(step: int = 0, *, measure: bool = False) -> Progress:
    return Progress(step=step, schedule_steps=100, measure=measure)


def cosine(one_E: Tensor, other_E: Tensor) -> Tensor:
    return (one_E * other_E).sum() / ((one_E**2).sum() * (other_E**2).sum()).sqrt()


def log_share(query_E: Tensor, candidates: list[Tensor], right: int, tau: float) -> Tensor:
    """Return -log of the softmax's share of the right candidate."""
    logits = [cosine(query_E, candidate_E) / tau for candidate_E in candidates]
    return -(logits[right].exp() / torch.stack(logits).exp().sum()).log()


def slow_simclr(objective: Any, batch: Batch) -> Tensor:
    """Return the sum over all 2N ordered pairs of equation 1, over 2N."""
    embedding = [heads(objective, view) for view in views_of(batch)]
    terms = []
    for i in range(ROWS):
        for v in (0, 1):
            others = [(j, w) for w in (0, 1) for j in range(ROWS) if (j, w) != (i, v)]
            candidates = [embedding[w][j] for j, w in others]
            terms.append(log_share(embedding[v][i], candidates, others.index((i, 1 - v)), 0.1))
    return torch.stack(terms).mean()


def slow_cmsc(objective: Any, batch: Batch) -> Tensor:
    """Return equations 1, 2 and 4, whose batch has no two windows of one patient."""
    # Both halves go through the network together, and so through its batch norm.
    both = heads(objective, torch.cat(views_of(batch)))
    first, second = both[:ROWS], both[ROWS:]
    there = [log_share(first[i], list(second), i, 0.1) for i in range(ROWS)]
    back = [log_share(second[i], list(first), i, 0.1) for i in range(ROWS)]
    return torch.stack(there + back).mean()


def slow_cmsc_patient(objective: Any, batch: Batch) -> Tensor:
    """Return half of the sum of equations 2 and 3 in both directions."""
    both = heads(objective, torch.cat(views_of(batch)))
    halves = both[:ROWS], both[ROWS:]
    pairs = [(i, j) for i in range(ROWS) for j in range(ROWS) if i != j and PATIENTS[i] == PATIENTS[j]]
    assert len(pairs) == 12
    total = torch.zeros((), dtype=torch.float64)
    for one, other in (halves, halves[::-1]):
        for indices in ([(i, i) for i in range(ROWS)], pairs):
            total = total + torch.stack([log_share(one[i], list(other), j, 0.1) for i, j in indices]).mean()
    return total / 2


def slow_moco(objective: Any, batch: Batch) -> Tensor:
    """Return equation 1 of MoCo, in which the queue's keys are negatives."""
    query_view, key_view = views_of(batch)
    query = heads(objective, query_view)
    key_tokens = objective.key_encoder(key_view)
    key = objective.key_projector(objective.key_encoder.pool(key_tokens)).double().detach()
    queue = list(objective.queue_KE.double())
    return torch.stack([log_share(query[i], [key[i], *queue], 0, 0.07) for i in range(ROWS)]).mean()


def slow_moco_v3(objective: Any, batch: Batch) -> Tensor:
    """Return algorithm 1: ctr(q1, k2) + ctr(q2, k1)."""
    queries, keys = [], []
    for view in views_of(batch):
        features = objective.encoder.pool(objective.encoder(view))
        queries.append(objective.predictor(objective.projector(features)).double())
        features = objective.key_encoder.pool(objective.key_encoder(view))
        keys.append(objective.key_projector(features).double().detach())
    first = torch.stack([log_share(queries[0][i], list(keys[1]), i, 0.2) for i in range(ROWS)]).mean()
    second = torch.stack([log_share(queries[1][i], list(keys[0]), i, 0.2) for i in range(ROWS)]).mean()
    return 2 * 0.2 * (first + second)


def views_of(batch: Batch) -> list[Tensor]:
    assert batch.views_BVLT is not None
    return [batch.views_BVLT[:, number] for number in (0, 1)]


def heads(objective: Any, view: Tensor) -> Tensor:
    out: Tensor = objective.projector(objective.encoder.pool(objective.encoder(view)))
    return out.double()


SLOW = {
    "simclr": slow_simclr,
    "cmsc": slow_cmsc,
    "cmsc_patient": slow_cmsc_patient,
    "moco": slow_moco,
    "moco_v3": slow_moco_v3,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_those_that_the_paper_writes(name: str) -> None:
    objective = build(SETTINGS[name])
    batch = views(objective)
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    found, wanted = objective(batch, at())["loss"], SLOW[name](objective, batch)
    # Float32 through a transformer and heads; temperatures multiply its rounding by 14 at most.
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    fast, slow = torch.autograd.grad(found, weights), torch.autograd.grad(wanted, weights)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_views_that_are_alike_find_each_other(name: str) -> None:
    settings: Any = SETTINGS[name]
    still = Augment(transforms=(GaussianNoise.Config(sd_mv=0.001),))
    objective = build(type(settings)(**{**vars(settings), "augment": still}))
    batch = views(objective)
    if name.startswith("cmsc"):
        assert batch.views_BVLT is not None
        batch.views_BVLT[:, 1] = batch.views_BVLT[:, 0]
    figures = objective(batch, at(measure=True))
    if name != "moco_v3":  # whose predictor has learnt nothing yet
        assert figures["found_first"] == 1 and figures["alignment"] < 0.01
    assert figures["feature_rank"] > 2 and figures["feature_std"] > 0 and figures["uniformity"] < 0


def found(name: str, rank: int, ranks: int) -> dict[str, Tensor]:
    """Return what a rank finds in two steps of two micro-batches: losses, gradients, buffers."""
    objective = build(SETTINGS[name], RESNET)
    result, rows = {}, ROWS // 2 // ranks
    for step in (0, 1):
        for micro in (0, 1):
            first = micro * ROWS // 2 + rank * rows
            loss = objective(views(objective, (first, first + rows), step), at(step))["loss"]
            torch.autograd.backward(loss / 2)
            result[f"loss {step} {micro}"] = loss.detach()
        with torch.no_grad():  # as an engine does that averages gradients
            for weight in objective.parameters():
                if weight.grad is not None:
                    if ranks > 1:
                        dist.all_reduce(weight.grad)
                    weight.sub_(weight.grad / ranks * 0.1)
                    weight.grad = None
        move_averages_(objective, at(step))
        objective.after_step(at(step))
    result |= {name: weight.detach().clone() for name, weight in objective.named_parameters()}
    return result | {name: buffer.clone() for name, buffer in objective.named_buffers()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """Return what each of two ranks found, by objective."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two_ranks(__file__, folder)
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)] for name in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_train_as_one_with_all_rows(name: str, ranks: dict[str, list[dict[str, Tensor]]]) -> None:
    alone, (first, second) = found(name, 0, 1), ranks[name]
    assert first.pop("operations") > 0 and second.pop("operations") > 0
    assert alone.keys() == first.keys() == second.keys()
    for key, wanted in alone.items():
        if key.startswith("loss"):
            # Sums over ranks in another order, through batch norms of few rows.
            torch.testing.assert_close((first[key] + second[key]) / 2, wanted, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], wanted, atol=1e-3, rtol=1e-3)


def test_a_batch_of_strangers_learns_what_it_learns_without_patients() -> None:
    plain, asking = build(SETTINGS["cmsc"]), build(SETTINGS["cmsc_patient"])
    batch = views(asking)
    strangers, alike = replace(batch, patient_B=torch.arange(ROWS)), replace(batch, patient_B=torch.zeros(ROWS).long())
    wanted, found = plain(views(plain), at()), asking(strangers, at())
    assert found["loss"] == wanted["loss"] and found["same_patient"] == 0
    assert "same_patient" not in wanted
    for one, other in zip(
        torch.autograd.grad(wanted["loss"], list(plain.parameters())),
        torch.autograd.grad(found["loss"], list(asking.parameters())),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert asking(batch, at())["same_patient"] == 6 / 8 and asking(alike, at())["same_patient"] == 1


def test_the_queue_holds_the_newest_keys_in_the_windows_order() -> None:
    objective = build(MoCo.Config(projector=(6,), queue=12))
    begin_KE = objective.queue_KE.clone()
    keys = []
    for step, parts in enumerate([[(0, 4), (4, 8)], [(0, 8)]]):
        for rows in parts:
            batch = views(objective, rows, step)
            objective(batch, at(step))
            key = objective.key_projector(objective.key_encoder.pool(objective.key_encoder(views_of(batch)[1])))
            keys.append(torch.nn.functional.normalize(key, dim=1).detach())
            if not step:
                assert torch.equal(objective.queue_KE, begin_KE)
        objective.after_step(at(step))
        if not step:
            assert objective.place == 8 and torch.equal(objective.queue_KE[8:], begin_KE[8:])
    key_NE = torch.cat(keys)
    assert objective.place == 4
    # 16 keys went into 12 places: the last four stand where the first four did.
    torch.testing.assert_close(objective.queue_KE, torch.cat([key_NE[12:], key_NE[4:12]]))


def test_a_step_of_more_keys_than_the_queue_leaves_its_last_ones() -> None:
    objective, small = (build(MoCo.Config(projector=(), queue=size)) for size in (ROWS, 3))
    for one in (objective, small):
        one(views(one), at())
        one.after_step(at())
    torch.testing.assert_close(small.queue_KE, objective.queue_KE[-3:])
    assert small.place == 0


def test_a_look_or_a_dropped_step_leaves_no_keys() -> None:
    objective, plain = (build(MoCo.Config(projector=(6,), queue=12)) for _ in range(2))
    objective(views(objective, step=5), at(0))  # dropped: the engine calls no after_step
    for one in (objective, plain):
        one(views(one, step=1), at(1))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.eval()
    with torch.no_grad():
        objective(views(objective, step=7), at(1))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    for one in (objective, plain):
        one.after_step(at(1))
    assert torch.equal(objective.queue_KE, plain.queue_KE)


def test_one_view_may_be_the_window_itself() -> None:
    objective = build(SimCLR.Config(augmented="one"))
    batch = views(objective)
    assert batch.views_BVLT is not None
    assert torch.equal(batch.views_BVLT[:, 1], batch.signal_BLT)
    assert not torch.equal(batch.views_BVLT[:, 0], batch.signal_BLT)


def test_segments_are_the_halves_of_a_window_each_with_leads_of_its_own_hidden() -> None:
    plain, masked = views(build(CMSC.Config(augment=Augment()))), views(build(CMSC.Config()))
    assert plain.views_BVLT is not None and masked.views_BVLT is not None
    assert torch.equal(torch.cat(list(plain.views_BVLT.unbind(1)), dim=2), plain.signal_BLT)
    hidden_BVL = (masked.views_BVLT == 0).all(dim=3)
    assert not torch.equal(hidden_BVL[:, 0], hidden_BVL[:, 1]) and 0.3 < hidden_BVL.float().mean() < 0.7
    assert torch.equal(masked.views_BVLT[~hidden_BVL], plain.views_BVLT[~hidden_BVL])


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (SimCLR, {"temperature": 0.0}, "temperature"),
        (SimCLR, {"projector": (16, 0)}, "projector"),
        (CMSC, {"temperature": float("inf")}, "temperature"),
        (MoCo, {"queue": 0}, "queue"),
        (MoCo, {"momentum": 1.5}, "momentum"),
        (MoCoV3, {"momentum": (0.9, 1.5)}, "momentum"),
        (MoCoV3, {"predictor": (64, 128)}, "predictor"),
        (MoCoV3, {"projector": (), "predictor": ()}, "empty"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind.Config(**settings)


def test_windows_whose_halves_are_not_filled_are_refused_with_one_that_is() -> None:
    with pytest.raises(ConfigError, match=r"window-s 9$"):
        CMSC.check(CMSC.Config(), TSCNN.Config(), 4999, RATE_HZ)
    CMSC.check(CMSC.Config(), TSCNN.Config(), 4750 + 250, RATE_HZ)


@pytest.mark.parametrize("name", ["simclr", "moco", "moco_v3", "cmsc"])
def test_augmentations_that_the_window_cannot_take_are_refused_before_anything_is_built(name: str) -> None:
    settings: Any = SETTINGS[name]
    turned = type(settings)(**{**vars(settings), "augment": Augment(use=("three-kg",))})
    with pytest.raises(ConfigError, match="12"):
        type(build(SETTINGS[name])).check(
            turned, ViT.Config(width=16, num_leads=8, patch_samples=25, num_heads=2), 400, 500.0
        )


if __name__ == "__main__":
    with one_of_two() as (own, folder):
        for name, settings in SETTINGS.items():
            mine = found(name, own, 2)
            on_meta = build(settings, RESNET, "meta")
            operations = window_flops(on_meta, num_leads=12, window_samples=SAMPLES, rate_hz=RATE_HZ)
            save_file({**mine, "operations": torch.tensor(operations)}, folder / f"{name}-{own}.safetensors")
