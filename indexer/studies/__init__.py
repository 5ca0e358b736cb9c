"""What a store's influences say beside rankings."""
