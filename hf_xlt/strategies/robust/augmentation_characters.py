"""Character noise: one character of some words is inserted, deleted or replaced.

After Aepli and Sennrich, "Improving Zero-Shot Cross-lingual Transfer Between Closely Related Languages by Injecting
Character-level Noise" (Findings of ACL 2022), which helps targets that share script and much of their vocabulary with
the source. The paper's rate and alphabet could not be checked; here:
- each word that holds a letter is changed with the given probability, by one of the three operations, all as likely
  as each other; a word of one letter is never deleted;
- characters that come in are drawn from the letters of the training text of the same language, as often as they occur
  there, so that a letter of a foreign name stays rare.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from hf_xlt.data.rewriting import TEXT_ROLES, WordAugmenter
from hf_xlt.errors import ConfigError

OPERATIONS = ("insert", "delete", "replace")


class CharacterAugmenter(WordAugmenter):
    """Changes one character in a share of the words."""

    def __init__(self, rate: float = 0.1, alphabet: Mapping[str, int] | None = None) -> None:
        """Set the rate.

        Args:
            rate: share of words that are changed, above 0 and at most 1.
            alphabet: letters that may come in, with how often; `fit` counts those of the training text. Empty until
                then, and words are then only ever shortened.

        Raises:
            ConfigError: the rate is out of range.
        """
        if not 0 < rate <= 1:
            raise ConfigError(f"`character_rate` is {rate!r}; it must be above 0 and at most 1.")
        self.rate = rate
        # Sorted, so that draws do not depend on the order of the rows.
        self.letters = sorted(alphabet or ())
        self.weights = list(itertools.accumulate((alphabet or {})[letter] for letter in self.letters))

    def fit(self, rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> CharacterAugmenter:
        """Return an augmenter whose alphabet is the letters of some rows."""
        counts: Counter[str] = Counter()
        for row in rows:
            for role in (*TEXT_ROLES, "context", "tokens"):
                value = row.get(columns.get(role)) or ()
                for text in (value,) if isinstance(value, str) else value:
                    counts.update(text if isinstance(text, str) else ())
        return CharacterAugmenter(self.rate, {letter: count for letter, count in counts.items() if is_letter(letter)})

    def rewrite(self, word: str, random: Random, *, one_word: bool) -> str:
        """Change one letter of the word, or leave it."""
        places = [place for place, character in enumerate(word) if is_letter(character)]
        if not places or random.random() >= self.rate:
            return word
        operation, place = random.choice(OPERATIONS), random.choice(places)
        if operation == "delete" and len(places) > 1:
            return word[:place] + word[place + 1 :]
        if operation == "replace" and set(self.letters) - {word[place]}:
            return word[:place] + self._draw(random, word[place]) + word[place + 1 :]
        if not self.letters:
            return word
        # Before or after the letter: every gap beside one can be filled, the ends included.
        place += random.randrange(2)
        return word[:place] + self._draw(random) + word[place:]

    def _draw(self, random: Random, other_than: str = "") -> str:
        letter = other_than
        while letter == other_than:
            letter = random.choices(self.letters, cum_weights=self.weights)[0]
        return letter


def is_letter(character: str) -> bool:
    """Say whether a character is a letter or a mark on one, such as a vowel sign."""
    return unicodedata.category(character)[0] in "LM"
