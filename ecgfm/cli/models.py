"""What `embed` and `predict` compute, over whichever files there are."""

from __future__ import annotations

import re
from pathlib import Path

from ecgfm import __version__
from ecgfm.cli.commands import Embed, OverFiles, Predict
from ecgfm.cli.over_files import Batch, Model, over_files
from ecgfm.cli.tables import ENDINGS, Values
from ecgfm.errors import ConfigError
from ecgfm.hub.classifier import ECGClassifier
from ecgfm.hub.digest import weights_sha256
from ecgfm.hub.encoder import ECGEncoder


def embed(settings: Embed) -> None:
    """Write features."""
    check_out(settings)
    encoder = ECGEncoder.from_pretrained(settings.encoder, revision=settings.revision, map_location=settings.device)

    def compute(batch: Batch) -> Values:
        features_RD = encoder.embed(
            batch.signals, rate_hz=batch.rate_hz, leads=batch.leads, unit=batch.unit, batch_size=settings.batch_size
        )
        return features_RD.cpu().numpy()

    # The names that ECGFeatures gives.
    columns = tuple(f"ecg{number}" for number in range(encoder.encoder.config.width))
    over_files(
        settings,
        Model(
            compute=compute,
            preprocessor=encoder.preprocessor,
            columns=columns,
            what="features",
            about=_about(settings.encoder, encoder, encoder.revision),
        ),
    )


def predict(settings: Predict) -> None:
    """Write probabilities, or values of a regression."""
    check_out(settings)
    classifier = ECGClassifier.from_pretrained(
        settings.classifier, revision=settings.revision, map_location=settings.device
    )
    regression = classifier.kind == "regression"

    def compute(batch: Batch) -> Values:
        ask = classifier.predict_logits if regression else classifier.predict_proba
        values_RC = ask(
            batch.signals, rate_hz=batch.rate_hz, leads=batch.leads, unit=batch.unit, batch_size=settings.batch_size
        )
        return values_RC.cpu().numpy()

    over_files(
        settings,
        Model(
            compute=compute,
            preprocessor=classifier.encoder.preprocessor,
            columns=classifier.labels,
            what="values" if regression else "probabilities",
            about=_about(settings.classifier, classifier, classifier.revision),
        ),
    )


def check_out(settings: OverFiles) -> None:
    """Refuse a table that cannot be written before anything is computed.

    Raises:
        ConfigError: Its ending is unknown, or it exists.
    """
    out = settings.out
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--out {out} must end in {', '.join(ENDINGS)}")
    if out.is_dir() or (out.exists() and not settings.overwrite):
        raise ConfigError(f"--out {out} exists; give another name, or --overwrite")


def _about(name: str, model: ECGEncoder | ECGClassifier, revision: str | None) -> dict[str, str]:
    """Return what tells later which model made a table."""
    # A folder is a folder on this machine only: its weights' hash says which it was.
    known = name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and revision else Path(name).name
    return {
        "ecgfm": __version__,
        "model": known,
        "revision": revision or "",
        "weights_sha256": weights_sha256(model),
    }
