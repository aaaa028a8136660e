"""The lossy models: networks, transforms, entropy models, and the order of what they code."""
