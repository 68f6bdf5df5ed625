"""LeJEPA on a vision transformer (Balestriero and LeCun 2025, https://arxiv.org/abs/2511.08544).

    deepspeed recipes/lejepa_vit.py --data.shards out/georgia out/ptb-xl --out runs/lejepa

The defaults are ViT-XS with 128 windows a step, the least that the paper advises. `--preset laptop` is a whole run of
minutes on a CPU; `--preset s` is for GPUs.

Paper says: any architecture, 2 global and 8 local views, lambda 0.05, batches of 128 and more, AdamW, lr 5e-4, weight
decay 0.05 for transformers, a linear warm-up and a cosine; objective as in ecgfm/objectives/lejepa.py.
Code says (the authors' minimal example): lr 2e-3 at batch 256, warm-up of one epoch, ends at a thousandth of the peak.
Ours: 10 s of 12 leads, two crops of 7.5 s and eight of 2 s with wander, noise and a piece set to zero; the number of
steps; betas and eps as AdamW has them.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import vit
from ecgfm.objectives.lejepa import LeJEPA
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr=5e-4, lr_end=5e-7, weight_decay=(0.05, 0.05), betas=(0.9, 0.999), eps=1e-8)
RUN = Run(encoder=vit.XS, objective=LeJEPA.Config(), data=Data(batch_size=128), optim=OPTIM)
PRESETS = {
    # For some hundred records: shorter windows, fewer views, a narrower projector, fewer directions.
    "laptop": replace(
        RUN,
        objective=LeJEPA.Config(num_short=2, projector=(512, 512, 32), num_directions=256),
        data=Data(batch_size=64, window_s=5.0),
        optim=replace(OPTIM, schedule_steps=700),
    ),
    "s": replace(RUN, encoder=vit.S, data=Data(batch_size=1024)),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
