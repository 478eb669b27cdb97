"""RS-DA: randomized smoothing with data augmentation, by substituting words with neighbours from a table.

After Huang et al. (2021) and the code that its authors published. There each word w becomes a uniform draw from {w}
and its neighbours, independently of the others: with k neighbours it is replaced with probability k / (k + 1). No
table comes with this package; `examples/wordnet_neighbours.py` makes one.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Literal

from hf_xlt.data.rewriting import WordAugmenter
from hf_xlt.errors import ConfigError, shortened

NeighbourFilter = Callable[[str], bool]
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class SynonymAugmenter(WordAugmenter):
    """Replaces each word by a uniform draw from itself and its neighbours.

    Attributes:
        neighbours: the neighbours of each word that has any, without the word itself and without repetitions.
    """

    def __init__(
        self,
        table: Mapping[str, list[str]] | str | Path,
        lookup: Literal["exact", "casefold"] = "exact",
        neighbour_filter: NeighbourFilter | str | None = None,
    ) -> None:
        """Read a table.

        Args:
            table: `{word: [neighbour, ...]}`, or the path of a JSON file of that shape.
            lookup: `exact` splits at single blanks and looks words up as they stand, as the authors' code does: case
                and punctuation count. `casefold` splits at white space, lower-cases, leaves punctuation at both ends
                out of the look-up, and gives the neighbour the word's case and punctuation.
            neighbour_filter: keeps a neighbour where it says True: a function of the neighbour, `package.module:name`
                of one, or the path of a list of words to keep, one to a line, in any case.

        Raises:
            ConfigError: the table or the filter cannot be used.
        """
        if lookup not in ("exact", "casefold"):
            raise ConfigError(f"`lookup` is {lookup!r}; choose one of exact, casefold.")
        self.folds = lookup == "casefold"
        self.words = re.compile(r"\S+" if self.folds else r"[^ ]+")
        keep = load_filter(neighbour_filter) if isinstance(neighbour_filter, str) else neighbour_filter
        collected: dict[str, dict[str, None]] = {}
        for word, neighbours in read_table(table).items():
            own = word.lower() if self.folds else word
            others = (other for other in neighbours if (other.lower() if self.folds else other) != own)
            kept = dict.fromkeys(other for other in others if keep is None or keep(other))
            if kept:
                collected.setdefault(own, {}).update(kept)
        self.neighbours = {word: tuple(others) for word, others in collected.items()}

    def rewrite(self, word: str, random: Random, *, one_word: bool) -> str:
        """Draw from a word and its neighbours; as `one_word` only from those without white space."""
        before, core, after = _split_punctuation(word) if self.folds else ("", word, "")
        choices = self.neighbours.get(core.lower() if self.folds else core, ())
        if one_word:
            choices = [choice for choice in choices if not any(character.isspace() for character in choice)]
        if not choices:
            return word
        number = random.randrange(len(choices) + 1)
        if number == len(choices):
            return word
        return before + _with_case_of(core, choices[number]) + after if self.folds else choices[number]

    def describe(self) -> str:
        """Say how large the table is, after filtering."""
        return f"{len(self.neighbours):,} words with {sum(map(len, self.neighbours.values())):,} neighbours"


def _split_punctuation(word: str) -> tuple[str, str, str]:
    """Split a word into punctuation and symbols, what is between, and punctuation and symbols."""
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start])[0] in "PS":
        start += 1
    while end > start and unicodedata.category(word[end - 1])[0] in "PS":
        end -= 1
    return word[:start], word[start:end], word[end:]


def _with_case_of(model: str, word: str) -> str:
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def read_table(table: Mapping[str, list[str]] | str | Path) -> Mapping[str, list[str]]:
    """Return a table of neighbours, read from a JSON file where a path is given.

    Raises:
        ConfigError: the file is missing or no JSON, or the table is not `{word: [neighbour, ...]}`.
    """
    name = "the neighbour table"
    if isinstance(table, (str, Path)):
        name = f"neighbour table `{table}`"
        try:
            table = json.loads(Path(table).read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise ConfigError(
                f"{name} is missing; `examples/wordnet_neighbours.py` makes one from WordNet."
            ) from error
        except OSError as error:
            raise ConfigError(f"{name} cannot be read: {error.strerror}. Give a JSON file.") from error
        except ValueError as error:
            raise ConfigError(f"{name} is no JSON in UTF-8: {error}") from error
    shape = 'It must be of the form {"word": ["neighbour", ...], ...}.'
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name} is a {type(table).__name__}. {shape}")
    for word, neighbours in table.items():
        good = isinstance(neighbours, (list, tuple)) and all(isinstance(other, str) and other for other in neighbours)
        if not isinstance(word, str) or not good:
            raise ConfigError(f"{name} gives {word!r} the neighbours {shortened(neighbours)}. {shape}")
    return table


def load_filter(spec: str) -> NeighbourFilter:
    """Return the filter that `package.module:name`, or the path of a list of words, stands for.

    Raises:
        ConfigError: there is no such function or file.
    """
    if not Path(spec).is_file() and _FUNCTION.fullmatch(spec):
        module, name = spec.split(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"neighbour filter `{spec}` cannot be imported: {error}. Install its package, or add its folder to "
                "PYTHONPATH."
            ) from error
        if not callable(function):
            raise ConfigError(f"neighbour filter `{spec}` is no function; it must map a neighbour to True or False.")
        return function
    try:
        lines = Path(spec).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"neighbour filter `{spec}` is neither a readable list of words, one to a line, nor `package.module:name`."
        ) from error
    known = {line.strip().lower() for line in lines if line.strip()}
    return lambda neighbour: neighbour.lower() in known


def shareable_name(spec: str) -> str:
    """Name a table or filter without saying where it lies: its file name and a hash, or the function."""
    path = Path(spec)
    if not path.is_file():
        return spec if _FUNCTION.fullmatch(spec) else path.name
    return f"{path.name} (sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]})"
