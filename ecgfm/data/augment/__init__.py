"""Augmentations of whole batches, on the device: one file per family."""
