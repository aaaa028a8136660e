"""The representation study. Nothing that encodes or decodes imports it."""
