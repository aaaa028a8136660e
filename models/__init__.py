"""Networks and their integer arithmetic: arrays in, integer symbols and probability-table indices out, and back."""

import os

# OpenMP reads this when torch is loaded, which no module outside this package does before. Threads that spin while they wait
# take ten times the processor's time, and eight times as long, on a machine that does other work too.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
