"""A slow decoder of mricodec streams, written from bitstream/FORMAT.md and its pages.

A module a page. It shares the weights files with mricodec and no code.
"""
