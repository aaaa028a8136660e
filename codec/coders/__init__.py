"""Slabs of stored values <-> payloads: one coder a file."""
