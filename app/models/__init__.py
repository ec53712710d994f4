"""Models on demand: one that runs batches, a shelf of further ones, lent GPUs."""
