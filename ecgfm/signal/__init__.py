"""The signal contract in NumPy: units, resampling, quality, quantisation."""
