"""CMSC of CLOCS on a residual network, with random lead masking (Kiyasseh et al. 2021; Oh et al. 2022).

    deepspeed recipes/cmsc_resnet.py --data.shards out/georgia out/ptb-xl --out runs/cmsc

`--preset laptop` is a whole run of minutes on a CPU; `--preset clocs` is the first paper's objective, without masks and
with the other windows of a patient as positives; `--preset rlm` has each lead hidden with a chance of .5.

Papers say: two adjacent segments of 5 s at 500 Hz of one patient are positives, and the segments of its other windows
that a batch happens to hold; temperature 0.1, Adam at 1e-4, batches of 256 (https://arxiv.org/abs/2005.13249). Random
lead masking makes features that bear missing leads (https://arxiv.org/abs/2203.06889, there beside wav2vec 2.0 on a
transformer).
Code says: three convolution blocks on a single lead, a linear layer to 32 to 320 features, at most 400 epochs.
Ours: ResNets and twelve leads together; the two halves of a window; by default another window of a patient is a
negative (`--objective.positives patient`); AdamW without decay. ResNet-18's steps of 32 samples are filled by halves
of 4.992 s.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.data.augment.base import Augment
from ecgfm.encoders.resnet1d import RESNET18, WANG
from ecgfm.objectives.cmsc import CMSC
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

ADAM = Optim(lr=1e-4, lr_start=1e-4, lr_end=1e-4, warmup_share=0.0, weight_decay=(0.0, 0.0), betas=(0.9, 0.999))
RUN = Run(encoder=WANG, objective=CMSC.Config(), data=Data(batch_size=64), optim=Optim(), engine=EngineConfig())
PAPER = replace(RUN, encoder=RESNET18, data=Data(batch_size=256, window_s=9.984), optim=ADAM)
PRESETS = {
    "laptop": replace(RUN, data=Data(batch_size=64), optim=Optim(lr=5e-4, schedule_steps=500)),
    "clocs": replace(PAPER, objective=CMSC.Config(augment=Augment(), positives="patient")),
    "rlm": PAPER,
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
