"""The training of one fine-tuning run: phases, validation, checkpoints; see `finetune_config` for what a phase is.

A step depends on (seed, step) alone, so a run that was killed goes on to the same bits on a CPU. Gradients are sums
over the crops of all processes over the number of known targets, so several processes give what one gives, but for
rounding and the head's dropout, which each process draws for itself.

Shapes: B windows, M records, L leads, T samples, N tokens, D width, C labels.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecgfm import config
from ecgfm.errors import ConfigError, TrainingError
from ecgfm.eval import finetune_state as states
from ecgfm.eval.finetune_bench import Bench
from ecgfm.eval.finetune_config import FREE, Finetune, Phase
from ecgfm.eval.finetune_data import ahead, crops
from ecgfm.eval.finetune_log import Log
from ecgfm.eval.finetune_model import Network, build_optimizer, with_dropout
from ecgfm.eval.finetune_result import write_settings
from ecgfm.eval.finetune_state import State, Weights
from ecgfm.eval.finetune_worker import Worker, validation_figures
from ecgfm.eval.metrics import LOWER_IS_BETTER
from ecgfm.eval.probe import untrained
from ecgfm.eval.splits import TRAIN, VALIDATION
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.losses import loss_sum
from ecgfm.nn.norms import BatchNorm
from ecgfm.rng import derive

Stop = Callable[[], str | None]
MODEL, BEST, OPTIMIZER = "model.safetensors", "best.safetensors", "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase in its place."""

    name: str
    phase: Phase
    groups: int
    """Groups of layers that train, the head being one."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that has come to its end."""

    classifier: ECGClassifier
    network: Network
    state: State
    seconds: float
    """Of training in this process; a resumed run's earlier ones are not in it."""


def stages(settings: Finetune, num_groups: int) -> list[Stage]:
    """Return the phases of a run, for a classifier of so many groups."""
    first = Stage(name="frozen", phase=settings.frozen, groups=1)
    last = Stage(name="full", phase=settings.full, groups=num_groups)
    between = [Stage(name="gradual", phase=settings.gradual, groups=number) for number in range(2, num_groups)]
    return {"probe": [first], "direct": [last], "after-probe": [first, last], "gradual": [first, *between, last]}[
        settings.method
    ]


def identity(settings: Finetune, bench: Bench) -> dict[str, Any]:
    """Return what decides a run's weights and figures."""
    kept: dict[str, Any] = {name: value for name, value in config.to_dict(settings).items() if name not in FREE}
    # A table may say something else by the time a run goes on.
    examples = bench.examples
    asked = hashlib.sha256(
        examples.index_N.tobytes() + examples.target_NC.tobytes() + " ".join(examples.split_N.tolist()).encode()
    )
    return {
        **kept,
        "encoder_sha256": bench.encoder_sha256,
        "shards": list(bench.content),
        "examples_sha256": asked.hexdigest(),
    }


