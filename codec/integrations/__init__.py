"""Streams in nibabel and pydicom, and trees of scans."""
