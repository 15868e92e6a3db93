"""A hospital's yes or no to a study: what is asked in words, what a person said, and where it stands written."""
