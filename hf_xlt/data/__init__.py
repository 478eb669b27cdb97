"""Data by role and language: where they lie, how they are read, which examples are few shots."""
