"""Streams in other tools, and trees of scans."""
