"""Model cards: rendered from the run record and nothing else, without importing torch or transformers."""
