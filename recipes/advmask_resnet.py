"""SimCLR with adversarial masks on a ResNet-18 (Bo et al. 2022, https://arxiv.org/abs/2211.07889).

    deepspeed recipes/advmask_resnet.py --data.shards out/georgia out/cpsc-2018 --out runs/advmask

The defaults have a small masker, and 128 windows a step. `--preset laptop` is a whole run of minutes on a CPU,
`--preset bo` the paper's run on a GPU, and `--preset bo-3kg` its best one, in which 3KG changes the views too.

Paper says: ResNet-18 over time, 512 features, a head to 128; a U-Net as the adversary; temperature 0.1; both networks
by Adam at 1e-4, in turns; batch 32 accumulated 4 times, mixed precision, early stopping; PhysioNet/CinC 2021, 88,000
records; a linear probe tells four rhythms of Chapman-Shaoxing with an accuracy of 85.1 %, with 3KG 88.8 %.
Code says: head 512-2048-128, U-Net of 512, 1024, 1536 and 2048, soft binarisation at 50, penalty 0.1 or 0.5, one of
the two views left as it is; scaling to 0..1.
Ours: both views masked and both networks moved in one pass (see ecgfm/objectives/advmask.py); 128 windows in one
micro-batch, so that a view has 254 others to be told from and not 62; 20,000 steps, of which the paper does not speak,
instead of early stopping; windows of 9.984 s, which the strides fill; the project's normalisation.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.data.augment.base import Augment
from ecgfm.data.augment.three_kg import ThreeKG
from ecgfm.encoders.resnet1d import RESNET18, ResNet1d
from ecgfm.objectives.advmask import AdvMask
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

ADAM = Optim(
    lr=1e-4, lr_start=1e-4, lr_end=1e-4, warmup_share=0.0, schedule_steps=20_000,
    weight_decay=(0.0, 0.0), betas=(0.9, 0.999), eps=1e-8,
)  # fmt: skip
RUN = Run(
    encoder=RESNET18,
    objective=AdvMask.Config(),
    data=Data(batch_size=128, window_s=9.984),
    optim=ADAM,
    engine=EngineConfig(),
)
BO = AdvMask.Config(masker_widths=(512, 1024, 1536, 2048))
PRESETS = {
    # For some hundred records: a small encoder and masker on half the time, and higher rates.
    "laptop": replace(
        RUN,
        encoder=ResNet1d.Config(width=128, layers=(1, 1, 1, 1)),
        objective=AdvMask.Config(projector=(128, 64), masker_widths=(8, 8, 16, 16)),
        data=Data(batch_size=32, window_s=4.992),
        optim=replace(ADAM, lr=5e-4, lr_start=5e-4, lr_end=5e-4, schedule_steps=300),
    ),
    "bo": replace(RUN, objective=BO),
    "bo-3kg": replace(RUN, objective=replace(BO, augment=Augment(transforms=(ThreeKG.Config(),)))),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
