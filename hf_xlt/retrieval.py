"""Sentence retrieval across languages: how often the nearest neighbour of a sentence is its translation.

It needs no labels and no training, so it shows what an encoder aligns before any fine-tuning. A sentence becomes the
mean of one layer's token vectors; vectors are compared by cosine. The layer is the middle one unless asked otherwise:
hidden state ceil(L / 2) of L, 0 being the embeddings, as middle layers retrieve best in multilingual BERT (Pires et
al. 2019). It is fixed in advance: the layer of the best score would be selected on the test set.

Special tokens are left out of the mean: they are the same in every sentence. A sentence without any other token is
pooled over all it has. Similarities are exact, in float64 and by blocks, and ties count against the model: a row is
right only when its translation is nearer than every other row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.data.parallel import ParallelSet
from hf_xlt.data.sources import Source
from hf_xlt.errors import ConfigError, setting
from hf_xlt.files import write_json, write_text
from hf_xlt.languages import english_name
from hf_xlt.modelling.tokens import longest_input
from hf_xlt.models import ModelSource, quiet, readable_errors
from hf_xlt.output import check_files
from hf_xlt.results import markdown, percent
from hf_xlt.streams import track

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

JSON_NAME, TABLE_NAME = "retrieval.json", "retrieval.md"
POOLINGS = ("mean", "first")
CHUNK = 1024
# Nearer than this is a tie: equal vectors may differ in the last digits of their products.
TIE = 1e-9


@dataclass(frozen=True)
class Pooling:
    """How a sentence becomes a vector.

    Attributes:
        layer: number of a hidden state from 0 (embeddings) to the number of layers, `middle` or `last`.
        pooling: `mean` over the tokens that are not special, or `first` token.
        max_length: longest input in tokens; what is beyond is cut off.
        batch_size: sentences per batch; no vector depends on it beyond rounding.
    """

    layer: str = "middle"
    pooling: str = "mean"
    max_length: int = 128
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            ConfigError: one of them cannot be used.
        """
        if self.pooling not in POOLINGS:
            raise ConfigError(f"{setting('pooling')} is {self.pooling!r}; it must be one of {', '.join(POOLINGS)}.")
        for name in ("max_length", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{setting(name)} is {value}; give 1 or more.")
        if self.layer not in ("middle", "last") and not self.layer.isdecimal():
            raise ConfigError(
                f"{setting('layer')} is {self.layer!r}; give `middle`, `last` or a number from 0 (embeddings)."
            )

    def resolve_layer(self, layers: int) -> int:
        """Return the index of the hidden state for an encoder of so many layers.

        Raises:
            ConfigError: the encoder has no such layer.
        """
        if self.layer in ("middle", "last"):
            return layers if self.layer == "last" else math.ceil(layers / 2)
        if int(self.layer) > layers:
            raise ConfigError(
                f"{setting('layer')} is {self.layer}, but the model has {layers} layers; give 0 to {layers}."
            )
        return int(self.layer)


@dataclass(frozen=True)
class LanguageRetrieval:
    """Accuracy of one language, fractions in [0, 1].

    Attributes:
        language: code.
        examples: N, the rows on each side, among which each neighbour is sought.
        to_other: how often the nearest translation of a text is its own.
        from_other: the same from the translations to the texts.
        duplicates: rows whose text occurred before on the same side, of both sides together; they make ties.
        left_out: rows without a partner.
    """

    language: str
    examples: int
    to_other: float
    from_other: float
    duplicates: int = 0
    left_out: int = 0

    @property
    def mean(self) -> float:
        """Mean of both directions."""
        return (self.to_other + self.from_other) / 2

    @property
    def chance(self) -> float:
        """Expected accuracy of a random choice."""
        return 1 / self.examples


@dataclass(frozen=True)
class RetrievalResults:
    """What `hf-xlt retrieve` found; holds no local path.

    Attributes:
        model: Hub id or plain name.
        data: name of the data.
        split: split that was read.
        other: name of the other side: a language code, or the column of the translations.
        layer: index of the hidden state, 0 being the embeddings.
        layers: number of layers of the encoder.
        pooling: `mean` or `first`.
        max_length: longest input in tokens.
        scores: one entry per language.
    """

    model: str
    data: str
    split: str
    other: str
    layer: int
    layers: int
    pooling: str
    max_length: int
    scores: tuple[LanguageRetrieval, ...] = field(default=())

    def average(self, read: Callable[[LanguageRetrieval], float]) -> float:
        """Return the unweighted mean over languages of one figure."""
        return sum(map(read, self.scores)) / len(self.scores)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form."""
        figures = ("to_other", "from_other", "mean", "chance")
        settings = {name: value for name, value in vars(self).items() if name != "scores"}
        languages = {
            score.language: {
                **{name: value for name, value in vars(score).items() if name != "language"},
                "mean": score.mean,
                "chance": score.chance,
            }
            for score in self.scores
        }
        average = {name: self.average(lambda score, name=name: getattr(score, name)) for name in figures}
        return {**settings, "similarity": "cosine", "languages": languages, "average": average}

    def table(self) -> list[list[str]]:
        """Return rows of text, header first, the average last; figures are percentages."""
        header = ["Code", "Language", "N", f"to {self.other}", f"from {self.other}", "Mean", "Chance"]
        rows = [
            [
                *(score.language, english_name(score.language), str(score.examples)),
                *map(percent, (score.to_other, score.from_other, score.mean)),
                f"{100 * score.chance:.2f}",
            ]
            for score in self.scores
        ]
        figures = [self.average(read) for read in (lambda s: s.to_other, lambda s: s.from_other, lambda s: s.mean)]
        chance = self.average(lambda score: score.chance)
        return [header, *rows, ["", "Average", "", *map(percent, figures), f"{100 * chance:.2f}"]]

    def notes(self) -> list[str]:
        """Say how the figures came about and what limits them."""
        lines = [
            f"Model {self.model}, hidden state {self.layer} of {self.layers}, {self.pooling} pooling, at most "
            f"{self.max_length} tokens; data {self.data}, split {self.split}; cosine, ties count as misses."
        ]
        duplicated = [f"{score.language} {score.duplicates}" for score in self.scores if score.duplicates]
        if duplicated:
            lines.append(
                f"Rows whose text occurred before on the same side, which make ties: {', '.join(duplicated)}."
            )
        partial = [f"{score.language} {score.left_out}" for score in self.scores if score.left_out]
        if partial:
            lines.append(f"Rows left out for want of a partner: {', '.join(partial)}.")
        return lines

    def write(self, folder: Path, overwrite: bool = False) -> None:
        """Write retrieval.json and retrieval.md; the same results give the same bytes.

        Raises:
            ConfigError: there are results already, or the folder is a file.
        """
        check_output(folder, overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JSON_NAME, self.to_dict())
        write_text(folder / TABLE_NAME, markdown(self.table()) + "\n\n" + "\n\n".join(self.notes()) + "\n")


def check_output(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, before any work.

    Raises:
        ConfigError: there are results already that may not be replaced, or the folder is a file or read-only.
    """
    keys = ("similarity", "languages", "average")
    check_files(folder, (JSON_NAME, TABLE_NAME), keys, overwrite=overwrite, what="results")


def load_encoder(source: ModelSource) -> PreTrainedModel:
    """Load the bare encoder in float32, in evaluation mode, on the GPU where there is one.

    Raises:
        ConfigError: it cannot be loaded, or weights other than a pooler are missing.
    """
    import torch
    from transformers import AutoModel

    with readable_errors(source.path), quiet():
        model, report = AutoModel.from_pretrained(
            source.path, revision=source.revision, dtype=torch.float32, output_loading_info=True
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise ConfigError(f"model `{source.path}` cannot be used: weights such as `{missing[0]}` are missing.")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def embed_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], settings: Pooling
) -> Tensor:
    """Return one vector per text.

    Args:
        model: an encoder without head, in evaluation mode.
        tokenizer: its tokenizer.
        texts: N sentences.
        settings: layer, pooling, lengths.

    Returns:
        (N, D) in float32, on the CPU, not normalised.

    Raises:
        ConfigError: the model has no such layer.
    """
    import torch

    layer = settings.resolve_layer(model.config.get_text_config().num_hidden_layers)
    length = longest_input(settings.max_length, tokenizer, model.config)
    encoded = tokenizer(list(texts), truncation=True, max_length=length, return_special_tokens_mask=True)
    # Batches of like lengths: less padding, which no vector depends on.
    order = sorted(range(len(texts)), key=lambda row: len(encoded["input_ids"][row]))
    vectors: list[Tensor] = [None] * len(texts)
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        batch = {name: [values[row] for row in rows] for name, values in encoded.items()}
        inputs = tokenizer.pad(batch, return_tensors="pt").to(model.device)
        special = inputs.pop("special_tokens_mask")
        with torch.inference_mode():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
        pooled = _pool(hidden, inputs["attention_mask"], special, settings.pooling).cpu()
        for row, vector in zip(rows, pooled, strict=True):
            vectors[row] = vector
    return torch.stack(vectors)


