"""From a dataset and checkpoints to the rows of a store."""
