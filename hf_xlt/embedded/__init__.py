"""The default of a run that names neither model nor data: phrases from CLDR and a small multilingual encoder.

The text is generated at run time from the Unicode CLDR data inside `babel` (`phrases`); the encoder in `encoder/`
was pre-trained on other items of the same data by `pretraining`. Nothing is downloaded. Importing this package
loads neither torch, nor transformers, nor babel.
"""

from pathlib import Path

ENCODER_NAME = "hf-xlt-embedded-encoder"
SOURCE_LANGUAGE = "en"
TARGET_LANGUAGES = ("de", "fr", "es", "ru", "tr", "ar", "hi", "ja", "zh", "ko", "sw")
TRAINING_PHRASES = 1200
DEVELOPMENT_PHRASES = 500
TEST_PHRASES = 1000


def encoder_directory() -> Path:
    """Return the folder of the committed encoder, its tokenizer and its card."""
    return Path(__file__).parent / "encoder"
