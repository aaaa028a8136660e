"""Folders of scans packed for training."""
