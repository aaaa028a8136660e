"""Training of models, and their export. Nothing that encodes or decodes imports it."""
