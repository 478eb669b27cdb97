"""Trimming a model's vocabulary: choose, cut, save, load again, compare, and tell."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt import __version__
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import TOKENIZER_FILES, write_text
from hf_xlt.modelling.token_tensors import named_ids, row_count, rows_before_padding
from hf_xlt.models import ModelSource
from hf_xlt.pretraining.folders import check_folder, replaced_folder, write_report
from hf_xlt.pretraining.texts import LanguageText
from hf_xlt.pretraining.vocabulary import check_tokenizer_fits
from hf_xlt.record import RECORD_NAME, RunRecord
from hf_xlt.trimming import measure
from hf_xlt.trimming.model import (
    load_model,
    reload_model,
    save_model,
    trim_model,
)
from hf_xlt.trimming.pieces import TEXT_CHARACTERS, Selection, Vocabulary, select
from hf_xlt.trimming.tokenizer import save_tokenizer, trimmed_tokenizer
from hf_xlt.written import TRIMMING_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REPORT_NAME = TRIMMING_NAME
CARD_NAME = "README.md"
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json")
_NOTICES = ("LICENSE*", "NOTICE*", "COPYING*")
_CODE = ("*.py",)


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        limit: keep so many of the text's tokens, the most frequent; None keeps all.
        characters: `none`, `text`, `all`, or the characters whose pieces are kept.
        documents: of every language, how many the outputs are compared on.
    """

    limit: int | None = None
    characters: str = TEXT_CHARACTERS
    documents: int = 4

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range.
        """
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"{setting('limit')} is {self.limit}; it must be 1 or more, or left out to keep all tokens."
            )
        if not self.characters:
            raise ConfigError(f"{setting('keep_characters')} is empty; give `text`, `all`, `none`, or characters.")
        if self.documents < 1:
            raise ConfigError(f"{setting('check_documents')} is {self.documents}; it must be 1 or more.")


@dataclass(frozen=True)
class Size:
    """How large a model is: tokens of its tokenizer, rows of its embeddings, parameters, bytes of its weights."""

    tokens: int
    rows: int
    parameters: int
    bytes: int

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Size:
        """Measure a model; tied weights count once."""
        weights = list(model.parameters())
        held = sum(weight.numel() * weight.element_size() for weight in weights)
        return cls(len(tokenizer.get_vocab()), row_count(model), sum(weight.numel() for weight in weights), held)


@dataclass(frozen=True)
class Report:
    """What trimming did.

    Attributes:
        before: size of the model before.
        after: its size now.
        kept: how many tokens are kept for each reason.
        options: what was asked for.
        text: how the given text is cut, by language.
        other: how other text is cut, by language.
        outputs: how outputs differ on a sample of the given text.
        sources: shareable names of the text.
        notes: for the user.
    """

    before: Size
    after: Size
    kept: dict[str, int]
    options: Options
    text: dict[str, measure.Fit]
    other: dict[str, measure.Fit]
    outputs: measure.Difference
    sources: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as it is saved beside the model and in its record."""
        return {"version": __version__, **asdict(self)}


def check_output(folder: Path, model: str, overwrite: bool) -> None:
    """Check that a trimmed model may be written to a place; nothing is written.

    Raises:
        ConfigError: it is the model itself, or holds something that may not be replaced.
    """
    known = (*_WEIGHTS, *TOKENIZER_FILES, *_NOTICES, *_CODE, *_beside(), REPORT_NAME, CARD_NAME)
    what = "a trimmed model"
    check_folder(folder, overwrite=overwrite, known=known, what=what, marker=REPORT_NAME, origin=model)


def _beside() -> tuple[str, ...]:
    from hf_xlt.hub.files import kept_beside

    return kept_beside()


def trim_vocabulary(
    source: ModelSource,
    texts: Mapping[str, LanguageText],
    folder: Path,
    options: Options | None = None,
    other: Mapping[str, LanguageText] | None = None,
) -> Report:
    """Save a model with the tokens that some text needs.

    Args:
        source: the model, with or without a head; a run's record is taken along.
        texts: the text, by language.
        folder: where to save; it is replaced whole.
        options: what is asked for.
        other: text to look at besides.

    Returns:
        What was done.

    Raises:
        ConfigError: the tokenizer or the model is of a kind that cannot be trimmed.
        RunError: the trimmed model is not what it should be; nothing is written.
    """
    options, other = options or Options(), other or {}
    tokenizer = source.load_tokenizer()
    vocabulary = Vocabulary(tokenizer)
    model, missing, notes = load_model(source)
    measure.check_takes_text(model)
    rows, before = row_count(model), Size.of(model, tokenizer)
    check_tokenizer_fits(tokenizer, rows)
    selection = _select(vocabulary, model, texts, options)
    documents = measure.sample(texts, options.documents)
    heard = measure.outputs(model, tokenizer, documents)
    trim_model(model, selection.ids)
    with replaced_folder(folder) as part:
        save_model(model, missing, part)
        made, more = save_tokenizer(trimmed_tokenizer(vocabulary, selection), part)
        fits = {code: _compare(tokenizer, made, selection, text) for code, text in texts.items()}
        if options.limit is None:
            measure.check_same(fits)
        loaded = reload_model(model, missing, part)
        after = measure.shortened(loaded, made, documents)
        report = Report(
            before=before,
            after=Size.of(loaded, made),
            kept=selection.reasons,
            options=options,
            text=fits,
            other={code: _compare(tokenizer, made, selection, text) for code, text in other.items()},
            outputs=measure.difference(heard, loaded, after, rows, selection.new_ids),
            sources=list(dict.fromkeys(name for text in texts.values() for name in text.sources)),
            notes=[*notes, *more],
        )
        _write_beside(source, report, part)
        write_report(part, REPORT_NAME, report.to_dict())
    return report


