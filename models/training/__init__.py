"""Training: loops, and the export of what was trained. Nothing that encodes or decodes imports
it.
"""
