"""Passes over memory that torch would make several of: each a Triton kernel beside its reference in plain torch."""
