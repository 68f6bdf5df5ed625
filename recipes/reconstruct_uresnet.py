"""Masked-segment reconstruction with a U-ResNet (Gedon et al. 2021).

    deepspeed recipes/reconstruct_uresnet.py --data.shards out/code-15 --out runs/reconstruct

The defaults have strides that fill 10 s at 500 Hz. `--preset laptop` is a whole run of minutes on a CPU; `--preset
gedon` is the nearest to the paper's.

Paper says: several segments of all leads are set to zero and predicted; U-ResNet; pretrained on CODE; mean squared
error 1,197 on CODE and 17,403 and 22,011 on CPSC and PTB-XL.
Code says (none is public; the same group's ECG network): 400 Hz, 4096 samples, kernels of 17, filters 64 to 320, Adam
1e-3, batch 32, the rate divided by ten on a plateau, 70 epochs.
Ours: segments of 250 ms that hide a quarter; AdamW without decay and a cosine; no dropout. The metrics hold the error
of each database in square millivolt, `mse_masked_mv2.code-15` and `mse_all_mv2.code-15`, and on held-out patients the
same with `val_` before.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import u_resnet
from ecgfm.encoders.u_resnet import UResNet
from ecgfm.objectives.reconstruct import Reconstruct
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr_end=1e-7, weight_decay=(0.0, 0.0), betas=(0.9, 0.999), eps=1e-8, warmup_share=0.02)
RUN = Run(
    encoder=UResNet.Config(),
    objective=Reconstruct.Config(),
    data=Data(batch_size=64),
    optim=OPTIM,
    engine=EngineConfig(),
)
PRESETS = {
    "laptop": replace(
        RUN,
        encoder=UResNet.Config(width=64, widths=(16, 24, 32, 48), kernel=9),
        data=Data(batch_size=32, window_s=5.0),
        optim=replace(OPTIM, schedule_steps=500),
    ),
    # Shards of 400 Hz; records of CODE-15 are 10.24 s long.
    "gedon": replace(RUN, encoder=u_resnet.PAPER, data=Data(batch_size=32, window_s=10.24)),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
