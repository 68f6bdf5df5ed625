"""SimCLR on a residual network (Bo et al. 2022, https://arxiv.org/abs/2211.07889; Chen et al. 2020).

    deepspeed recipes/simclr_resnet.py --data.shards out/georgia out/ptb-xl --out runs/simclr

`--preset laptop` is a whole run of minutes on a CPU; `--preset bo` is the paper's run with fixed augmentations.
`--objective.augment.use peak-mask` makes views with another augmentation of ecgfm/data/augment, or with several.

Paper says: ResNet-18 with one axis, 512 features; a head of two layers to 128; temperature 0.1; Adam at 1e-4; batches
of 32, accumulated four times; mixed precision; PhysioNet/CinC 2021. Augmentations compared one by one: Gaussian noise,
powerline, STFT mask, wander, shift, mask, block mask, peak mask, 3KG. Linear probe of rhythm: 86.4 % with 3KG.
Code says: head of 512, 2048, 128; one of the two views is not augmented (`--objective.augmented one`).
Ours: both views augmented; negatives are those of a micro-batch over all ranks, so accumulating gives no more of them:
the preset takes 128 windows at once, where theirs has 32 four times; AdamW without decay; windows of 9.984 s, which
the network's steps of 32 samples fill; 100,000 steps, as theirs ends when a validation says so. The defaults are a
smaller network (Wang et al. 2017) that a laptop trains.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders.resnet1d import RESNET18, WANG
from ecgfm.objectives.simclr import SimCLR
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

ADAM = Optim(lr=1e-4, lr_start=1e-4, lr_end=1e-4, warmup_share=0.0, weight_decay=(0.0, 0.0), betas=(0.9, 0.999))
RUN = Run(encoder=WANG, objective=SimCLR.Config(), data=Data(batch_size=64), optim=Optim(), engine=EngineConfig())
PRESETS = {
    "laptop": replace(RUN, data=Data(batch_size=64, window_s=5.0), optim=Optim(lr=5e-4, schedule_steps=500)),
    "bo": replace(RUN, encoder=RESNET18, data=Data(batch_size=128, window_s=9.984), optim=ADAM),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
