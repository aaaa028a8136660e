"""The representation study. Nothing that encodes or decodes imports it."""

from mricodec.models.extras import require_torch

require_torch("the representation study")
