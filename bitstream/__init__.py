"""Bytes <-> integers: the container, its sections, the entropy coder. Knows no network and no file format."""
