"""JEPA on a vision transformer (Weimann and Conrad 2024, https://arxiv.org/abs/2410.13867).

    deepspeed recipes/jepa_vit.py --data.shards out/georgia out/ptb-xl --out runs/jepa

The defaults are ViT-XS with 64 windows a step, which a laptop runs. `--preset laptop` is a whole run of minutes
on a CPU; `--preset xs`, `s` and `b` are the paper's runs.

Paper says: ViT, masked prediction in latent space against a moving average, ten databases, one million
records; macro AUC 0.945 on PTB-XL.
Code says: 10 s at 500 Hz, patches of 25 samples, 1 register token, no bias; predictor of half the width;
15-25 % of the tokens kept in one draw a batch, hidden blocks of at least 10; L1 loss on the target's tokens
without a layer norm; AdamW (0.9, 0.99), eps 1e-6; lr 1e-6 -> 1e-3 over the first tenth of 100,000 steps,
then a cosine to 1e-6; weight decay 0.01 -> 0.1 on linear and convolution weights; momentum 0.998 -> 0.9995;
batch 2048 (B: 512 x 2); bfloat16 autocast; statistics per database and lead, clipped at 5.
Ours: the same, except that the moving average and the schedules advance once per optimizer step (theirs:
once per micro-batch), a resumed run goes on where it stopped (theirs begins the schedules again), databases
are drawn in proportion to their records and not by the paper's weights, and all share one mean and standard
deviation per lead, which the published encoder applies too (`--data.scale database` is the paper's way, and
that of its presets).
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import cli, run_command
from ecgfm.encoders import vit
from ecgfm.objectives.jepa import JEPA
from ecgfm.train.engine_config import EngineConfig
from ecgfm.train.loop import train
from ecgfm.train.optim import Optim
from ecgfm.train.run import Data, Run

RUN = Run(encoder=vit.XS, objective=JEPA.Config(), data=Data(batch_size=64), optim=Optim(), engine=EngineConfig())
# The paper's share of each database; of those that are not among the shards nothing is drawn.
WEIGHTS = (
    "mimic-iv-ecg=0.7", "code-15=0.1", "ptb-xl=0.05", "georgia=0.0375", "ningbo=0.028125", "cpsc-2018=0.025",
    "ptb=0.01875", "st-petersburg-incart=0.01875", "cpsc-extra=0.0125", "chapman-shaoxing=0.009375",
)  # fmt: skip
PAPER = Data(batch_size=2048, scale="database", weights=WEIGHTS)
PRESETS = {
    # For some hundred records and minutes on a CPU: windows of half the length, of which there are twice as many a
    # second; a lower peak for the small batch; an average that follows within the run.
    "laptop": replace(
        RUN,
        objective=JEPA.Config(momentum=(0.996, 0.9995)),
        data=Data(batch_size=64, window_s=5.0),
        optim=Optim(lr=5e-4, schedule_steps=700),
    ),
    "xs": replace(RUN, data=PAPER),
    "s": replace(RUN, encoder=vit.S, data=PAPER),
    "b": replace(RUN, encoder=vit.B, data=replace(PAPER, batch_size=1024), engine=EngineConfig(accumulation=2)),
}

if __name__ == "__main__":
    run_command(lambda: train(cli(RUN, presets=PRESETS)))
