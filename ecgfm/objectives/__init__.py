"""One file per objective; see `base`."""
