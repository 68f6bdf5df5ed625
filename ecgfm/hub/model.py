"""What published models have in common: a card, reference outputs to test themselves with, and the way to the Hub."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from torch import Tensor, nn

from ecgfm.errors import ContractError
from ecgfm.hub import reference
from ecgfm.hub.card import renamed
from ecgfm.hub.fetch import REPOSITORY, cannot_write
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

    @abc.abstractmethod
    def _reference_outputs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return by name what the model gives for the recordings among these tensors."""

    @abc.abstractmethod
    def _card_text(self, name: str) -> str:
        """Return the card that it was loaded with, or a new one."""
