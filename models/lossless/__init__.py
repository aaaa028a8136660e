"""The predictive coder's model: prediction, side information and probability tables; no network."""
