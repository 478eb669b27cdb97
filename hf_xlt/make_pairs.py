"""A task of sentence pairs from parallel, labelled sentences: have the two the same label? (`make-pairs`).

The same pairs are made in every language, under the same ids, so that a test set can take the first sentence in one
language and the second in another (`hf-xlt run --generalized`). Training splits are made in the source languages only.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_xlt.data.joining import check_same_labels, counted, rows_by_id
from hf_xlt.data.labels import named
from hf_xlt.data.pairing import DIFFERENT, SAME, Pairing, pair_sentences
from hf_xlt.data.patterns import parse_language_map
from hf_xlt.data.sources import Source, make_source
from hf_xlt.errors import ConfigError, RunError, close_match
from hf_xlt.files import has_keys, sync_file, sync_folder
from hf_xlt.languages import check_code
from hf_xlt.written import carry_over

MANIFEST_NAME = "pairs.json"
README_NAME = "README.md"
LABEL_NAMES = {DIFFERENT: "different", SAME: "same"}
FORMAT = "hf_xlt sentence pairs 1"
ALL_LANGUAGES = "all"


@dataclass(frozen=True)
class Recipe:
    """What to make pairs from, and how.

    Attributes:
        dataset: pattern, file or Hub id of parallel sentences with labels.
        source_languages: languages of every split.
        languages: languages of the target split, or `all`.
        splits: splits to make.
        target_split: the one of them that is made in all languages.
        pairs_per_sentence: pairs in which a sentence stands first, by split; `""` is that of the splits not named.
        seed: decides which sentences are paired.
        text_column: column of the sentence.
        label_column: column of its label.
        id_column: column of its id, equal in every language.
        language_column: column of the language, where the pattern has no `{lang}`.
    """

    dataset: str
    source_languages: tuple[str, ...] = ("en",)
    languages: tuple[str, ...] = (ALL_LANGUAGES,)
    splits: tuple[str, ...] = ("train", "validation", "test")
    target_split: str = "test"
    pairs_per_sentence: Mapping[str, int] | None = None
    seed: int = 0
    text_column: str = "text"
    label_column: str = "label"
    id_column: str = "id"
    language_column: str | None = None
    language_map: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairSplit:
    """The pairs of one split.

    Attributes:
        name: name of the split.
        languages: languages it is made in.
        ids: ids of the sentences that all of them have.
        labels: label of each of these.
        texts: per language the sentences, in the order of `ids`.
        pairing: which are paired.
        left_out: number of sentences of each language that another one has not; only those above 0.
    """

    name: str
    languages: tuple[str, ...]
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    texts: Mapping[str, tuple[str, ...]]
    pairing: Pairing
    left_out: Mapping[str, int]

    def columns(self, language: str) -> dict[str, list[Any]]:
        """Return the rows of one language as columns."""
        pairs, texts = self.pairing.pairs, self.texts[language]
        return {
            "id": [f"{self.ids[first]}|{self.ids[second]}" for first, second, _ in pairs],
            "sentence1": [texts[first] for first, _, _ in pairs],
            "sentence2": [texts[second] for _, second, _ in pairs],
            "label": [label for _, _, label in pairs],
            "label_text": [LABEL_NAMES[label] for _, _, label in pairs],
        }

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of the split."""
        kinds = Counter(label for _, _, label in self.pairing.pairs)
        return {
            "languages": list(self.languages),
            "pairs": len(self.pairing.pairs),
            **{name: kinds[label] for label, name in LABEL_NAMES.items()},
            "sentences": len(self.pairing.used),
            "sentences_by_label": dict(sorted(Counter(self.labels[index] for index in self.pairing.used).items())),
            "left_out": dict(self.left_out),
            "notes": list(self.pairing.notes),
        }


def read_splits(recipe: Recipe) -> tuple[Source, list[PairSplit]]:
    """Read the sentences and choose the pairs.

    Raises:
        ConfigError: a language, split or column is missing, ids or labels do not fit, or there are too few sentences.
    """
    if recipe.target_split not in recipe.splits:
        raise ConfigError(
            f"`--splits` is {','.join(recipe.splits)} and lacks `{recipe.target_split}`, the split of all languages; "
            "add it, or name another with `--target-split`."
        )
    unknown = [name for name in recipe.pairs_per_sentence or () if name and name not in recipe.splits]
    if unknown:
        raise ConfigError(f"`--pairs-per-sentence` names the split `{unknown[0]}`, which is not made.")
    names = parse_language_map(recipe.language_map)
    # A set without splits is one split: pairs of two splits must not be of the same sentences.
    source = make_source(recipe.dataset, recipe.language_column, recipe.target_split, names)
    known = source.languages(recipe.target_split)
    if not known:
        raise ConfigError(f"no language has a `{recipe.target_split}` split in `{recipe.dataset}`. Check the pattern.")
    wanted = known if ALL_LANGUAGES in recipe.languages else [check_code(code) for code in recipe.languages]
    languages = tuple(dict.fromkeys((*recipe.source_languages, *wanted)))
    return source, [
        _read_split(recipe, source, split, languages if split == recipe.target_split else recipe.source_languages)
        for split in recipe.splits
    ]


