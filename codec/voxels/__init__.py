"""Stored values: their maps to integer samples, noise, quality, distortion, background, preview."""
