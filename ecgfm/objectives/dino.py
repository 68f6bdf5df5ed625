"""DINO: guess a teacher's classes, which nobody named, from other parts of the same window.

Caron et al. 2021, https://arxiv.org/abs/2104.14294.

Paper says: two global and several local crops, of which the teacher sees the global ones; cross-entropy between the
softmax of the teacher's and the student's head for every pair of different crops; the teacher is a moving average,
momentum 0.996 -> 1 by a cosine; its outputs are centred by a moving average of their mean (0.9) and sharpened, at
temperature 0.04 -> 0.07 over the first 30 of 100 epochs, the student's being 0.1; head of three layers of 2048, 256
and 65,536 prototypes of length 1.
Code says: prototypes have length 1 unless asked otherwise; their gradient is dropped during the first epoch; batch norm
in the head on request, over all crops at once (here over the long ones and the short ones apart).
Ours: crops of time (see _crops.py); the encoder's pooled features in place of a class token; 4096 prototypes by
default, for which a batch of 64 on a CPU has the time; the centre moves once per optimizer step, by the outputs of all
its micro-batches on all ranks; no gradient is dropped.

Shapes: B windows, V long views, S short views, K prototypes, D width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ecgfm.data.batch import Batch
from ecgfm.encoders.base import Encoder
from ecgfm.errors import ConfigError
from ecgfm.nn.collapse import target_entropy, usage_entropy
from ecgfm.nn.gather import num_ranks
from ecgfm.nn.heads import PrototypeHead
from ecgfm.nn.projector import HeadNorm
from ecgfm.objectives._checks import check_counts, check_shares
from ecgfm.objectives._crops import NUM_LONG, MultiCropped, by_window
from ecgfm.objectives.base import Losses, Progress
from ecgfm.schedules import cosine, linear


class DINO(MultiCropped):
    """Match the softmax of a student on all views with that of its moving average on the long ones."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MultiCropped.Config):
        """Settings of DINO."""

        prototypes: int = 4096
        """Classes that student and teacher tell apart, K; the paper's are 65,536."""
        head_hidden: int = 2048
        """Width of the head's hidden layers."""
        head_bottleneck: int = 256
        """Width of the vectors that are compared with the prototypes."""
        head_norm: HeadNorm = "none"
        """After the head's hidden layers. Where windows look alike to the encoder and steps are few, "batch" keeps the
        targets from becoming those of a guess at random (`target_entropy` 1)."""
        momentum: tuple[float, float] = (0.996, 1.0)
        """Of the teacher's moving average, at the schedule's start and end."""
        student_temperature: float = 0.1
        """What the student's cosines are divided by."""
        teacher_temperature: tuple[float, float] = (0.04, 0.07)
        """What the teacher's are divided by, at the schedule's start and from the end of its warm-up on."""
        temperature_warmup_share: float = 0.3
        """Share of the schedule in which the teacher's temperature rises."""
        center_momentum: float = 0.9
        """Of the mean of the teacher's cosines, which is subtracted from them."""

        def __post_init__(self) -> None:
            super().__post_init__()
            check_counts(self, "head_hidden", "head_bottleneck")
            if self.prototypes < 2:
                raise ConfigError(f"--objective.prototypes must be at least 2, got {self.prototypes}")
            check_shares(self, "momentum", "center_momentum", "temperature_warmup_share")
            if not min(self.student_temperature, *self.teacher_temperature) > 0.0:
                raise ConfigError("--objective.student-temperature and -teacher-temperature must be above 0")

    config: Config
    center_K: Tensor

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = PrototypeHead(
            encoder.config.width, config.head_hidden, config.head_bottleneck, config.prototypes, config.head_norm
        )
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("center_K", torch.zeros(config.prototypes))
        self._seen: list[Tensor] = []
        self._seen_in = -1

    def forward(self, batch: Batch, at: Progress) -> Losses:
        """Cross-entropy over all pairs of a long view of the teacher and another view of the student.

        Args:
            batch: `views_BVLT`, and `short_BSLT` where there are short views.
            at: Where the run stands.

        Returns:
            `loss`, a scalar; at measured steps also the figures of nn/collapse.py, of the teacher: of its tokens and
            features, and `target_entropy` and `usage_entropy` of its softmax.
        """
        assert batch.views_BVLT is not None
        config = self.config
        with torch.no_grad():
            tokens, features, cosines_BVK = _encode(self.teacher, self.teacher_head, batch.views_BVLT)
            self._see(cosines_BVK, at)
            target_BVK = ((cosines_BVK - self.center_K) / self._teacher_temperature(at)).softmax(dim=2)
        guesses = [_encode(self.encoder, self.head, batch.views_BVLT)[2]]
        if batch.short_BSLT is not None:
            guesses.append(_encode(self.encoder, self.head, batch.short_BSLT)[2])
        log_guess_BVK = (torch.cat(guesses, dim=1) / config.student_temperature).log_softmax(dim=2)
        # Of each target with all guesses but that of the same view: by the sum of the others, elementwise in float32,
        # where a matrix product under autocast would round.
        others_BVK = log_guess_BVK.sum(dim=1, keepdim=True) - log_guess_BVK[:, :NUM_LONG]
        pairs = NUM_LONG * (log_guess_BVK.shape[1] - 1)
        losses = {"loss": -(target_BVK * others_BVK).sum(dim=(1, 2)).mean() / pairs}
        if at.measure:
            first, second = features.unbind(1)
            losses |= self.figures(tokens[:, 0], first, second)
            losses["target_entropy"] = target_entropy(target_BVK.flatten(0, 1))
            losses["usage_entropy"] = usage_entropy(target_BVK.flatten(0, 1))
        return losses

    def _teacher_temperature(self, at: Progress) -> float:
        warmup_steps = round(self.config.temperature_warmup_share * at.schedule_steps)
        start, end = self.config.teacher_temperature
        return linear(at.step, warmup_steps, start, end) if warmup_steps else end

    # torch.compile takes a number of the module for a constant, and would compile the forward anew at each step.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _see(self, cosines_BVK: Tensor, at: Progress) -> None:
        """Keep what the centre will move by; of a step that was dropped, nothing is left."""
        if not self.training:
            return
        if self._seen_in != at.step:
            self._seen, self._seen_in = [], at.step
        self._seen.append(cosines_BVK.mean(dim=(0, 1)))

    def after_step(self, at: Progress) -> dict[str, float]:
        """Move the centre by the mean of this step's outputs. All ranks must call it."""
        assert self._seen and self._seen_in == at.step, "a step is finished after its forward"
        mean_K = torch.stack(self._seen).mean(dim=0)
        self._seen = []
        if num_ranks() > 1:
            dist.all_reduce(mean_K)
            mean_K /= num_ranks()
        self.center_K.lerp_(mean_K, 1.0 - self.config.center_momentum)
        return {"teacher_temperature": self._teacher_temperature(at)}

    def averages(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        """Return the teacher's encoder and head, which follow the student's."""
        return ((self.teacher, self.encoder), (self.teacher_head, self.head))

    def momentum(self, at: Progress) -> float:
        """Return the momentum of a step, on half a cosine from the first to the last."""
        return cosine(at.step, at.schedule_steps, *self.config.momentum)

    def published(self) -> Encoder:
        """Return the teacher's encoder, which is ahead of the student's all through the training (section 5.2)."""
        return self.teacher


def _encode(encoder: Encoder, head: PrototypeHead, views_BVLT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, shape (B, V, N, D), features, (B, V, D), and the head's cosines, (B, V, K), in float32."""
    tokens, features = encoder.encode(views_BVLT.flatten(0, 1))
    views = views_BVLT.shape[1]
    return by_window(tokens, views), by_window(features, views), by_window(head(features).float(), views)
