"""What differs from architecture to architecture: limits of the input, settings of the head, names of the weights."""
