"""Masked autoencoder on a vision transformer over leads and time (ST-MEM, Na et al. 2024, arXiv 2402.09450).

    deepspeed recipes/mae_vit.py --data.shards out/georgia out/ptb-xl --out runs/mae

The defaults are a small encoder with 64 windows a step on shards of 500 Hz. `--preset laptop` is a whole run of minutes
on a CPU; `--preset st-mem` is the paper's. MTAE, on tokens of all leads, is `recipes/mae_vit_time.py`.

Paper says: 12 leads; patches of each lead; separators and lead embeddings; 75 % hidden at random; a decoder that all
leads share; ViT-B; pretrained on Chapman, Ningbo and CODE-15, 188 k records.
Code says: 250 Hz, 9 s windows, patches of 75 samples; high-pass 0.67 Hz, low-pass 40 Hz, one mean and deviation for
each window; decoder of 4 blocks, width 256, 4 heads; patch-wise normalised targets; AdamW (0.9, 0.95), weight decay
0.01; lr 1.5e-4 for 256 windows a step, linear warm-up, then a cosine to 0.
Ours: the same objective; each lead is normalised by itself and not all together; filters are the shards'
(`tools/convert.py --rate-hz 250`); batch and steps are ours: the code's lr is for 256 windows.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import vit_leadtime
from ecgfm.objectives.mae import MAE
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr=1.5e-4, lr_end=0.0, weight_decay=(0.01, 0.01), betas=(0.9, 0.95), eps=1e-8)
RUN = Run(
    encoder=vit_leadtime.XS,
    objective=MAE.Config(),
    data=Data(batch_size=64),
    optim=replace(OPTIM, lr=5e-4),
    engine=EngineConfig(),
)
PRESETS = {
    # Half the length, and a quarter of the width: 300 tokens a window are many for a CPU.
    "laptop": replace(
        RUN,
        encoder=replace(vit_leadtime.XS, width=96, depth=4),
        objective=MAE.Config(decoder_width=64, decoder_depth=2),
        data=Data(batch_size=32, window_s=5.0),
        optim=replace(OPTIM, lr=1e-3, schedule_steps=500),
    ),
    # Shards of 250 Hz.
    "st-mem": replace(
        RUN,
        encoder=vit_leadtime.ST_MEM,
        data=Data(batch_size=256, window_s=9.0, scale="record"),
        optim=OPTIM,
    ),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
