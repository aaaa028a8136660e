"""The networks of the representation study. Nothing that encodes or decodes by default needs
them.
"""
