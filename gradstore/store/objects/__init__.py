"""Places where bytes lie: a local folder, or a URL."""
