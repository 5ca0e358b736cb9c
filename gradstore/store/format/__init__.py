"""What a store consists of: its format, without reading or writing it."""
