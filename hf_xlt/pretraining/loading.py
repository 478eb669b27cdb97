"""From the sources of a phase to its text: tokenised once and kept, or streamed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_xlt.data.formats import read_file, suffix_of
from hf_xlt.data.patterns import parse_language_map
from hf_xlt.data.sources import FileSource, HubSource, make_source
from hf_xlt.data.tables import SPLIT_COLUMN
from hf_xlt.errors import ConfigError, close_match
from hf_xlt.launch import is_first_process
from hf_xlt.models import load_tokenizer
from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.corpus import Corpus, Subset, build_corpus, encode_documents, hold_out
from hf_xlt.pretraining.distillation import TeacherText
from hf_xlt.pretraining.plan import ALL_LANGUAGES, Phase, Source
from hf_xlt.pretraining.statistics import tokenizer_hash

# Documents that the size of streamed text is estimated from.
_SAMPLE = 10_000
_CACHE_NAME = "hf_xlt_tokens"
UNKNOWN_LIMIT = 0.05


def token_cache() -> Path:
    """Return the folder in which tokenised text is kept, beside the caches of `datasets`."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / _CACHE_NAME


def source_languages(source: Source, language_column: str | None = None) -> tuple[Any, list[str]]:
    """Find the languages of one source.

    Returns:
        The opened source, and the codes to take.

    Raises:
        ConfigError: there are none, or one that is asked for is missing.
    """
    opened = make_source(source.text, language_column, source.split, parse_language_map(source.language_map))
    present = opened.languages(source.split)
    if not present:
        there = " ".join(["", *opened.left_out(source.split)])
        raise ConfigError(f"no text fits `{source.text}` (split `{source.split}`); check the pattern.{there}")
    if ALL_LANGUAGES in source.languages:
        for sentence in opened.left_out(source.split):
            _tell(sentence)
        return opened, present
    for code in source.languages:
        if code not in present:
            raise ConfigError(
                f"text `{source.text}` has no language `{code}`.{close_match(code, present)} "
                f"Languages there: {', '.join(present)}."
            )
    return opened, list(source.languages)


@functools.cache
def _tell(note: str) -> None:
    """Say once, on stderr, what lies there and is not used."""
    if is_first_process():
        print(f"Note: {note}", file=sys.stderr)  # noqa: T201


def load_phase_text(
    phase: Phase,
    tokenizer: Any,
    *,
    seed: int,
    held_out_share: float = 0.0,
    manifest: Mapping[str, Mapping[str, Any]] | None = None,
) -> PhaseText:
    """Read, tokenise and cache the text of a phase.

    Args:
        phase: its sources.
        tokenizer: fast tokenizer.
        seed: of the run; it decides which documents are held out.
        held_out_share: share of documents kept from training.
        manifest: sizes of streamed text by language, as `hf-xlt lang-stats` writes them.

    Raises:
        ConfigError: a source cannot be read, or a language has no text.
    """
    parts: dict[str, list[tuple[Source, Any]]] = {}
    streams: dict[str, tuple[Any, str]] = {}
    names: dict[str, str] = {}
    for source in phase.sources:
        opened, codes = source_languages(source)
        for code in codes:
            if source.streaming:
                if code in streams:
                    raise ConfigError(f"phase `{phase.name}` streams `{code}` from two sources; join them into one.")
                streams[code] = (_open_stream(opened, source, code), source.text_column)
                names[code] = opened.name
            else:
                parts.setdefault(code, []).append((source, opened))
    both = sorted(set(parts) & set(streams))
    if both:
        raise ConfigError(f"phase `{phase.name}` reads `{both[0]}` both streamed and not; choose one.")
    corpora = {code: _cached(code, parts[code], tokenizer) for code in sorted(parts)}
    text = phase_text(corpora, seed, held_out_share)
    if phase.teacher is not None:
        teacher = load_tokenizer(phase.teacher)
        tokens = {code: _cached(code, parts[code], teacher, numbered_by=tokenizer) for code in corpora}
        text = dataclasses.replace(text, teacher=TeacherText(teacher, tokens))
    sizes = dict(text.sizes)
    for code, (dataset, column) in sorted(streams.items()):
        sizes[code] = _stream_size(code, dataset, column, tokenizer, manifest, phase.alpha)
    return dataclasses.replace(text, streams=streams, sizes=sizes, estimated=frozenset(streams), names=names)


def phase_text(corpora: Mapping[str, Corpus], seed: int, held_out_share: float = 0.0) -> PhaseText:
    """Take corpora and hold a share of their documents out.

    Raises:
        ConfigError: no language is given.
    """
    divided = {code: hold_out(corpus, held_out_share, seed) for code, corpus in corpora.items()}
    held = {code: pair[1] for code, pair in divided.items() if len(pair[1].chosen)}
    return PhaseText.of_corpora({code: pair[0] for code, pair in divided.items()}, held)


