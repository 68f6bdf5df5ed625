"""CPC on S4 (Al-Masud and Strodthoff 2026, https://arxiv.org/abs/2605.12241).

    deepspeed recipes/cpc_s4.py --data.shards out/georgia out/ptb-xl --out runs/cpc

The defaults are the paper's encoder with 64 windows a step. `--preset laptop` is a whole run of minutes on a CPU;
`--preset study` is the paper's run.

Paper says: a causal S4 of 4 layers over a convolutional stem, CPC 14 steps ahead, 11 million records; the most
transferable of five objectives, a little ahead of JEPA.
Code says: 2.5 s windows at 240 Hz, not normalised; a stem that halves the rate; 128 negatives of the same window;
AdamW at a constant 3e-3, weight decay 1e-3, batch 64, 10 epochs, float32, dropout 0.2.
Ours: windows of the same length at 500 Hz, normalised per lead as Mehari and Strodthoff 2022 do
(https://doi.org/10.1016/j.compbiomed.2021.105114); a stem with a step for 10 ms, where theirs has one for 8.3 ms, and
so 12 steps ahead, as in 2022: 120 ms, where theirs are 117; diagonal states; no dropout; bfloat16 autocast. The
default warms up and falls along a cosine; `study` is constant, as theirs.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders.s4 import S4
from ecgfm.objectives.cpc import CPC
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

OPTIM = Optim(lr=3e-3, weight_decay=(1e-3, 1e-3), betas=(0.9, 0.999), eps=1e-8)
RUN = Run(
    encoder=S4.Config(causal=True),
    objective=CPC.Config(),
    data=Data(batch_size=64, window_s=2.5),
    optim=OPTIM,
    engine=EngineConfig(),
)
PRESETS = {
    # For some hundred records and minutes on a CPU: a quarter of the width, half the layers, half the steps a second,
    # of which six are guessed ahead.
    "laptop": replace(
        RUN,
        encoder=S4.Config(causal=True, width=128, depth=2, patch_samples=10, kernels=(11, 1), strides=(10, 1)),
        objective=CPC.Config(ahead=(6,), negatives=64),
        optim=replace(OPTIM, lr=2e-3, schedule_steps=700),
    ),
    # Ten epochs of 11 million records.
    "study": replace(RUN, optim=replace(OPTIM, lr_start=3e-3, lr_end=3e-3, warmup_share=0.0, schedule_steps=1_700_000)),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
