"""Parallel sentences by language: two columns of one file, or files of several languages joined by an id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_xlt.data.patterns import parse_language_map
from hf_xlt.data.sources import EMBEDDED, Source, make_source
from hf_xlt.errors import ConfigError, close_match, setting
from hf_xlt.languages import check_code, same_language


@dataclass(frozen=True)
class ParallelSet:
    """Sentences of one language and their translations; row i of one side is row i of the other.

    Attributes:
        language: code of `texts`.
        texts: sentences of the language.
        translations: the same in the other language.
        left_out: rows that had no partner.
    """

    language: str
    texts: tuple[str, ...]
    translations: tuple[str, ...]
    left_out: int = 0


def read_parallel(
    spec: str,
    split: str,
    languages: str = "all",
    *,
    text_column: str = "text",
    pair_column: str = "text_en",
    id_column: str | None = None,
    source_language: str = "en",
    language_column: str | None = None,
    language_map: Sequence[str] | None = None,
) -> tuple[Source, list[ParallelSet]]:
    """Read parallel sentences by language.

    Args:
        spec: pattern, file or Hub id, as for `hf-xlt run`.
        split: split to read.
        languages: codes separated by commas, or `all`.
        text_column: column of the texts.
        pair_column: column of their translations, row by row; not read with `id_column`.
        id_column: column that joins each language's rows with those of `source_language`; None takes `pair_column`.
        source_language: the other side of a join.
        language_column: column of the language, where files or configurations do not tell it.
        language_map: `NAME=CODE` of languages that the data call by name.

    Returns:
        The source, and one set per language in the order asked.

    Raises:
        ConfigError: the data cannot be used.
    """
    if spec == EMBEDDED:
        raise ConfigError(
            f"the embedded task is no set of parallel sentences; give {setting('dataset')} a pattern or a Hub id."
        )
    source = make_source(spec, language_column, split, parse_language_map(language_map))
    known = source.languages(split)
    if not known:
        there = " ".join(["", *source.left_out(split)])
        raise ConfigError(
            f"no file fits `{spec}` for the split `{split}`.{there} Check the pattern, or name the {setting('split')}."
        )
    wanted = _wanted_languages(languages, known, source_language if id_column else None)
    if id_column is None:
        return source, [
            ParallelSet(code, *_columns(source, code, split, (text_column, pair_column))) for code in wanted
        ]
    if source_language not in known:
        raise ConfigError(
            f"source language `{source_language}` has no `{split}` split.{close_match(source_language, known)} "
            f"Languages there: {', '.join(known)}. Name another with {setting('source_language')}."
        )
    others = _by_id(source, source_language, split, id_column, text_column)
    return source, [
        _join(code, _by_id(source, code, split, id_column, text_column), others, source_language) for code in wanted
    ]


def _wanted_languages(asked: str, known: Sequence[str], without: str | None) -> list[str]:
    if asked == "all":
        wanted = [code for code in known if without is None or not same_language(code, without)]
    else:
        wanted = list(dict.fromkeys(check_code(code.strip()) for code in asked.split(",") if code.strip()))
    for code in wanted:
        if code not in known:
            raise ConfigError(
                f"language `{code}` is not in the data.{close_match(code, known)} Languages there: {', '.join(known)}."
            )
        if code == without:
            raise ConfigError(f"`{code}` is the source language; leave it out of {setting('languages')}.")
    if not wanted:
        raise ConfigError(
            f"no language to score: {setting('languages')} is {asked!r}; languages there: {', '.join(known)}."
        )
    return wanted


def _columns(source: Source, language: str, split: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    table = source.read(language, split)
    where = f"{source.name} ({language}, {split})"
    for name in names:
        if name not in table.column_names:
            raise ConfigError(
                f"{where} must contain a `{name}` column; it has {', '.join(table.column_names)}. Name it with "
                f"{setting('text_column')} or {setting('pair_column')}, or join files of several languages with "
                f"{setting('id_column')}."
            )
    if len(table) == 0:
        raise ConfigError(f"{where} is empty; leave the language out of {setting('languages')}.")
    columns = [tuple(table[name]) for name in names]
    for name, values in zip(names, columns, strict=True):
        for row, value in enumerate(values):
            if value is None or not str(value).strip():
                raise ConfigError(f"{where}, row {row}: column `{name}` holds {value!r}; each row needs a text.")
    return [tuple(map(str, values)) for values in columns]


def _by_id(source: Source, language: str, split: str, id_column: str, text_column: str) -> dict[str, str]:
    identifiers, texts = _columns(source, language, split, (id_column, text_column))
    rows = dict(zip(identifiers, texts, strict=True))
    if len(rows) < len(texts):
        raise ConfigError(
            f"{source.name} ({language}, {split}): column `{id_column}` holds {len(texts) - len(rows)} ids more than "
            "once; rows cannot be joined by it."
        )
    return rows


def _join(language: str, rows: dict[str, str], others: dict[str, str], source_language: str) -> ParallelSet:
    shared = [identifier for identifier in others if identifier in rows]
    if not shared:
        raise ConfigError(f"`{language}` shares no id with `{source_language}`: nothing to retrieve.")
    texts, translations = (tuple(side[identifier] for identifier in shared) for side in (rows, others))
    return ParallelSet(language, texts, translations, len(rows) - len(shared))
