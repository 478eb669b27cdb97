"""A smaller vocabulary for good: the tokens that some text needs, with their rows in embeddings and heads."""
