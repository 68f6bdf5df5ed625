"""One file per task that a pretrained encoder is evaluated on; see `base`."""
