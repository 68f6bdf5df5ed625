"""What an objective gives a picture is what it sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ecgfm import parts
from ecgfm.data.augment.base import Augment, Augmenter
from ecgfm.data.augment.baseline_wander import BaselineWander
from ecgfm.data.augment.gaussian_noise import GaussianNoise
from ecgfm.data.augment.random_erasing import RandomErasing
from ecgfm.data.batch import Batch, Draws
from ecgfm.data.panel import Panel
from ecgfm.encoders.base import Encoder
from ecgfm.encoders.vit_leadtime import LeadTimeViT
from ecgfm.nn.tokens import patches, token_samples, unpatch
from ecgfm.objectives._views import view_of
from ecgfm.objectives.advmask import AdvMask
from ecgfm.objectives.base import Objective, build_objective
from ecgfm.objectives.byol import BYOL
from ecgfm.objectives.cmsc import CMSC
from ecgfm.objectives.cpc import CPC
from ecgfm.objectives.dino import DINO
from ecgfm.objectives.jepa import JEPA
from ecgfm.objectives.mae import MAE
from ecgfm.objectives.reconstruct import Reconstruct
from ecgfm.objectives.simclr import SimCLR
from ecgfm.objectives.supervised import Supervised
from tests.objectives.takers import ENCODERS, encoder_for
from tools import pairs

ROWS, SAMPLES, RATE_HZ = 3, 1000, 500.0
VIT, _, S4_CAUSAL = ENCODERS
LEADTIME = LeadTimeViT.Config(width=16, num_leads=12, patch_samples=50, depth=1, num_heads=2)
NOTHING = Augment()


def build(settings: Objective.Config, encoder: Encoder.Config | None = None) -> Objective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        chosen = encoder or encoder_for(settings, SAMPLES, RATE_HZ)
        return build_objective(settings, chosen, SAMPLES, RATE_HZ).eval()


def batch(labels: int = 0) -> Batch:
    random = torch.Generator().manual_seed(0)
    return Batch(
        signal_BLT=torch.randn(ROWS, 12, SAMPLES, generator=random),
        microvolt_per_count_B=torch.ones(ROWS),
        database_B=torch.zeros(ROWS, dtype=torch.int64),
        labels_BC=torch.arange(ROWS * labels).remainder(2).float().view(ROWS, -1) if labels else None,
        patient_B=torch.arange(ROWS),
        rate_hz=RATE_HZ,
        mean_mv_BL=torch.zeros(ROWS, 12),
        std_mv_BL=torch.ones(ROWS, 12),
    )


def draws() -> Draws:
    return Draws(seed=3, step=5, rows=(0, ROWS), all_rows=8, device=torch.device("cpu"))


def picture(objective: Objective) -> tuple[Panel, ...]:
    return objective.picture(batch(len(objective.labels(objective.config))), draws())


@pytest.mark.parametrize("name", parts.names("ecgfm.objectives"))
def test_a_picture_is_of_the_batch_and_its_views(name: str) -> None:
    objective = build(pairs.objectives()[name])
    panels = picture(objective)
    seen = objective.views(batch(len(objective.labels(objective.config))), draws())
    for views in (seen.views_BVLT, seen.short_BSLT):
        if views is not None and name != "advmask":  # which shows them masked
            drawn = [panel.signal_BLT for panel in panels if panel.signal_BLT.shape[2] == views.shape[3]]
            assert all(any(torch.equal(view, signal) for signal in drawn) for view in views.unbind(1))
    assert torch.equal(panels[0].signal_BLT, batch().signal_BLT)
    assert len({panel.title for panel in panels}) == len(panels)
    for panel in panels:
        rows, leads, samples = panel.signal_BLT.shape
        assert (rows, leads) == (ROWS, 12) and not panel.signal_BLT.requires_grad
        start_B = torch.zeros(ROWS) if panel.start_B is None else panel.start_B
        assert (start_B >= 0).all() and (start_B + samples <= SAMPLES).all()
        assert len(panel.notes) in (0, ROWS)
        for inside in panel.regions.values():
            assert inside.shape in ((ROWS, 1, samples), (ROWS, 12, samples))
            assert inside.min() >= 0 and inside.max() <= 1
        if panel.guess_BLT is not None:
            assert panel.guess_BLT.shape == panel.signal_BLT.shape and not panel.guess_BLT.requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        BYOL.Config(hidden=8, projection=4, augment=NOTHING),
        DINO.Config(prototypes=8, head_hidden=8, head_bottleneck=4, num_short=3, augment=NOTHING),
        CMSC.Config(augment=NOTHING),
    ],
)
def test_crops_stand_where_they_were_cut(settings: Objective.Config) -> None:
    window, *views = picture(build(settings))
    assert len(views) == (5 if isinstance(settings, DINO.Config) else 2)
    for panel in views:
        for row, signal_LT in enumerate(panel.signal_BLT):
            start = 0 if panel.start_B is None else int(panel.start_B[row])
            assert torch.equal(signal_LT, window.signal_BLT[row, :, start : start + signal_LT.shape[1]])


@pytest.mark.parametrize("encoder", [VIT, LEADTIME])
@pytest.mark.parametrize("settings", [JEPA.Config(mask_ratio=(0.5, 0.5), min_block=2), MAE.Config(mask_ratio=0.5)])
def test_what_is_marked_as_hidden_is_what_the_encoder_does_not_see(
    settings: Objective.Config, encoder: Encoder.Config
) -> None:
    objective = build(settings, encoder)
    (panel,) = picture(objective)
    (hidden,) = panel.regions.values()
    assert hidden.float().mean() == 0.5 and panel.masks
    keep_BK = objective.views(batch(), draws()).keep_BK
    other = torch.where(hidden, 9.0, batch().signal_BLT)
    with torch.no_grad():
        seen, still = (objective.encoder(signal, keep_BK) for signal in (batch().signal_BLT, other))
        changed = objective.encoder(torch.where(hidden, batch().signal_BLT, 9.0), keep_BK)
    assert torch.equal(seen, still) and not torch.equal(seen, changed)


@pytest.mark.parametrize("encoder", [VIT, LEADTIME])
@pytest.mark.parametrize("norm_target", [True, False])
def test_a_perfect_guess_lies_on_the_signal(
    encoder: Encoder.Config, norm_target: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = build(MAE.Config(norm_target=norm_target), encoder)
    assert isinstance(objective, MAE)

    def right(seen: Batch) -> tuple[None, Tensor]:
        """Return what the loss compares with, patch by patch."""
        assert seen.hide_BM is not None
        found = []
        for signal_LT, hide_M in zip(seen.signal_BLT, seen.hide_BM, strict=True):
            for token in hide_M.tolist():
                steps, patch = SAMPLES // encoder.patch_samples, encoder.patch_samples
                step = token % steps
                piece = signal_LT[:, step * patch : (step + 1) * patch]
                values = (piece[token // steps] if encoder.leads_apart else piece.flatten()).double()
                if norm_target:
                    values = (values - values.mean()) / (values.var() + 1e-6).sqrt()
                found.append(values.float())
        return None, torch.stack(found).view(*seen.hide_BM.shape, -1)

    monkeypatch.setattr(objective, "_reconstruct", right)
    (panel,) = picture(objective)
    assert panel.guess_BLT is not None
    (hidden,) = panel.regions.values()
    hidden_BLT = hidden.expand_as(panel.signal_BLT)
    assert torch.equal(panel.guess_BLT.isfinite(), hidden_BLT)
    # Float32: a mean taken off and put back.
    torch.testing.assert_close(panel.guess_BLT[hidden_BLT], panel.signal_BLT[hidden_BLT], rtol=0, atol=1e-5)
    assert all("own mean" in note for note in panel.notes) == bool(norm_target) or not panel.notes


def test_patches_are_put_back_and_tokens_are_their_samples() -> None:
    signal_BLT = batch().signal_BLT
    for apart in (False, True):
        cut = patches(signal_BLT, 50, leads_apart=apart)
        assert torch.equal(unpatch(cut, 12, leads_apart=apart), signal_BLT)
    inside = token_samples(torch.tensor([[0, 5], [3, 3]]), 10, 30, leads=2)
    wanted = torch.zeros(2, 2, 30, dtype=torch.bool)
    wanted[0, 0, :10] = wanted[0, 1, 20:] = wanted[1, 1, :10] = True
    assert torch.equal(inside, wanted)


@pytest.mark.parametrize("error", ["masked", "all"])
def test_a_reconstruction_is_of_what_was_set_to_zero(error: str) -> None:
    objective = build(Reconstruct.Config(error=error))  # type: ignore[arg-type]
    (panel,) = picture(objective)
    hidden = panel.regions["set to zero"]
    assert panel.guess_BLT is not None
    wanted = hidden.expand_as(panel.signal_BLT) if error == "masked" else torch.ones_like(panel.signal_BLT).bool()
    assert torch.equal(panel.guess_BLT.isfinite(), wanted)
    # Nothing of what is hidden reaches the guess.
    other = replace(batch(), signal_BLT=torch.where(hidden, 9.0, batch().signal_BLT))
    (again,) = objective.picture(other, draws())
    torch.testing.assert_close(again.guess_BLT, panel.guess_BLT, rtol=0, atol=0, equal_nan=True)


def test_masked_views_are_the_views_but_for_what_is_hidden() -> None:
    objective = build(AdvMask.Config(projector=(8, 4), masks=3, masker_widths=(4, 4)))
    masks, first, second = picture(objective)
    assert list(masks.regions) == ["mask 1", "mask 2", "mask 3"] and masks.masks
    emitted_BNT = torch.cat(list(masks.regions.values()), dim=1)
    drawn = []
    for view in (first, second):
        hidden = view.regions["hidden"]
        torch.testing.assert_close(view.signal_BLT, batch().signal_BLT * (1 - hidden), rtol=1e-6, atol=1e-6)
        # Of each window one of the masks, but for the last bit, and another one in the other view.
        distance_BN, which_B = (hidden - emitted_BNT).abs().amax(dim=2).sort(dim=1)
        assert (distance_BN[:, 0] < 1e-6).all() and (distance_BN[:, 1] > 1e-3).all()
        drawn.append(which_B[:, 0])
    assert (drawn[0] != drawn[1]).all()


def test_a_guess_of_cpc_is_told_from_the_steps_drawn_for_it() -> None:
    objective = build(CPC.Config(ahead=(2, 5), negatives=4), S4_CAUSAL)
    window, near = picture(objective)
    patch = S4_CAUSAL.patch_samples
    marked = {name: inside[:, 0, ::patch] for name, inside in window.regions.items()}
    last = int(marked["context"][0].sum()) - 1
    assert marked["context"][0, : last + 1].all()
    assert marked["guessed step"][0].nonzero().flatten().tolist() == [last + 2, last + 5]
    others = marked["steps it is told from"]
    assert (others.sum(dim=1) <= 4).all() and (others.sum(dim=1) >= 1).all() and not others[:, last + 2].any()
    # Evenly from all steps but the guessed one, in the order of the numbers drawn: those of guess `last`.
    uniform = draws().many("negatives", (SAMPLES // patch - 2) * 4).view(ROWS, -1, 4)[:, last]
    chosen = (uniform * (SAMPLES // patch - 1)).long()
    for row, steps in enumerate(chosen.tolist()):
        assert set(others[row].nonzero().flatten().tolist()) == {step + (step >= last + 2) for step in steps}
    assert near.alone and near.start_B is not None
    first = int(near.start_B[0])
    assert torch.equal(near.signal_BLT, window.signal_BLT[:, :, first : first + near.signal_BLT.shape[2]])
    assert near.regions["guessed step"].sum() == window.regions["guessed step"].sum()


def test_notes_say_what_was_done_to_each_window() -> None:
    augment = Augment(
        transforms=(BaselineWander.Config(p=0.5), GaussianNoise.Config(p=0.5), RandomErasing.Config()), pick=2
    )
    augmenter, whole = Augmenter(augment), batch()
    for number in range(4):
        view = view_of(whole, draws(), number)
        alone = {
            parts.kind_of(type(transform)): transform(whole.signal_BLT, here, rows) != whole.signal_BLT
            for transform, rows, here in augmenter._steps(view)
        }
        for row, note in enumerate(augmenter.names(view)):
            done = [name for name, changed in alone.items() if changed[row].any()]
            assert note == (", ".join(done) or "unchanged")


def test_a_view_that_is_the_window_itself_is_called_unchanged() -> None:
    _, first, second = picture(build(SimCLR.Config(augmented="one", projector=(8, 4))))
    assert set(first.notes) == {"three_kg"} and set(second.notes) == {"unchanged"}


def test_labels_are_told_with_how_many_are_known() -> None:
    objective = build(Supervised.Config(labels=("a:x", "a:y"), hidden=None))
    whole = replace(batch(), labels_BC=torch.tensor([[1.0, 1.0], [0.0, torch.nan], [torch.nan, torch.nan]]))
    (panel,) = objective.picture(whole, draws())
    assert panel.notes == ("labels a:x, a:y; 2 of 2 known", "labels none; 1 of 2 known", "labels none; 0 of 2 known")
