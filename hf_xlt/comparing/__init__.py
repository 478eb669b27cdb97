"""Comparing finished runs: means over seeds, paired differences, and whether they are more than noise."""