def _pool(hidden: Tensor, mask: Tensor, special: Tensor, pooling: str) -> Tensor:
    """Return (B, D) of hidden (B, T, D); mask and special are (B, T), 1 for real and for special tokens."""
    if pooling == "first":
        # Padding may stand on the left.
        return hidden[range(len(hidden)), mask.argmax(1)].float()
    words = mask * (1 - special)
    weights = words.where(words.any(1, keepdim=True), mask).unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def retrieval_accuracy(left: Tensor, right: Tensor, chunk: int = CHUNK) -> tuple[float, float]:
    """Return how often a row's nearest row on the other side, by cosine, is its own; a tie is a miss.

    Args:
        left: (N, D), row i the translation of row i of `right`.
        right: (N, D).
        chunk: rows per block; no more than chunk x chunk similarities are held at a time.

    Returns:
        Accuracy from left to right and from right to left, in [0, 1].

    Raises:
        ValueError: the shapes differ, or there are no rows.
    """
    import torch
    from torch.nn.functional import normalize

    if left.shape != right.shape or left.ndim != 2 or len(left) == 0:
        raise ValueError(f"got shapes {tuple(left.shape)} and {tuple(right.shape)}; both must be (N, D) with N > 0.")
    left, right = (normalize(side.double(), dim=1) for side in (left, right))
    own = (left * right).sum(1)
    rivals = [torch.full_like(own, -math.inf) for _ in range(2)]
    for i in range(0, len(left), chunk):
        for j in range(0, len(right), chunk):
            block = left[i : i + chunk] @ right[j : j + chunk].T
            if i == j:
                block.fill_diagonal_(-math.inf)
            for rival, start, dim in ((rivals[0], i, 1), (rivals[1], j, 0)):
                part = rival[start : start + chunk]
                torch.maximum(part, block.amax(dim), out=part)
    forward, backward = ((own > rival + TIE).double().mean().item() for rival in rivals)
    return forward, backward


