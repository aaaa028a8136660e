"""`python -m mricodec.cli`."""

from .main import main

main()
