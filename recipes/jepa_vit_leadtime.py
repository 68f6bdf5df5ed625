"""JEPA on a vision transformer over leads and time (Kim 2024, https://arxiv.org/abs/2410.08559).

    deepspeed recipes/jepa_vit_leadtime.py --data.shards out/georgia out/ptb-xl --out runs/jepa-leadtime

The defaults are a small encoder with 64 windows a step on shards of 500 Hz. `--preset laptop` is a whole run of minutes
on a CPU; `--preset kim` is the published one.

Paper says: patches of each lead; attention to the same lead or the same time only (cross-pattern attention); hidden
times are those of all leads, at random or in blocks; a predictor for each lead by itself; Chapman, Ningbo and CODE-15,
180 k records.
Code says: leads I, II, V1-V6 at 250 Hz, 10 s, patches of 50 samples, ViT-B with 16 heads; predictor of width 384, 6
blocks, 12 heads; 70-80 % hidden at random, one draw a batch; layer-normed targets and smooth L1; momentum 0.996 -> 1;
AdamW, lr 2.5e-5 after 5 epochs from 1e-6, cosine to 1e-6, weight decay 0.05, batch 128, 100 epochs; drop path 0.1.
Ours: 12 leads; times are drawn for each window; no drop path; fixed positions in time and learned leads (his newest:
rotary); the momentum ends at 0.9999, since at 1 nothing moves; a schedule of 140,000 steps, his 100 epochs.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import vit_leadtime
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

KIM = JEPA.Config(
    mask_ratio=(0.7, 0.8), mask="random", norm_target=True, loss="smooth-l1", momentum=(0.996, 0.9999),
    predictor_width=384, predictor_depth=6, predictor_heads=12,
)  # fmt: skip
KIM_OPTIM = Optim(
    lr=2.5e-5, warmup_share=0.05, schedule_steps=140_000, weight_decay=(0.05, 0.05), betas=(0.9, 0.999), eps=1e-8
)
SMALL = replace(KIM, predictor_width=None, predictor_depth=4, predictor_heads=None)
RUN = Run(
    encoder=replace(vit_leadtime.XS, attention="cross"),
    objective=SMALL,
    data=Data(batch_size=64),
    optim=Optim(lr=5e-4, weight_decay=(0.05, 0.05)),
    engine=EngineConfig(),
)
PRESETS = {
    "laptop": replace(
        RUN,
        encoder=replace(vit_leadtime.XS, width=96, depth=4, attention="cross"),
        objective=replace(SMALL, predictor_depth=2, momentum=(0.996, 0.9995)),
        data=Data(batch_size=32, window_s=5.0),
        optim=Optim(lr=1e-3, schedule_steps=500, weight_decay=(0.05, 0.05)),
    ),
    # Shards of 250 Hz.
    "kim": replace(RUN, encoder=vit_leadtime.KIM, objective=KIM, data=Data(batch_size=128), optim=KIM_OPTIM),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