def _read_split(recipe: Recipe, source: Source, split: str, languages: Sequence[str]) -> PairSplit:
    known = source.languages(split)
    for language in languages:
        if language not in known:
            raise ConfigError(
                f"language `{language}` has no `{split}` split in {source.name}.{close_match(language, known)} "
                f"Languages there: {', '.join(known) or 'none'}. `--languages`, `--source-languages` and `--splits` "
                "choose others."
            )
    sentences = {language: _read_language(recipe, source, split, language) for language in languages}
    first = sentences[languages[0]]
    shared = [code for code in first if all(code in others for others in sentences.values())]
    if not shared:
        raise ConfigError(f"{source.name} ({split}): no id is in all of {', '.join(languages)}: nothing to pair.")
    for language in languages[1:]:
        check_same_labels(
            {code: sentences[language][code][1] for code in shared},
            f"{source.name} ({language}, {split})",
            {code: label for code, (_, label) in first.items()},
            f"{source.name} ({languages[0]}, {split})",
        )
    # Sorted, so that the order of rows in the files changes nothing.
    ids = tuple(sorted(shared))
    _check_joinable(ids, source.name)
    labels = tuple(first[code][1] for code in ids)
    numbers = recipe.pairs_per_sentence or {}
    per_sentence = numbers.get(split, numbers.get("", 2))
    try:
        pairing = pair_sentences(labels, per_sentence, f"{recipe.seed} {split}")
    except ConfigError as error:
        raise ConfigError(f"{source.name} ({split}): {error}") from error
    texts = {language: tuple(rows[code][0] for code in ids) for language, rows in sentences.items()}
    left_out = {language: len(rows) - len(ids) for language, rows in sentences.items() if len(rows) > len(ids)}
    return PairSplit(split, tuple(languages), ids, labels, texts, pairing, left_out)


def _read_language(recipe: Recipe, source: Source, split: str, language: str) -> dict[str, tuple[str, str]]:
    """Return text and label by id."""
    table, where = source.read(language, split), f"{source.name} ({language}, {split})"
    for flag in ("text_column", "label_column"):
        name = getattr(recipe, flag)
        if name not in table.column_names:
            raise ConfigError(
                f"{where} must contain a `{name}` column; its columns are {', '.join(table.column_names)}."
                f"{close_match(name, table.column_names)} Name the right one with `--{flag.replace('_', '-')}`."
            )
    rows = rows_by_id(table, recipe.id_column, where)
    labels = named(table, recipe.label_column)[recipe.label_column][:]
    texts = list(table[recipe.text_column])
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{where}, row {row}: column `{recipe.text_column}` holds {text!r}, not a text.")
        if label is None or label == "":
            raise ConfigError(f"{where}, row {row}: column `{recipe.label_column}` is empty; each row needs a label.")
    return {identifier: (texts[row], str(labels[row])) for identifier, row in rows.items()}