class Training:
    """One run.

    Args:
        settings: Of one seed.
        bench: What all runs share.
        stop: Returns why to stop early, or None.
    """

    def __init__(self, settings: Finetune, bench: Bench, stop: Stop) -> None:
        self._settings, self._bench, self._stop = settings, bench, stop
        self._accelerator = bench.accelerator
        self._identity = identity(settings, bench)
        self._state = State(identity=self._identity)
        self._best: Weights = {}
        self._crops = bench.crops(settings)
        self.classifier = self._new_classifier()
        self._stages = stages(settings, self.classifier.num_groups(settings.groups))
        self.selects_by = settings.select or ("mae" if self.classifier.kind == "regression" else "auc")
        """Figure of the validation part that decides which weights are best."""
        # Before the time is spent: a figure that this kind of task does not have cannot select.
        target_MC = bench.target_NC[bench.places[VALIDATION]]
        validation_figures(
            self.classifier, np.zeros(target_MC.shape), target_MC, bench.examples.labels, self.selects_by
        )
        std = self.classifier.settings.target_std
        self._scale_C = None if std is None else torch.tensor(std, device=self._accelerator.device)

    def run_from_folder(self) -> Trained | None:
        """Train to the end; return None when told to stop before, with a checkpoint. All processes must call it.

        Raises:
            CheckpointError: Checkpoints cannot be written or read.
            ConfigError: The folder holds another run, or the validation part cannot select.
            TrainingError: The loss is not finite.
        """
        began = time.perf_counter()
        found = self._begin()
        averages: Weights = {}
        if found:
            self._state, files = found
            self.classifier.load_state_dict(files[MODEL])
            self._best, averages = files.get(BEST, {}), files.get(OPTIMIZER, {})
        log = Log(self._settings.out, self._state.step, self._bench.console, self._accelerator.is_main_process)
        try:
            if found:
                log.say(f"goes on at step {self._state.step:,}")
            for number in range(self._state.phase, len(self._stages)):
                if not self._run_stage(number, averages, log):
                    return None
                averages = {}
        finally:
            log.close()
        self.classifier.eval()
        network = Network(self.classifier, self._settings.input).eval()
        return Trained(
            classifier=self.classifier,
            network=network,
            state=self._state,
            seconds=time.perf_counter() - began,
        )

    def _begin(self) -> tuple[State, dict[str, Weights]] | None:
        """Return the checkpoint to go on from, and write down the settings."""
        out = self._settings.out
        if not self._settings.resume and self._accelerator.is_main_process:
            states.remove_all(out)
        self._accelerator.wait_for_everyone()
        found = states.read(out)
        if found:
            states.check_same(found[0].identity, self._identity, out)
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            write_settings(self._settings)
        return found

    def _new_classifier(self) -> ECGClassifier:
        settings, examples = self._settings, self._bench.examples
        encoder = copy.deepcopy(self._bench.encoder)
        if settings.init == "untrained":
            encoder = untrained(encoder, settings.seed)
        assert settings.head != "knn"
        classifier = ECGClassifier.from_pretrained(
            encoder,
            labels=examples.labels,
            kind=examples.kind,
            head=settings.head,
            hidden=settings.hidden,
            aggregate=settings.aggregate,
            window_s=settings.crop_s,
            stride_s=settings.stride_s,
            seed=settings.seed,
        )
        if examples.kind == "regression":
            target_NC = examples.target_NC[self._bench.places[TRAIN]]
            deviation = np.nanstd(target_NC, axis=0)
            if not (deviation > 0).all():
                raise ConfigError("all targets of the training part are the same: there is nothing to learn")
            classifier.standardise_(np.nanmean(target_NC, axis=0).tolist(), deviation.tolist())
        for part in classifier.modules():
            if isinstance(part, BatchNorm):
                part.over_ranks = True  # running averages of each process's own would part the processes' weights
        return classifier.to(self._accelerator.device)

    def _run_stage(self, number: int, averages: Weights, log: Log) -> bool:
        """Run a phase to its end and save; return False when told to stop."""
        stage, settings = self._stages[number], self._settings
        self.classifier = with_dropout(self.classifier, stage.phase.dropout).unfreeze_(
            stage.groups, most=settings.groups
        )
        network = Network(self.classifier, settings.input)
        optimizer = build_optimizer(self.classifier, stage.phase, settings.groups)
        states.restore_(optimizer, averages)
        steps = stage.phase.num_steps(len(self._crops), settings.batch_size)
        log.stage(stage.name, self._state.step - self._state.phase_step, steps, self._trained_text(stage))
        worker = Worker(self._bench, settings, network, frozen=stage.groups == 1)
        if self._state.phase_step == 0:
            self._state = replace(self._state, since=self._state.step)
        stopped = False
        first, last = self._state.step, self._state.step - self._state.phase_step + steps
        # Of the whole phase: a run that goes on must do as before, or its bits may differ.
        worker.encode_training(self._crops, steps)
        if stage.groups == 1 and self._state.phase_step == 0:
            self.classifier.standardise_features_(worker.training_features(self._crops))
        for step, place_B, signal_BLT in ahead(self._make_batch(worker), first, last):
            rate = self._set_rates(optimizer, stage.phase, self._state.phase_step, steps)
            figures_now = self._step(network, optimizer, worker, step, place_B, signal_BLT)
            self._state = replace(self._state, step=step + 1, phase_step=self._state.phase_step + 1)
            done = self._state.phase_step == steps
            log.count(len(place_B))
            if self._state.step % settings.log_every == 0 or done:
                log.metrics(self._state.step, {"phase": stage.name, "lr": rate, **figures_now()})
            log.advance(self._state.step)
            if done or self._state.phase_step % settings.validate_every == 0:
                self._validate(worker, log)
                patience = stage.phase.patience
                done = done or (patience is not None and self._state.step - self._state.since >= patience)
            if done:
                break
            stopped = self._told_to_stop()
            if stopped or self._state.phase_step % settings.checkpoint_every == 0:
                self._save(optimizer)
            if stopped:
                break
        if not stopped:
            if settings.keep == "best":
                self.classifier.load_state_dict(self._best)
            self._state = replace(self._state, phase=number + 1, phase_step=0)
            self._save(None)
        return not stopped

    def _make_batch(self, worker: Worker) -> Callable[[int], tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Return a function from a step to all its records, and the crops of this process."""
        rows = self._settings.batch_size // self._accelerator.num_processes
        mine = slice(self._accelerator.process_index * rows, (self._accelerator.process_index + 1) * rows)

        def make(step: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            place_B, start_B = self._crops.step(step)
            if worker.holds_training:
                return place_B, np.empty((0, 0, 0), dtype=np.float32)
            return place_B, crops(self._bench.signals, place_B[mine], start_B[mine], self._crops.crop)

        return make

    def _set_rates(self, optimizer: Any, phase: Phase, step: int, steps: int) -> float:
        rate, beta = phase.rate(step, steps), phase.first_beta(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
            group["betas"] = (beta, phase.second_beta)
        return rate

    def _step(
        self,
        network: Network,
        optimizer: torch.optim.Optimizer,
        worker: Worker,
        step: int,
        place_B: NDArray[np.int64],
        signal_BLT: NDArray[np.float32],
    ) -> Callable[[], dict[str, float]]:
        """Make one optimizer step; return a function that gives its figures, which all processes must call."""
        device, world = self._accelerator.device, self._accelerator.num_processes
        rows, rank = len(place_B) // world, self._accelerator.process_index
        mine = place_B[rank * rows : (rank + 1) * rows]
        target_BC = torch.from_numpy(self._bench.target_NC[place_B]).to(device, torch.float32)
        kind = self.classifier.kind
        network.train()
        torch.manual_seed(derive(self._settings.seed, "dropout", step, rank))
        with self._accelerator.autocast():
            if worker.holds_training:
                logits_BC = network(None, worker.encoded(mine))
            else:
                logits_BC = network(torch.from_numpy(signal_BLT).to(device))
        own_BC = target_BC[rank * rows : (rank + 1) * rows]
        total, _ = loss_sum(kind, logits_BC.float(), own_BC, self._scale_C)
        known = loss_sum(kind, torch.zeros_like(target_BC), target_BC, self._scale_C)[1].clamp(min=1)
        optimizer.zero_grad(set_to_none=True)
        self._accelerator.backward(total / known)
        # A weight that the head does not ask for, such as a last norm before pooling, has none, in all processes alike.
        weights = [weight for weight in self.classifier.parameters() if weight.grad is not None]
        self._sum_gradients(weights)
        norm = self._accelerator.clip_grad_norm_(weights, self._settings.clip_norm or math.inf)
        if not norm.isfinite():
            names = ", ".join(self._bench.signals.name(place) for place in place_B[:3].tolist())
            raise TrainingError(
                f"step {step + 1:,}: the gradient is not finite, for crops of {names} and others; give a lower lr, or "
                "look at these records"
            )
        optimizer.step()
        loss = total.detach() / known
        return lambda: {"loss": float(self._bench.sum_over_processes(loss)), "gradient_norm": float(norm)}

    def _sum_gradients(self, weights: Sequence[Tensor]) -> None:
        """Give all processes the sum of their gradients. All must call it.

        Not by torch's DistributedDataParallel, which refuses batch norm over processes on a CPU.
        """
        if self._accelerator.num_processes == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        total = self._bench.sum_over_processes(torch.cat([each.flatten() for each in gradients]))
        for each, part in zip(gradients, torch.split(total, [each.numel() for each in gradients]), strict=True):
            each.copy_(part.view_as(each))

    def _validate(self, worker: Worker, log: Log) -> None:
        """Predict the validation part, and remember the weights if they are the best so far."""
        place_M = self._bench.places[VALIDATION]
        logit_MC, _ = worker.predict(place_M)
        found = validation_figures(
            self.classifier, logit_MC, self._bench.target_NC[place_M], self._bench.examples.labels, self.selects_by
        )
        log.metrics(self._state.step, {f"validation_{name}": value for name, value in found.items()})
        value = found[self.selects_by]
        lower = self.selects_by in (*LOWER_IS_BETTER, "loss")
        better = self._state.best is None or (value < self._state.best if lower else value > self._state.best)
        if better:
            self._state = replace(self._state, best=value, best_step=self._state.step, since=self._state.step)
            self._best = states.weights_of(self.classifier)
        shown = "  best so far" if better else ""
        log.say(f"step {self._state.step:,}  validation {self.selects_by} {value:.4f}{shown}")

    def _told_to_stop(self) -> bool:
        """Return whether any process was told to stop."""
        told = torch.tensor(float(self._stop() is not None), device=self._accelerator.device)
        return bool(self._bench.sum_over_processes(told) > 0) if self._accelerator.num_processes > 1 else bool(told)

    def _save(self, optimizer: Any | None) -> None:
        """Write a checkpoint. All processes must call it."""
        files = {MODEL: states.weights_of(self.classifier)}
        if self._best:
            files[BEST] = self._best
        if optimizer is not None:
            files[OPTIMIZER] = states.averages_of(optimizer)
        if self._accelerator.is_main_process:
            states.save(self._settings.out, self._state, files)
        self._accelerator.wait_for_everyone()

    def _trained_text(self, stage: Stage) -> str:
        trained = sum(weight.numel() for weight in self.classifier.parameters() if weight.requires_grad)
        return f"{trained:,} weights in {stage.groups} groups"
