"""Probe a frozen encoder: what a linear layer, one query over its tokens, or the nearest records make of its features.

    python recipes/probe.py --encoder out/encoder --shards shards/ptb-xl --task ptb-xl --out runs/probe
    python recipes/probe.py ... --head attentive
    python recipes/probe.py ... --head knn
    python recipes/probe.py ... --init untrained        # the control: the same encoder with random weights

It is recipes/finetune.py with --method probe, and writes the same files. tools/probe.py fits logistic regressions to
single labels in folds of patients instead, which needs no parts and few records.
"""

from __future__ import annotations

from dataclasses import replace

from ecgfm.config import run_command
from ecgfm.eval.finetune_config import Finetune, Phase
from ecgfm.train.finetuning import run

PROBE = Finetune(method="probe", frozen=Phase(steps=1000, lr=1e-3, weight_decay=0.1))
PRESETS = {
    # Weimann and Conrad 2024, https://arxiv.org/abs/2410.13867, from their code: what they call linear.
    "weimann": replace(
        PROBE,
        head="attentive",
        crop_s=2.5,
        stride_s=1.25,
        batch_size=128,
        validate_every=100,
        frozen=Phase(steps=5000, lr=1e-3, weight_decay=0.1),
    ),
    # Bo et al. 2022: Adam 0.01, batch 256, three seeds. Not stated: epochs, and how their best is chosen.
    "bo": replace(PROBE, batch_size=256, clip_norm=None, seeds=3, select="accuracy", frozen=Phase(epochs=100, lr=1e-2)),
}


if __name__ == "__main__":
    run_command(lambda: run(PROBE, PRESETS))
