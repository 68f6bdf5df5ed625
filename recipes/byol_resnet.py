"""BYOL on ResNet-18-1D (Grill et al. 2020, https://arxiv.org/abs/2006.07733).

    deepspeed recipes/byol_resnet.py --data.shards out/georgia out/ptb-xl --out runs/byol

The defaults are the paper's heads on 64 windows a step. `--preset laptop` is a whole run of minutes on a CPU;
`--preset full` is for GPUs.

Paper says: ResNet-50 on ImageNet, batch 4096, LARS with lr 0.2 x batch / 256, ten epochs of warm-up and a cosine,
weight decay 1.5e-6, 1000 epochs; objective as in ecgfm/objectives/byol.py.
Mehari and Strodthoff 2022 (https://arxiv.org/abs/2103.12676) say, for the ECG: xresnet1d50, crops of 2.5 s, AdamW.
Ours: ResNet-18-1D, as the other recipes of views, on windows of 9.984 s, which its steps of 32 samples fill; two crops
of half a window with wander, noise and a piece set to zero; AdamW with lr 1e-3, weight decay 1e-3; the number of steps.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import resnet1d
from ecgfm.objectives.byol import BYOL
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr=1e-3, weight_decay=(1e-3, 1e-3), betas=(0.9, 0.999), eps=1e-8)
RUN = Run(encoder=resnet1d.RESNET18, objective=BYOL.Config(), data=Data(batch_size=64, window_s=9.984), optim=OPTIM)
PRESETS = {
    # For some hundred records: windows of half the length, narrower heads, a target that follows within the run.
    "laptop": replace(
        RUN,
        objective=BYOL.Config(hidden=1024, momentum=(0.98, 1.0)),
        data=Data(batch_size=64, window_s=4.992),
        optim=replace(OPTIM, schedule_steps=700),
    ),
    "full": replace(RUN, data=Data(batch_size=4096, window_s=9.984)),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
