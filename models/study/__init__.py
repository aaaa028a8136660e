"""The networks of the representation study; the product does not need them."""
