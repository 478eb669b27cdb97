"""Plain text by language, from files or the Hub, as tokenizer training and language statistics read it.

Every source is read whole into memory; streams are not read here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hf_xlt.data.patterns import parse_language_map
from hf_xlt.data.sources import Source, make_source
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.languages import check_code

ALL = "all"


@dataclass(frozen=True)
class LanguageText:
    """One language's documents.

    Attributes:
        language: its code.
        sources: shareable names of where the text comes from; never a local path.
        documents: the texts, none of them empty.
    """

    language: str
    sources: tuple[str, ...]
    documents: tuple[str, ...]

    @cached_property
    def size(self) -> int:
        """Size in bytes of UTF-8."""
        return sum(utf8_size(document) for document in self.documents)


def utf8_size(text: str) -> int:
    """Return the size of a text in bytes of UTF-8."""
    return len(text.encode())


def read_texts(
    specs: Sequence[str],
    languages: str = ALL,
    *,
    split: str = "train",
    text_column: str = "text",
    language_column: str | None = None,
    language_map: Sequence[str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, LanguageText]:
    """Read the text of every language from all sources that have it.

    Args:
        specs: patterns such as `DIR/{lang}.parquet`, files, or Hub ids; see `make_source`.
        languages: codes separated by commas, or `all` that the sources have.
        split: the split to read.
        text_column: column of the text.
        language_column: column of the language, where the pattern has no `{lang}`.
        language_map: `NAME=CODE` of languages that the data call by name.
        tell: called with what lies there and is not used, in sentences.

    Returns:
        Texts by language code: as asked for, or sorted.

    Raises:
        ConfigError: no source, a source without files, an unknown language, no such column, or no text.
    """
    if not specs:
        raise ConfigError(
            f"no text: give {setting('text')} with a pattern such as `DIR/{{lang}}.parquet` or a Hub id."
        )
    names = parse_language_map(language_map)
    sources = [make_source(spec, language_column, split, names) for spec in specs]
    found = [_languages(source, spec, split) for source, spec in zip(sources, specs, strict=True)]
    known = sorted({code for codes in found for code in codes})
    if languages.strip() == ALL and tell is not None:
        for sentence in dict.fromkeys(sentence for source in sources for sentence in source.left_out(split)):
            tell(sentence)
    return {
        code: _read_language(
            code, [source for source, codes in zip(sources, found, strict=True) if code in codes], split, text_column
        )
        for code in _wanted(languages, known)
    }


def _languages(source: Source, spec: str, split: str) -> list[str]:
    codes = source.languages(split)
    if not codes:
        there = " ".join(["", *source.left_out(split)])
        raise ConfigError(
            f"no file fits `{spec}` (split `{split}`).{there} Check the pattern, or name the split with "
            f"{setting('text_split')}."
        )
    return codes


def _wanted(languages: str, known: Sequence[str]) -> list[str]:
    if languages.strip() == ALL:
        return list(known)
    codes = list(dict.fromkeys(check_code(code.strip()) for code in languages.split(",") if code.strip()))
    if not codes:
        raise ConfigError(f"{setting('languages')} is empty; give codes separated by commas, or `all`.")
    for code in codes:
        if code not in known:
            raise ConfigError(
                f"language `{code}` has no text in {setting('text')}.{close_match(code, known)} "
                f"Languages there: {', '.join(known)}."
            )
    return codes


def _read_language(code: str, sources: Sequence[Source], split: str, text_column: str) -> LanguageText:
    documents: list[str] = []
    for source in sources:
        table = source.read(code, split)
        if text_column not in table.column_names:
            raise ConfigError(
                f"`{source.name}`, language `{code}`, must contain a `{text_column}` column; it has "
                f"{', '.join(table.column_names)}. Name the column of the text with {setting('text_column')}."
            )
        values = table.with_format("arrow")[:][text_column].to_pylist()
        wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
        if wrong is not None:
            raise ConfigError(
                f"`{source.name}`, language `{code}`: column `{text_column}` holds {type(wrong).__name__} values; "
                f"it must hold text. Name the column of the text with {setting('text_column')}."
            )
        documents += [value for value in values if value and not value.isspace()]
    if not documents:
        raise ConfigError(f"language `{code}` has no text in {setting('text')}: all rows are empty. Leave it out.")
    return LanguageText(code, tuple(dict.fromkeys(source.name for source in sources)), tuple(documents))
