"""What is known and done of stored values: maps to integers, noise, quality, errors."""