def retrieve(
    model: str,
    source: Source,
    sets: Iterable[ParallelSet],
    settings: Pooling,
    *,
    split: str,
    other: str,
    revision: str | None = None,
) -> RetrievalResults:
    """Score a model's retrieval on parallel sets.

    Args:
        model: run directory, model directory, Hub id, or `embedded`.
        source: where the sets come from.
        sets: one per language.
        settings: how sentences become vectors.
        split: split of the sets, for the record.
        other: name of the other side.
        revision: branch, tag or commit on the Hub.

    Raises:
        ConfigError: the model cannot be loaded, or has no such layer.
    """
    found = ModelSource.find(model, revision=revision)
    tokenizer = found.load_tokenizer()
    encoder = load_encoder(found)
    layers = encoder.config.get_text_config().num_hidden_layers
    layer = settings.resolve_layer(layers)
    scores, last = [], ((), None)
    for part in track(sets, "Languages"):
        # The other side of a join is often the same for all languages.
        if part.translations != last[0]:
            last = (part.translations, embed_texts(encoder, tokenizer, part.translations, settings))
        forward, backward = retrieval_accuracy(embed_texts(encoder, tokenizer, part.texts, settings), last[1])
        duplicates = sum(len(side) - len(set(side)) for side in (part.texts, part.translations))
        scores.append(LanguageRetrieval(part.language, len(part.texts), forward, backward, duplicates, part.left_out))
    return RetrievalResults(
        model=found.name or Path(model).resolve().name,
        data=source.name,
        split=split,
        other=other,
        layer=layer,
        layers=layers,
        pooling=settings.pooling,
        max_length=longest_input(settings.max_length, tokenizer, encoder.config),
        scores=tuple(scores),
    )
