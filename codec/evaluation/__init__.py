"""Codecs measured beside one another. Nothing that encodes or decodes imports it."""
