"""One file per public database; see `base`."""
