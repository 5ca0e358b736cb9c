"""Changes of an existing store, with one commit protocol."""
