"""The default of a run that names neither model nor data: phrases from CLDR and a small multilingual encoder.

The task is generated at run time from the Unicode CLDR data inside `babel` (`phrases`). Two encoders lie here: the
one in `phrase_encoder/`, pre-trained on other items of the same data by `pretraining`, serves that task in seconds;
the one in `encoder/`, pre-trained on running text in 54 languages by `hf-xlt pretrain`, serves real tasks. Nothing is
downloaded. Importing this package loads neither torch, nor transformers, nor babel.
"""

from pathlib import Path

ENCODER_NAME = "hf-xlt-embedded-encoder"
PHRASE_ENCODER_NAME = "hf-xlt-phrase-encoder"
SOURCE_LANGUAGE = "en"
TARGET_LANGUAGES = ("de", "fr", "es", "ru", "tr", "ar", "hi", "ja", "zh", "ko", "sw")
TRAINING_PHRASES = 1200
DEVELOPMENT_PHRASES = 500
TEST_PHRASES = 1000


def encoder_directory() -> Path:
    """Return the folder of the committed encoder for running text, its tokenizer and its card."""
    return Path(__file__).parent / "encoder"


def phrase_encoder_directory() -> Path:
    """Return the folder of the committed encoder for the phrase task, its tokenizer and its card."""
    return Path(__file__).parent / "phrase_encoder"
