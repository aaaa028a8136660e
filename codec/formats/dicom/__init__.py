"""DICOM objects: their data elements, where their slices lie, and what their samples mean."""
