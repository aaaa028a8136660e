"""Where the tests' files lie."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DATA = TESTS / "data"  # Small real scans; see NOTICE for where they come from.
DICOM = DATA / "dicom"
VECTORS = TESTS / "vectors" / "v1"
SAMPLE = ROOT / "codec" / "sample" / "brain_t1w.nii.gz"
