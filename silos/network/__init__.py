"""A hospital's way to its coordinator: the keys by which it is known, and whether the way is open."""
