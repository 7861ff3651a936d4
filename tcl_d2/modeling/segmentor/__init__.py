"""From words and windows to labels: the base of all methods."""
