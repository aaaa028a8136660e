"""From a scan to a stream and back."""
