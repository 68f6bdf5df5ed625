"""Encoders of this package under `transformers.AutoModel`, without code from the Hub.

    import ecgfm.hub.transformers  # once
    model = transformers.AutoModel.from_pretrained("someone/ecg-jepa-vit-s")
    features_BD = model(signal_BLT).pooler_output

`transformers` finds a model by the `model_type` of its config.json, and knows those that are registered; it looks for
no plug-ins, so the import cannot be left out unless the user accepts code from the Hub (`trust_remote_code`), which
we neither publish nor need. Weights, checks and refusals are those of `ECGEncoder.from_pretrained`.

Shapes: B windows, L leads, T samples, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ecgfm.errors import ConfigError
from ecgfm.hub.encoder import MODEL_TYPE, ECGEncoder

try:
    from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPooling
except ModuleNotFoundError as missing:
    raise ConfigError("ecgfm.hub.transformers needs transformers: pip install transformers") from missing


class ECGConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """What our config.json says, as transformers reads it."""

    model_type = MODEL_TYPE

    def __init__(self, encoder: Any = None, signal: Any = None, ecgfm: Any = None, **others: Any) -> None:
        self.encoder = encoder
        self.signal = signal
        self.ecgfm = ecgfm
        super().__init__(**others)


class ECGModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An encoder as transformers has models."""

    config_class = ECGConfig
    main_input_name = "signal_BLT"

    def __init__(self, config: ECGConfig) -> None:
        super().__init__(config)
        self.model = ECGEncoder(encoder=config.encoder, signal=config.signal, ecgfm=config.ecgfm)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers names what this does not honour
        cls, name_or_folder: Any, *args: Any, config: Any = None, **options: Any
    ) -> Any:
        """Return the encoder of a folder or of the Hub; of transformers' options those of the Hub count.

        Raises:
            ContractError: As `ECGEncoder.from_pretrained`.
        """
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        encoder = ECGEncoder.from_pretrained(
            name_or_folder, **{name: options[name] for name in known if options.get(name) is not None}
        )
        from ecgfm.config import to_dict

        settings = ECGConfig(encoder=to_dict(encoder.encoder.config), signal=to_dict(encoder.signal))
        settings.name_or_path = str(name_or_folder)
        model = cls(settings)
        model.model = encoder
        return model.eval()  # type: ignore[no-untyped-call]

    def save_pretrained(self, save_directory: Any, **ignored: Any) -> None:  # type: ignore[override]
        """Write what `ECGEncoder.save_pretrained` writes, which `from_pretrained` reads back."""
        self.model.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload it; see `ECGEncoder.push_to_hub`."""
        return str(self.model.push_to_hub(repo_id, **options))

    def forward(self, signal_BLT: Tensor, **ignored: Any) -> BaseModelOutputWithPooling:
        """Return tokens_BND as `last_hidden_state` and features_BD as `pooler_output`.

        Args:
            signal_BLT: Millivolt, as `ECGPreprocessor.windows` gives it.
            ignored: What transformers' own callers pass to every model.
        """
        tokens_BND, features_BD = self.model.encode(signal_BLT)
        return BaseModelOutputWithPooling(last_hidden_state=tokens_BND, pooler_output=features_BD)


AutoConfig.register(MODEL_TYPE, ECGConfig, exist_ok=True)
AutoModel.register(ECGConfig, ECGModel, exist_ok=True)
