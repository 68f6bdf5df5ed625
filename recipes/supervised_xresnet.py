"""Supervised pretraining of XResNet on 18 labels (Verma, Dige and Gill 2021).

    deepspeed recipes/supervised_xresnet.py --data.shards out/ptb-xl --out runs/supervised

The defaults are xresnet1d50 on windows of 2.5 s, 64 a step. `--preset laptop` is a whole run of minutes on a CPU, on
sex, which any database has; `--preset verma` is the paper's run. What comes of it is fine-tuned on Georgia; a run from
scratch there, with the same settings, is what it is to be compared with.

Paper says: XResNet, ResNet and Inception over 18 labels that PTB-XL and Georgia share; macro AUC .947 on PTB-XL; on
Georgia .843 from scratch, .916 after PTB-XL.
Code says: xresnet1d101, 500 Hz, windows of 2.5 s, batch 128, one cycle up to a learning rate of 1e-2 over 50 epochs,
weight decay .01; a head of 128 on maximum and mean, dropout .5. Its runs from scratch mix up the leads, and one
sampling rate is read with a wrong gain, so that the gain of .073 is not clean.
Ours: the same network and head; labels by the rule of ecgfm/labels/shared.py, since the paper's list was not at hand;
windows of 2.496 s, which the strides fill, at random places; one cycle is our linear rise and cosine, a quarter of the
steps long as fastai's; 50 epochs of PTB-XL's 17,000 training records are 6,800 steps; normalised by lead.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders.xresnet1d import X101, XResNet1d
from ecgfm.objectives.supervised import Supervised
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

ONE_CYCLE = Optim(
    lr=1e-2, lr_start=4e-4, lr_end=1e-7, warmup_share=0.25, schedule_steps=6_800,
    weight_decay=(0.01, 0.01), betas=(0.9, 0.99), eps=1e-5,
)  # fmt: skip
RUN = Run(
    encoder=XResNet1d.Config(),
    objective=Supervised.Config(),
    data=Data(batch_size=64, window_s=2.496),
    optim=replace(ONE_CYCLE, lr=5e-3, lr_start=2e-4),
    engine=EngineConfig(),
)
PRESETS = {
    "laptop": replace(
        RUN,
        encoder=XResNet1d.Config(width=64, layers=(1, 1, 1, 1)),
        objective=Supervised.Config(labels=("sex",), hidden=None, dropout=0.1),
        data=Data(batch_size=32, window_s=2.496),
        optim=replace(ONE_CYCLE, lr=2e-3, lr_start=1e-4, schedule_steps=300),
    ),
    "verma": replace(
        RUN,
        encoder=X101,
        data=Data(batch_size=128, window_s=2.496),
        optim=ONE_CYCLE,
    ),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
