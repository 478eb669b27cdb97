"""Collect the pre-training text of the small encoder: `python -m hf_xlt.embedded.text --data DIR --output-dir OUT`.

Only text whose licence permits shipping the weights is taken (`SOURCES`), by name: a source that is added to the
folder later is not taken by accident. Phrases from the Unicode CLDR are generated beside it, of training items only.

Rows of two languages with the same `id` are translations of one another. Where a source aligns whole documents only,
`hf_xlt.embedded.alignment` finds the paragraphs; those without a partner get an id that no other language has.
"""

import argparse
import hashlib
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from babel import localedata

from hf_xlt.embedded import DEVELOPMENT_PHRASES, TEST_PHRASES
from hf_xlt.embedded.alignment import align, anchor_rates, anchors, is_latin
from hf_xlt.embedded.phrases import (
    CALENDAR_KINDS,
    LABELS,
    NUMBERED_KINDS,
    STYLES,
    PhraseGenerator,
    PhraseSpec,
    babel_version,
    cldr_version,
    default_generator,
)
from hf_xlt.errors import ConfigError, one_line, reports_errors
from hf_xlt.files import sync_file, sync_folder

Row = dict[str, str]
COLUMNS = ("lang", "text", "id", "source")
SCHEMA = pa.schema([(column, pa.string()) for column in COLUMNS])
ENGLISH = "en"
SHORTEST = 2
# Left over from Markdown headings: `{#identifier}`.
HEADING_ANCHOR = re.compile(r"\{#[^{}]*\}")


@dataclass(frozen=True)
class TextSource:
    """One source of text.

    Attributes:
        licence: what permits shipping weights trained on it.
        attribution: what the card of such weights must say.
        documents: whether only whole documents are aligned, so that paragraphs must be.
    """

    licence: str
    attribution: str
    documents: bool = False


SOURCES = {
    "tico-19": TextSource(
        "CC0 1.0", "TICO-19 (Anastasopoulos et al. 2020), https://github.com/tico-19/tico-19.github.io"
    ),
    "opensource.guide": TextSource(
        "CC BY 4.0", "Open Source Guides, GitHub and contributors, https://github.com/github/opensource.guide", True
    ),
    "tensorflow-docs": TextSource(
        "Apache-2.0", "The TensorFlow Authors and translators, https://github.com/tensorflow/docs-l10n", True
    ),
    "cldr": TextSource(
        "Unicode License v3", "Unicode CLDR, Copyright 1991-2026 Unicode, Inc., by way of https://babel.pocoo.org"
    ),
}
BOOKS_NAME = "classic-books-markdown"
BOOKS = TextSource(
    "public domain",
    "books by authors who died in 1955 or earlier, https://github.com/mlschmitt/classic-books-markdown",
)

# Languages of the phrases beside those of the running text.
PHRASE_LANGUAGES = tuple(
    "en de fr es it pt nl sv pl cs ru uk tr fi hu id vi el he ar hi bn ta th ja ko zh sw ro bg".split()
)
# Our code where CLDR has another.
CLDR_CODES = {"tl": "fil"}
# With fewer names of languages, a locale's units and relative times are mostly abbreviations of the root locale.
THIN_LOCALE = 100
# Specs per item: a kind with few items has more of them.
VARIANTS = {"money": 3, "past": 16, "future": 16, "duration": 16, "measure": 6}
# Share of the calendar items: all of them would be nearly all phrases.
CALENDAR_SHARES = {"date": 0.06, "clock": 0.5}
# Share of the names kept where they are spelt as in English.
KEPT_NAMES = 0.25


def align_documents(english: Sequence[Row], other: Sequence[Row]) -> list[Row]:
    """Give the rows of another language the ids of the English rows that they translate.

    Args:
        english: rows whose ids are `DOCUMENT#NUMBER`, in order within a document.
        other: rows of one other language, the same way.

    Returns:
        The other rows in their order; unaligned ones with `@LANGUAGE` after an id of their own.
    """
    documents = [defaultdict(list), defaultdict(list)]
    for side, rows in zip(documents, (english, other), strict=True):
        for row in rows:
            side[row["id"].partition("#")[0]].append(row)
    shared = [(documents[0][name], rows) for name, rows in documents[1].items() if name in documents[0]]
    foreign = not is_latin(row["text"] for row in other[:500])
    rates = anchor_rates([anchors(row["text"], foreign) for row in other])
    ids: dict[int, str] = {}
    sizes = [sum(len(row["text"]) for pair in shared for row in pair[side]) for side in (0, 1)]
    ratio = sizes[1] / max(sizes[0], 1)
    # The first pass finds the ratio: documents of another snapshot, or half translated, would distort it.
    for _ in range(2 if shared else 0):
        ids, ratios = {}, []
        for ours, theirs in shared:
            for i, j in align([row["text"] for row in ours], [row["text"] for row in theirs], ratio, rates):
                ids[id(theirs[j])] = ours[i]["id"]
                ratios.append(len(theirs[j]["text"]) / len(ours[i]["text"]))
        ratio = float(np.median(ratios)) if ratios else ratio
    return [{**row, "id": ids.get(id(row), f"{row['id']}@{row['lang']}")} for row in other]


