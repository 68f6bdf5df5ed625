"""From shards to batches: order, windows, masks, and the one pass that normalises."""
