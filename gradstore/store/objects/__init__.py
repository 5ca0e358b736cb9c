"""Storage backends: a local folder or a URL."""
