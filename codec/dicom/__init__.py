"""DICOM series: read, never re-serialised; encoded, restored, derived, cleaned."""
