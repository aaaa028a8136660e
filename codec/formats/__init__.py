"""The scan formats that can be read, and how a .nii.gz is compressed to the same bytes again."""
