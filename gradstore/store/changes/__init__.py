"""Changes of a store that stands, over one commit protocol."""
