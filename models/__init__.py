"""Networks and their integer arithmetic: arrays in, integer symbols and probability-table indices out, and back."""
