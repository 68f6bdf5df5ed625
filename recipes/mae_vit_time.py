"""Masked autoencoder on patches of all leads (MTAE in Na et al. 2024, https://arxiv.org/abs/2402.09450).

    deepspeed recipes/mae_vit_time.py --data.shards out/georgia out/ptb-xl --out runs/mtae

The same encoder as `recipes/jepa_vit.py`, so that the two objectives can be compared. `--preset laptop` is a whole run
of minutes on a CPU; `--preset mtae` is the paper's.

Paper says: patches of all leads, 75 % hidden at random, otherwise as ST-MEM; see `recipes/mae_vit.py`.
Code says: 250 Hz, 9 s windows, patches of 75 samples, a class token, ViT-B; otherwise as there.
Ours: a register in the place of the class token; otherwise as there.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import vit
from ecgfm.objectives.mae import MAE
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr=1.5e-4, lr_end=0.0, weight_decay=(0.01, 0.01), betas=(0.9, 0.95), eps=1e-8)
RUN = Run(
    encoder=vit.XS,
    objective=MAE.Config(),
    data=Data(batch_size=64),
    optim=replace(OPTIM, lr=5e-4),
    engine=EngineConfig(),
)
PRESETS = {
    "laptop": replace(RUN, data=Data(batch_size=64, window_s=5.0), optim=replace(OPTIM, lr=1e-3, schedule_steps=700)),
    # Shards of 250 Hz.
    "mtae": replace(
        RUN,
        encoder=replace(vit.B, patch_samples=75),
        data=Data(batch_size=256, window_s=9.0, scale="record"),
        optim=OPTIM,
    ),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
