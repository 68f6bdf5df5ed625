"""MoCo on a temporal-spatial network (Nakamoto et al. 2021, for left ventricular dysfunction).

    deepspeed recipes/moco_cnn.py --data.shards out/georgia out/ptb-xl --out runs/moco

`--preset laptop` is a whole run of minutes on a CPU; `--preset nakamoto` is the paper's run as far as it is told;
`--preset v3` is MoCo v3, without a queue, on the same network.

Paper says: 12 x 5000 samples; six temporal blocks, one spatial, a fully connected layer to 128; MoCo v1/v2; Gaussian
noise, Gaussian smoothing, random erasing, resizing and baseline shifting, several picked at random. AUC .9245
pretrained, with 28 % of the labels, against .9208 from scratch.
Code says: none is public. MoCo's usual values are a queue of 65,536, momentum 0.999, temperature 0.07, 256 windows.
Ours: these values; two transforms picked for each row and view, of magnitudes that are ours too; AdamW with a warm-up
and a cosine in place of SGD; channels and kernels as in ecgfm/encoders/ts_cnn.py. Batch norm is over all ranks' rows
in place of shuffling them; with few windows at once, `--encoder.norm group`.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders.ts_cnn import TSCNN
from ecgfm.objectives.moco import MoCo
from ecgfm.objectives.moco_v3 import MoCoV3
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

RUN = Run(
    encoder=TSCNN.Config(), objective=MoCo.Config(), data=Data(batch_size=64), optim=Optim(), engine=EngineConfig()
)
PRESETS = {
    # A queue of some epochs of few records would hold a query's own window many times; an average that follows.
    "laptop": replace(
        RUN,
        objective=MoCo.Config(queue=512, momentum=0.99),
        data=Data(batch_size=32, window_s=5.0),
        optim=Optim(lr=5e-4, schedule_steps=500),
    ),
    "nakamoto": replace(RUN, data=Data(batch_size=256)),
    "v3": replace(RUN, objective=MoCoV3.Config(), data=Data(batch_size=1024)),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
