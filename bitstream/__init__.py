"""Bytes <-> integers: container, sections, entropy coder. Knows no network and no file format."""