def _share(*key: object) -> float:
    """Return a number in [0, 1) that is a pure function of the key."""
    return int(hashlib.sha256("|".join(map(str, key)).encode()).hexdigest()[:8], 16) / 2**32


def phrase_specs() -> list[PhraseSpec]:
    """Return the specs of all phrases, from English training items; number and style are functions of the item."""
    generator = PhraseGenerator((ENGLISH,))
    specs = {}
    for kind in LABELS:
        for item in generator.items(kind, "train"):
            if _share("keep", kind, item) >= CALENDAR_SHARES.get(kind, 1.0):
                continue
            for variant in range(VARIANTS.get(kind, 1)):
                # Only the standard name of a zone exists in every language.
                styles = ["standard"] if kind == "zone" else list(STYLES[kind])
                style = styles[int(_share("style", kind, item, variant) * len(styles))]
                size = _share("size", kind, item, variant)
                limit = 12 if size < 0.5 else 99 if size < 0.8 or kind in ("past", "future") else 999
                number = 1 + int(_share("number", kind, item, variant) * limit) if kind in NUMBERED_KINDS else 0
                specs[PhraseSpec(kind, item, number, style)] = None
    return list(specs)


def phrase_texts(language: str, specs: Sequence[PhraseSpec]) -> dict[PhraseSpec, str]:
    """Render the specs that a language can name, leaving out what reads as in English but for some names.

    Args:
        language: our code.
        specs: specs of `phrase_specs`.

    Returns:
        The text of each spec.
    """
    code = CLDR_CODES.get(language, language)
    generator = PhraseGenerator(dict.fromkeys((ENGLISH, code)))
    items = {kind: frozenset(generator.items(kind, "train")) for kind in LABELS}
    thin = len(items["language"]) < THIN_LOCALE
    texts = {}
    for spec in specs:
        ambiguous = (spec.kind, spec.item, spec.style) in generator.excluded
        if ambiguous or spec.item not in items[spec.kind] or (thin and spec.kind in NUMBERED_KINDS - {"money"}):
            continue
        text = generator.render(code, spec)
        if language != ENGLISH and text == generator.render(ENGLISH, spec):
            latin_name = spec.kind in ("place", "language") and is_latin([generator.render(code, _any_date())])
            if not (latin_name and _share("name", spec.kind, spec.item) < KEPT_NAMES):
                continue
        texts[spec] = text
    return texts


def _any_date() -> PhraseSpec:
    return PhraseSpec("date", "2000-01-01", 0, "full")


def _surface(text: str, spec: PhraseSpec) -> str:
    return text.replace(str(spec.number), "", 1).casefold() if spec.number else text.casefold()


def held_out_surfaces() -> frozenset[str]:
    """Return the texts, count and case aside, of the demo task's development and test phrases in all its languages.

    Another item can read like one of them in another language or abbreviation. Dates and clock times are left out:
    their digits tell the items apart.
    """
    generator = default_generator()
    sizes = {"validation": DEVELOPMENT_PHRASES, "test": TEST_PHRASES}
    specs = [spec for split, size in sizes.items() for spec in generator.balanced(split, size)]
    return frozenset(
        _surface(generator.render(language, spec), spec)
        for spec in specs
        if spec.kind not in CALENDAR_KINDS
        for language in generator.languages
    )


def cldr_rows(languages: Iterable[str]) -> dict[str, list[Row]]:
    """Return phrases of each language that babel knows, with ids that are equal across languages."""
    specs, held_out = phrase_specs(), held_out_surfaces()
    known = [language for language in languages if localedata.exists(CLDR_CODES.get(language, language))]
    return {
        language: [
            {
                "lang": language,
                "text": text,
                "id": f"cldr:{spec.kind}/{spec.item}/{spec.number}/{spec.style}",
                "source": "cldr",
            }
            for spec, text in phrase_texts(language, specs).items()
            if _surface(text, spec) not in held_out
        ]
        for language in known
    }


def filter_rows(rows: Iterable[Row], english: frozenset[str] = frozenset()) -> list[Row]:
    """Strip texts; drop those that are too short, come a second time, or are the English ones untranslated.

    Args:
        rows: rows of one language.
        english: running text in English; empty for the English rows themselves.
    """
    seen: set[str] = set()
    kept = []
    for row in rows:
        text = HEADING_ANCHOR.sub("", row["text"]).strip()
        if len(text) >= SHORTEST and text not in seen and text not in english:
            seen.add(text)
            kept.append({**row, "text": text})
    return kept


