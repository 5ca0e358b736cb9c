"""Questions about all samples of a store."""
