"""DICOM series: read, encoded, restored, derived, de-identified, wrapped (README.md)."""
