"""The formats of scans that can be read, and how a .nii.gz is made again."""
