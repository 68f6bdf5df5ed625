"""What features are worth: probes with honest intervals, and pictures."""
