"""VICReg on ResNet-18-1D (Bardes et al. 2022, https://arxiv.org/abs/2105.04906).

    deepspeed recipes/vicreg_resnet.py --data.shards out/georgia out/ptb-xl --out runs/vicreg

The defaults are an expander of 2048 and 64 windows a step. `--preset laptop` is a whole run of minutes on a CPU;
`--preset full` has the paper's expander and batch, and is for GPUs.

Paper says: ResNet-50 on ImageNet, batch 2048, LARS with lr 0.2 x batch / 256, ten epochs of warm-up and a cosine,
weight decay 1e-6, 1000 epochs; weights 25, 25, 1; objective as in ecgfm/objectives/vicreg.py.
Ours: ResNet-18-1D, as the other recipes of views, on windows of 9.984 s, which its steps of 32 samples fill; two crops
of half a window with wander, noise and a piece set to zero; AdamW with lr 1e-3, weight decay 1e-3; the number of steps.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import resnet1d
from ecgfm.objectives.vicreg import VICReg
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr=1e-3, weight_decay=(1e-3, 1e-3), betas=(0.9, 0.999), eps=1e-8)
RUN = Run(encoder=resnet1d.RESNET18, objective=VICReg.Config(), data=Data(batch_size=64, window_s=9.984), optim=OPTIM)
PRESETS = {
    # For some hundred records: windows of half the length, a narrower expander.
    "laptop": replace(
        RUN,
        objective=VICReg.Config(expander=(512, 512, 512)),
        data=Data(batch_size=64, window_s=4.992),
        optim=replace(OPTIM, schedule_steps=700),
    ),
    "full": replace(
        RUN, objective=VICReg.Config(expander=(8192, 8192, 8192)), data=Data(batch_size=2048, window_s=9.984)
    ),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
