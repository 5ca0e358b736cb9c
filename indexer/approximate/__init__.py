"""Search indexes: candidates from codes in memory, scores from the store."""
