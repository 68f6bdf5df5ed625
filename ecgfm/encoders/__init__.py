"""One file per encoder; see `base`."""
