"""One module or package per strategy; each ends in `STRATEGY = Strategy(...)`."""
