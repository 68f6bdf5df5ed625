"""What published models have in common: a card, reference outputs to test themselves with, and the way to the Hub."""

from __future__ import annotations

import abc
import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from ecgfm.errors import ConfigError, ContractError
from ecgfm.hub import reference
from ecgfm.hub.card import renamed
from ecgfm.hub.fetch import CONFIG, README, REPOSITORY, WEIGHTS, Fetched, cannot_write, whole
from ecgfm.hub.reference import REFERENCE, SelfTest


class HubModel(nn.Module, PyTorchModelHubMixin):
    """A model with four files: weights, config.json, card and reference tensors."""

    card: str | None = None
    """Text of the model card; None writes one from the settings."""
    revision: str | None = None
    """Commit on the Hub that it was loaded from; None of a folder."""
    reference: dict[str, Tensor] | None = None
    """What `self_test` compares with; None where no reference tensors lie beside the weights."""

    def self_test(self) -> SelfTest:
        """Compare what the model gives for the recordings beside the weights with what was saved.

        Returns:
            The difference, and the tolerance, which is wider for weights of 16 bits and on a GPU.

        Raises:
            ContractError: There is nothing to compare with, or it is not the same.
        """
        if self.reference is None:
            raise ContractError(f"there is no {REFERENCE} beside the weights; save_pretrained writes one")
        return reference.compare(self, self.reference, self._reference_outputs(self.reference))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the four files; the card's example then names `repo_id`. See huggingface_hub's mixin for the options.

        Raises:
            ContractError: The Hub refuses the name or the token.
        """
        if not REPOSITORY.fullmatch(repo_id):
            raise ContractError(f"{repo_id!r} is not a name on the Hub; give owner/name")
        before = self.card
        self.card = renamed(self._card_text(repo_id), repo_id)
        try:
            return str(super().push_to_hub(repo_id, **options))
        except LocalTokenNotFoundError as error:
            raise ContractError(f"{repo_id} cannot be written: nobody is logged in; run `hf auth login`") from error
        except (HfHubHTTPError, HFValidationError) as error:
            raise cannot_write(repo_id, error) from error
        finally:
            self.card = before

    def _take_from(self, found: Fetched) -> None:
        """Take what lies beside the weights of a model that was fetched."""
        if README in found.paths:
            self.card = found.paths[README].read_text(encoding="utf-8")
        if REFERENCE in found.paths:
            self.reference = reference.read_reference(found.paths[REFERENCE])
        self.revision = found.revision

    def _write(self, folder: Path, settings: Mapping[str, Any], weights: nn.Module) -> None:
        """Write all four files, each whole or not at all; the mixin leaves alone what is there.

        Args:
            folder: Where.
            settings: Of config.json.
            weights: The module whose weights are saved.
        """
        state = {name: weight.detach().cpu().contiguous() for name, weight in weights.state_dict().items()}
        with whole(folder / WEIGHTS) as path:
            save_file(state, path, metadata={"format": "pt"})
        for name, text in (
            (CONFIG, json.dumps(settings, indent=1) + "\n"),
            (README, self._card_text(folder.name)),
        ):
            with whole(folder / name) as path:
                path.write_text(text, encoding="utf-8")
        # What a loader gets to see: the weights in float32, on a CPU.
        plain = copy.deepcopy(self).to("cpu", torch.float32)
        try:
            outputs = plain._reference_outputs({reference.RECORDINGS: torch.from_numpy(reference.recordings_RLT())})
        except ConfigError as error:
            warnings.warn(f"{REFERENCE} is left out, self_test will not work: {error}", stacklevel=3)
            return
        reference.write_reference(folder / REFERENCE, outputs)

    @abc.abstractmethod
    def _reference_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return by name what the model gives for the recordings among these tensors."""

    @abc.abstractmethod
    def _card_text(self, name: str) -> str:
        """Return the card that it was loaded with, or a new one."""
