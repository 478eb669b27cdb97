"""Cross-lingual pre-training: text in many languages, its mixture, masking, and the objectives."""