def corpora_of_tables(tables: Mapping[str, Any], tokenizer: Any, phase: Phase) -> dict[str, Corpus]:
    """Tokenise data sets that are in memory, for the languages that a phase names.

    Raises:
        ConfigError: a text column is missing, or a language has no text.
    """
    wanted = {code for source in phase.sources for code in source.languages}
    codes = tables if ALL_LANGUAGES in wanted else [code for code in tables if code in wanted]
    source = phase.sources[0]
    return {
        code: build_corpus(
            [tables[code]],
            tokenizer,
            f"the text of `{code}`",
            text_column=source.text_column,
            id_column=source.id_column,
        )
        for code in codes
    }


def _cached(code: str, parts: Sequence[tuple[Source, Any]], tokenizer: Any, numbered_by: Any | None = None) -> Corpus:
    keys = [
        f"{opened.fingerprint(code, source.split)} {source.text_column} {source.id_column}" for source, opened in parts
    ]
    if numbered_by is not None:
        keys.append(f"numbered by {tokenizer_hash(numbered_by)}")
    key = hashlib.sha256("\n".join([tokenizer_hash(tokenizer), code, *keys]).encode()).hexdigest()[:32]
    where = f"the text of `{code}` ({', '.join(opened.name for _, opened in parts)})"
    columns = {(source.text_column, source.id_column) for source, _ in parts}
    if len(columns) > 1:
        raise ConfigError(f"{where} has different column names in its sources; rename them to agree.")
    text_column, id_column = columns.pop()
    folder = token_cache() / key
    tables = (opened.read(code, source.split) for source, opened in parts)
    return build_corpus(
        tables,
        tokenizer,
        where,
        text_column=text_column,
        id_column=id_column,
        folder=folder,
        numbered_by=numbered_by,
    )


def _open_stream(opened: Any, source: Source, code: str) -> Any:
    from datasets import load_dataset

    # Others are read whole: a parser of delimited text that streams loses rows at a stray quotation mark.
    kinds = {".parquet": "parquet", ".jsonl": "json"}
    try:
        if isinstance(opened, FileSource):
            path = opened._path(code, source.split)
            kind = kinds.get(suffix_of(path))
            if kind is None:
                stream = read_file(path).to_iterable_dataset()
            else:
                stream = load_dataset(kind, data_files=str(path), split="train", streaming=True)
            if opened.names_splits(path):
                stream = stream.filter(functools.partial(_is_of_split, split=source.split))
            return stream
        if isinstance(opened, HubSource) and "{lang}" in opened.configuration:
            configuration = opened.configuration_of(code)
            return load_dataset(opened.path, configuration, split=source.split, streaming=True)
    except ConfigError:
        raise
    except Exception as error:
        # `datasets` raises many kinds of error for one cause: this set is not to be had.
        raise ConfigError(f"text `{source.text}` of `{code}` cannot be streamed: {error}") from error
    raise ConfigError(f"text `{source.text}` cannot be streamed by language; give a pattern with {{lang}}.")


def _is_of_split(row: Mapping[str, Any], split: str) -> bool:
    return str(row[SPLIT_COLUMN]) == split


def _stream_size(
    code: str,
    dataset: Any,
    column: str,
    tokenizer: Any,
    manifest: Mapping[str, Mapping[str, Any]] | None,
    alpha: float,
) -> float:
    """Return the tokens of streamed text: from the manifest, or estimated from the first documents."""
    if manifest and code in manifest:
        return float(manifest[code]["tokens"])
    splits = getattr(dataset.info, "splits", None) or {}
    rows = next((split.num_examples for split in splits.values() if split.num_examples), None)
    texts = [row[column] for row in dataset.take(_SAMPLE) if row.get(column)]
    if not texts:
        raise ConfigError(f"the text of `{code}` is empty, or has no `{column}` column.")
    mean = sum(map(len, encode_documents(texts, tokenizer))) / len(texts)
    if rows is None and len(texts) < _SAMPLE:
        rows = len(texts)
    if rows is None:
        if alpha == 0:
            return 1.0
        raise ConfigError(
            f"the size of the streamed text of `{code}` is unknown, and the mixture depends on it. Give a manifest "
            "(`manifest:`, from `hf-xlt lang-stats`), or set `alpha: 0`."
        )
    return mean * rows


def unknown_shares(corpora: Mapping[str, Subset]) -> dict[str, float]:
    """Return the share of unknown tokens by language."""
    return {code: subset.corpus.unknown / max(len(subset.corpus.tokens), 1) for code, subset in corpora.items()}


def read_manifest(path: str, tokenizer: Any) -> dict[str, Any]:
    """Read the sizes that `hf-xlt lang-stats` wrote, by language.

    Raises:
        ConfigError: it is missing, cannot be read, or was made with another tokenizer.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        entries, made_with = content["languages"], content["tokenizer"]["hash"]
        sizes = {entry["code"]: entry for entry in entries}
    except FileNotFoundError as error:
        raise ConfigError(f"manifest `{path}` is missing; make one with `hf-xlt lang-stats`.") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"manifest `{path}` cannot be read: {error}. Make one with `hf-xlt lang-stats`.") from error
    if made_with != tokenizer_hash(tokenizer):
        raise ConfigError(f"manifest `{path}` was made with another tokenizer; make it anew with `hf-xlt lang-stats`.")
    return sizes
