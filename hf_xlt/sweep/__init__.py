"""Several runs by one command: other seeds, other settings, a head that they share, and the average over them."""
