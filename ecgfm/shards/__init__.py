"""Shards: int16 records in WebDataset tars, with a manifest that says what they are."""