def _select(
    vocabulary: Vocabulary, model: PreTrainedModel, texts: Mapping[str, LanguageText], options: Options
) -> Selection:
    documents = [document for text in texts.values() for document in text.documents]
    counts = Counter(index for encoding in measure.encoded(vocabulary.tokenizer, documents) for index in encoding.ids)
    known = set(vocabulary.ids.values())
    required = (named_ids(model) | rows_before_padding(model)) & known
    return select(vocabulary, counts, documents, limit=options.limit, characters=options.characters, required=required)


def _compare(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, selection: Selection, text: LanguageText
) -> measure.Fit:
    return measure.compare(before, after, selection.new_ids, text.documents)


def _write_beside(source: ModelSource, report: Report, folder: Path) -> None:
    """Write the card, and what belongs to the model besides: its record and results, its licence."""
    origin = Path(source.path)
    if origin.is_dir():
        wanted = (*_NOTICES, *(_CODE if source.trust_remote_code else ()))
        wanted = (*wanted, *_beside()) if (origin / RECORD_NAME).is_file() else wanted
        for path in sorted({path for pattern in wanted for path in origin.glob(pattern) if path.is_file()}):
            if not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    if (origin / RECORD_NAME).is_file():
        from hf_xlt.model_cards.card import render

        old = RunRecord.read(origin)
        model = {**old.model, "parameters": report.after.parameters}
        record = replace(old, model=model, trimming=facts(report))
        record.write(folder)
        write_text(folder / CARD_NAME, render(record.with_plots(folder)))
        return
    from hf_xlt.model_cards.trimming import card

    write_text(folder / CARD_NAME, card(facts(report), source.name, source.license(), source.card()))


def facts(report: Report) -> dict[str, Any]:
    """Return what a card says of the trimming: sizes, text, what was compared."""
    return {
        "before": asdict(report.before),
        "after": asdict(report.after),
        "limit": report.options.limit,
        "characters": report.options.characters,
        "sources": report.sources,
        "languages": {
            code: {
                "documents": fit.documents,
                "before": _rate(fit, fit.tokens_before),
                "after": _rate(fit, fit.tokens_after),
            }
            for code, fit in report.text.items()
        },
        "changed": sum(fit.changed for fit in report.text.values()),
        "unknown": sum(fit.fell for fit in report.text.values()),
        "outputs": asdict(report.outputs),
    }


def _rate(fit: measure.Fit, tokens: int) -> float:
    return round(tokens / max(fit.words, 1), 4)


def table(fits: Mapping[str, measure.Fit]) -> list[str]:
    """Lay out one line per language: tokens per word, unknown tokens, and what became of dropped tokens."""
    head = f"{'language':<10}{'texts':>9}{'words':>11}{'tok/word':>10}{'now':>8}{'unknown':>10}{'now':>9}"
    lines = [f"{head}{'fell to unknown':>17}{'split further':>15}"]
    for code, fit in fits.items():
        lines.append(
            f"{code:<10}{fit.documents:>9,}{fit.words:>11,}{_rate(fit, fit.tokens_before):>10.3f}"
            f"{_rate(fit, fit.tokens_after):>8.3f}{fit.unknown_before:>10,}{fit.unknown_after:>9,}{fit.fell:>17,}"
            f"{fit.split:>15,}"
        )
    return lines


def summary(report: Report) -> Sequence[str]:
    """Say in lines what was done."""
    old, new, heard = report.before, report.after, report.outputs
    words = {"pieces": "so that the rest is cut as before"}
    kept = ", ".join(f"{count:,} {words.get(name, name)}" for name, count in report.kept.items() if count)
    lines = [
        f"Tokens      {old.tokens:>14,} -> {new.tokens:,} (kept: {kept})",
        f"Embeddings  {old.rows:>14,} -> {new.rows:,} rows",
        f"Parameters  {old.parameters:>14,} -> {new.parameters:,} ({new.parameters / old.parameters:.1%})",
        f"Weights     {old.bytes / 1e6:>11,.1f} MB -> {new.bytes / 1e6:,.1f} MB",
        "",
        *table(report.text),
        "",
    ]
    count, changed = (
        sum(fit.documents for fit in report.text.values()),
        sum(fit.changed for fit in report.text.values()),
    )
    if changed:
        limit = setting("limit").strip("`")
        lines.append(f"Of the tokens of the text {changed:,} are cut in another way: {limit} leaves them out.")
    else:
        lines.append(f"All {count:,} texts are cut into the same pieces as before.")
    if heard.same:
        lines.append(
            f"Outputs to {heard.same:,} texts of the same pieces: largest difference {heard.largest:.3g} (values up "
            f"to {heard.scale:.3g})."
        )
    if heard.likeness is not None:
        lines.append(
            f"Outputs to {heard.documents - heard.same:,} texts cut otherwise: their means have a cosine of "
            f"{heard.likeness:.4f} or more with those before."
        )
    if report.other:
        lines += ["", "Other text:", *table(report.other)]
    return [*lines, *(f"Note: {note}" for note in report.notes)]
