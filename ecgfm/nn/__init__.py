"""Layers that timm and torch do not have in the form the papers use."""