def read_rows(path: Path) -> list[Row]:
    """Read one file of text.

    Raises:
        ConfigError: it cannot be read, or lacks a column.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"`{path}` cannot be read as parquet: {one_line(error)}") from error
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise ConfigError(
            f"`{path}` has no column `{missing[0]}`; it needs {', '.join(COLUMNS)} and has "
            f"{', '.join(table.column_names)}."
        )
    return table.select(COLUMNS).to_pylist()


def collect(data: Path) -> dict[str, list[Row]]:
    """Return the multilingual rows by language: permitted running text, aligned, and phrases.

    Raises:
        ConfigError: the folder or a file cannot be used.
    """
    running = {path.stem: [r for r in read_rows(path) if r["source"] in SOURCES] for path in _text_files(data)}
    running = {language: rows for language, rows in running.items() if rows}
    if ENGLISH not in running:
        raise ConfigError(f"`{data / 'text'}` holds no English text of {', '.join(SOURCES)}; give `en.parquet`.")
    originals = frozenset(row["text"].strip() for row in running[ENGLISH])
    by_source = {name: [r for r in running[ENGLISH] if r["source"] == name] for name in SOURCES}
    phrases = cldr_rows(sorted({*running, *PHRASE_LANGUAGES}))
    collected = {}
    for language in sorted({*running, *phrases}):
        rows = []
        for name, source in SOURCES.items():
            part = [row for row in running.get(language, []) if row["source"] == name]
            rows += align_documents(by_source[name], part) if source.documents and language != ENGLISH else part
        foreign = frozenset() if language == ENGLISH else originals
        collected[language] = filter_rows(rows, foreign)
        collected[language] = filter_rows([*collected[language], *phrases.get(language, [])])
    return collected


def _text_files(data: Path) -> list[Path]:
    paths = sorted((data / "text").glob("*.parquet"))
    if not paths:
        raise ConfigError(f"`{data / 'text'}` is missing or holds no .parquet file; give the data folder as `--data`.")
    return paths


def collect_books(data: Path) -> list[Row]:
    """Return the English rows without translation.

    Raises:
        ConfigError: the file cannot be used.
    """
    path = data / "text_english" / "books.en.parquet"
    if not path.is_file():
        raise ConfigError(f"`{path}` is missing; give the data folder as `--data`.")
    return filter_rows(row for row in read_rows(path) if row["source"] == BOOKS_NAME)


def describe_sources(multilingual: dict[str, list[Row]], books: list[Row], inputs: Iterable[Path], data: Path) -> str:
    """Return the text of SOURCES.md: licences, attributions, sizes and input hashes; the same for the same input."""
    english = {row["id"] for row in multilingual[ENGLISH]}
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for language, rows in [*multilingual.items(), (ENGLISH, books)]:
        for row in rows:
            count = counts[row["source"], language]
            count[0] += 1
            count[1] += len(row["text"].encode())
            count[2] += row["id"] in english and row["source"] != BOOKS_NAME
    lines = [
        "# Sources of this text",
        "",
        "All licences permit shipping weights trained on the text, with the attribution given. Made by",
        f"`python -m hf_xlt.embedded.text` with babel {babel_version()} (CLDR {cldr_version()}).",
        "",
        "| source | licence | attribution | languages | rows | bytes |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, source in {**SOURCES, BOOKS_NAME: BOOKS}.items():
        mine = [count for (owner, _), count in counts.items() if owner == name]
        rows, size = (sum(count[column] for count in mine) for column in (0, 1))
        lines.append(f"| {name} | {source.licence} | {source.attribution} | {len(mine)} | {rows} | {size} |")
    lines += ["", "## Rows by language", "", "Parallel rows share their `id` with an English row.", ""]
    lines += ["| language | source | rows | parallel | bytes |", "|---|---|---:|---:|---:|"]
    for name, language in sorted(counts, key=lambda key: (key[1], key[0])):
        rows, size, parallel = counts[name, language]
        lines.append(f"| {language} | {name} | {rows} | {parallel} | {size} |")
    lines += ["", "## Input", "", "| file | SHA-256 |", "|---|---|"]
    for path in inputs:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"| {path.relative_to(data).as_posix()} | {digest} |")
    return "\n".join(lines) + "\n"


def write_text_folder(data: Path, output: Path) -> str:
    """Make the text and write it: beside, then renamed, so that the folder is complete or absent.

    Args:
        data: folder with `text/*.parquet` and `text_english/books.en.parquet`.
        output: folder to make; it must not exist.

    Returns:
        The text of the SOURCES.md in it.

    Raises:
        ConfigError: the data cannot be used, or the output exists.
    """
    if output.exists():
        raise ConfigError(f"`{output}` exists already; delete it, or give another `--output-dir`.")
    books, multilingual = collect_books(data), collect(data)
    sources = describe_sources(
        multilingual, books, [*_text_files(data), data / "text_english" / "books.en.parquet"], data
    )
    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for folder, languages in (("multilingual", multilingual), ("english", {ENGLISH: books})):
            (part / folder).mkdir(parents=True)
            for language, rows in languages.items():
                path = part / folder / f"{language}.parquet"
                pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd")
                sync_file(path)
        (part / "SOURCES.md").write_text(sources, encoding="utf-8", newline="\n")
        part.rename(output)
        sync_folder(output.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sources


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Make the text; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hf_xlt.embedded.text", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with text/ and text_english/")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to make")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    arguments = parser.parse_args(argv)
    sources = write_text_folder(arguments.data, arguments.output_dir)
    print(sources.partition("\n## Input")[0])  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
