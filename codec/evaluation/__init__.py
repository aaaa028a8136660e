"""Measuring codecs against each other. Nothing that encodes or decodes imports it."""