def _check_joinable(ids: Sequence[str], name: str) -> None:
    barred = [identifier for identifier in ids if "|" in identifier]
    if barred:
        raise ConfigError(f"{name}: the id `{barred[0]}` holds `|`, which joins the ids of a pair; rename the ids.")


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be written, before any work.

    Raises:
        ConfigError: it is a file, holds something else, or holds pairs that may not be replaced.
    """
    if folder.is_file():
        raise ConfigError(f"`{folder}` is a file; give `--output-dir` a directory.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not has_keys(folder / MANIFEST_NAME, ("format", "made_by", "splits")):
        raise ConfigError(f"`{folder}` is not empty and holds no pairs of hf-xlt, so it is left alone; give another.")
    if not overwrite:
        raise ConfigError(f"`{folder}` holds pairs already; add `--overwrite`, or give another `--output-dir`.")


def write_pairs(folder: Path, recipe: Recipe, source: Source, splits: Sequence[PairSplit]) -> dict[str, Any]:
    """Write one Parquet file per split and language, a manifest and a README; the folder appears when all is there.

    Args:
        folder: where to write; what `check_output` let pass is replaced.
        recipe: how the pairs were made.
        source: what from.
        splits: the pairs.

    Returns:
        The manifest.

    Raises:
        RunError: the folder cannot be written.
    """
    manifest = _manifest(recipe, source, splits)
    part = folder.absolute().with_name(f".{folder.absolute().name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        for split in splits:
            for language in split.languages:
                _write_table(part / f"{split.name}.{language}.parquet", split.columns(language))
        for name, text in (
            (README_NAME, _readme(manifest)),
            (MANIFEST_NAME, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"),
        ):
            (part / name).write_text(text, encoding="utf-8", newline="\n")
            sync_file(part / name)
        _replace_folder(part, folder)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise RunError(f"`{folder}` cannot be written: {error.strerror}. Give another `--output-dir`.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def _replace_folder(part: Path, folder: Path) -> None:
    """Put a finished folder in the place of another, whose pairs are deleted only then; other files there stay."""
    before = part.with_suffix(".old")
    if folder.is_dir():
        os.replace(folder, before)
    try:
        os.replace(part, folder)
    except OSError:
        if before.is_dir():
            os.replace(before, folder)
        raise
    if before.is_dir():
        carry_over(before, folder)
    sync_folder(folder.absolute().parent)


def _write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, compression="zstd")
    sync_file(path)


def _manifest(recipe: Recipe, source: Source, splits: Sequence[PairSplit]) -> dict[str, Any]:
    from hf_xlt import __version__

    numbers = recipe.pairs_per_sentence or {}
    return {
        "format": FORMAT,
        "made_by": f"hf_xlt {__version__}",
        "source": source.name,
        "hub_id": source.hub_id,
        "columns": {"text": recipe.text_column, "label": recipe.label_column, "id": recipe.id_column},
        "seed": recipe.seed,
        "pairs_per_sentence": {split.name: numbers.get(split.name, numbers.get("", 2)) for split in splits},
        "source_languages": list(recipe.source_languages),
        "target_split": recipe.target_split,
        "labels": list(LABEL_NAMES.values()),
        "splits": {split.name: split.facts() for split in splits},
    }


_SIB_200 = (
    "SIB-200 (Adelani et al., EACL 2024) and the sentences of FLORES-200 in it are under CC BY-SA 4.0: whoever passes "
    "these files on names the authors and gives them the same licence."
)


def _readme(manifest: Mapping[str, Any]) -> str:
    """Say what the files are, where from, and under which licence."""
    rows = [
        f"| {name} | {len(facts['languages'])} | {facts['sentences']:,} | {facts['pairs']:,} | {facts['same']:,} | "
        f"{facts['different']:,} |"
        for name, facts in manifest["splits"].items()
    ]
    licence = [
        f"The sentences are those of `{manifest['source']}` and stay under its licence; look there before you pass "
        "these files on."
    ]
    if "sib200" in manifest["source"].lower().replace("-", ""):
        licence.append(_SIB_200)
    licence.append("Do not add them to a repository that is under another licence.")
    return "\n".join(
        [
            "# Pairs of sentences: same label or different ones",
            "",
            f"Made by `hf-xlt make-pairs` from `{manifest['source']}` with seed {manifest['seed']}. `id` joins the "
            "languages: row `a|b` holds sentence `a` first and sentence `b` second, in every language. `label` is 1 "
            "(`same`) where the two have the same label, 0 (`different`) where not. Every sentence stands first, and "
            "second, in as many pairs of either kind: one side alone tells nothing.",
            "",
            "| split | languages | sentences | pairs | same | different |",
            "| :-- | --: | --: | --: | --: | --: |",
            *rows,
            "",
            "## Licence",
            "",
            " ".join(licence),
            "",
        ]
    )


def describe(manifest: Mapping[str, Any]) -> list[list[str]]:
    """Return the splits as rows of text, header first."""
    rows = [["split", "languages", "sentences", "pairs", "same", "different"]]
    for name, facts in manifest["splits"].items():
        numbers = (len(facts["languages"]), facts["sentences"], facts["pairs"], facts["same"], facts["different"])
        rows.append([name, *(f"{number:,}" for number in numbers)])
    return rows


def notes(manifest: Mapping[str, Any]) -> list[str]:
    """Say which sentences were left out, split by split."""
    said = []
    for name, facts in manifest["splits"].items():
        if facts["left_out"]:
            lost = ", ".join(f"{counted(number, 'sentence')} of {code}" for code, number in facts["left_out"].items())
            said.append(f"{name}: only ids that all languages have are used; left out: {lost}.")
        said += [f"{name}: {note}" for note in facts["notes"]]
    return said
