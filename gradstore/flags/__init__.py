"""Flags of the commands, as configurations: each field is a flag and a YAML setting."""
