"""CPC on an LSTM (Mehari and Strodthoff 2022, https://doi.org/10.1016/j.compbiomed.2021.105114).

    deepspeed recipes/cpc_lstm.py --data.shards out/georgia out/ptb-xl --out runs/cpc-lstm

The defaults are the paper's run; `--preset laptop` is a whole run of minutes on a CPU.

Paper says: the best of four self-supervised methods for 12-lead ECG; 12 steps ahead, 128 negatives; on PTB-XL
less than 1 % below supervised training with a linear layer, and about 1 % above it fine-tuned.
Code says: 10 s windows at 100 Hz, normalised by one mean and standard deviation per lead; four convolutions over one
sample each, two LSTM layers, all of 512; negatives of the same window; AdamW at a constant 1e-4, weight decay 1e-3 on
every weight, batch 32, 1000 epochs of some 54,000 records, float16 autocast.
Ours: the first convolution takes 500 samples a second to 100; no weight decay for the LSTM; bfloat16 autocast.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders.lstm import LSTM
from ecgfm.objectives.cpc import CPC
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

CONSTANT = Optim(
    lr=1e-4,
    lr_start=1e-4,
    lr_end=1e-4,
    warmup_share=0.0,
    schedule_steps=1_700_000,
    weight_decay=(1e-3, 1e-3),
    betas=(0.9, 0.999),
    eps=1e-8,
)
RUN = Run(
    encoder=LSTM.Config(), objective=CPC.Config(), data=Data(batch_size=32), optim=CONSTANT, engine=EngineConfig()
)
PRESETS = {
    # For some hundred records and minutes on a CPU: a quarter of the length and of the width, half the steps a second,
    # of which six are guessed ahead; a higher rate for the short run.
    "laptop": replace(
        RUN,
        encoder=LSTM.Config(width=128, depth=1, patch_samples=10, kernels=(11, 1), strides=(10, 1)),
        objective=CPC.Config(ahead=(6,), negatives=64),
        data=Data(batch_size=64, window_s=2.5),
        optim=Optim(lr=2e-3, schedule_steps=700, weight_decay=(1e-3, 1e-3), betas=(0.9, 0.999), eps=1e-8),
    ),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
