"""Fine-tune a pretrained encoder on a task, and evaluate it.

    python recipes/finetune.py --encoder out/encoder --shards shards/ptb-xl --task ptb-xl --out runs/finetuned
    accelerate launch --multi_gpu --num_processes 8 recipes/finetune.py ...    # 8 GPUs
    torchrun --standalone --nproc-per-node 2 recipes/finetune.py ...    # on a CPU, where accelerate starts one process
    python recipes/finetune.py ... --method direct --init untrained      # the control: the same from random weights

The defaults train a linear head and then everything, in minutes on a CPU for some hundred records. Presets are the
published schedules; what a paper does not state is said beside each.

Which records are trained on, validated and tested is the task's to say (--task NAME, --task.SETTING); weights, number
of steps, thresholds and calibration are chosen on the validation part alone. A share of the labels: --task.label-share.
Another pretraining subset is another --encoder.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import run_command
from ecgfm.eval.finetune_config import Finetune, Phase
from ecgfm.train.finetuning import run

FINETUNE = Finetune()
# Weimann and Conrad 2024, https://arxiv.org/abs/2410.13867, from their code: random crops of 2.5 s, windows every 1.25
# s, the mean of their logits; the best of each 100 steps, until 2,000 bring none. Their dropout is inside of the
# encoder, ours before the last layer; their rise begins at 1e-6, ours at 0.
WEIMANN = replace(
    FINETUNE,
    head="attentive",
    crop_s=2.5,
    stride_s=1.25,
    batch_size=128,
    validate_every=100,
    frozen=Phase(steps=5000, lr=1e-3, weight_decay=0.1),
)
# Verma, Dige and Gill 2021, from their code (fastai 1, after the PTB-XL benchmark): windows of 2.5 s every 1.25 s,
# batch 128, weight decay 0.01, one-cycle, head of maximum and mean with a layer of 128 and dropout 0.5, last weights.
# A record has the maximum of its windows' probabilities, label by label: that of their logits, as a sigmoid rises.
# Three groups of layers: the head at 1e-2; each further one at 1e-3 with a tenth of it below the head; then all from
# 1e-6 to 1e-4. They differ in this: the head is trained twice so long, and all a second time at 1e-3; the tenth is one
# for all groups, where ours falls with depth; training crops are the middle of a record, ours are random; norms of
# frozen layers train there; their new head is a last layer only, on the old first one.
VERMA = replace(
    FINETUNE,
    head="concat",
    crop_s=2.5,
    stride_s=1.25,
    aggregate="max",
    batch_size=128,
    clip_norm=None,
    calibration="platt",
    groups=2,
    keep="last",
)
_CYCLE = Phase(epochs=50, lr=1e-2, schedule="one-cycle", weight_decay=0.01, dropout=0.5, second_beta=0.99)
PRESETS = {
    "weimann": replace(
        WEIMANN,
        method="after-probe",
        full=Phase(steps=5000, lr=1e-4, final_lr=1e-6, warmup_steps=200, schedule="cosine", dropout=0.1, patience=2000),
    ),
    # A linear layer on the register token; ours is on what the encoder gives as features, by default the mean of its
    # tokens (--encoder.pooling register in pretraining gives theirs). No clipping.
    "weimann-direct": replace(
        WEIMANN,
        method="direct",
        head="linear",
        clip_norm=None,
        full=Phase(
            steps=10_000,
            lr=1e-3,
            final_lr=1e-5,
            warmup_steps=200,
            schedule="cosine",
            weight_decay=0.01,
            second_beta=0.99,
            dropout=0.05,
            patience=2000,
        ),
    ),
    # Nakamoto et al. 2021: two fully connected layers, Adam, the best of three rates, lowest validation loss. Not
    # stated: batch, epochs, width of the first layer; whole windows of 10 s.
    "nakamoto": replace(
        FINETUNE,
        method="direct",
        head="mlp2",
        select="loss",
        batch_size=64,
        clip_norm=None,
        lrs=(1e-4, 3e-5, 1e-5),
        full=Phase(epochs=50, lr=1e-4),
    ),
    "verma": replace(
        VERMA,
        method="gradual",
        frozen=replace(_CYCLE, epochs=10),
        gradual=replace(_CYCLE, epochs=10, lr=1e-3, first_layer_share=0.1),
        full=replace(_CYCLE, epochs=10, lr=1e-4, first_layer_share=0.01),
    ),
    "verma-scratch": replace(VERMA, method="direct", init="untrained", full=_CYCLE),
}


if __name__ == "__main__":
    run_command(lambda: run(FINETUNE, PRESETS))
