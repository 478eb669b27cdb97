"""What trimming changed: how text is cut, and what the model says to it."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_xlt.errors import ConfigError, RunError, one_line, setting
from hf_xlt.pretraining.masked import usable_positions
from hf_xlt.pretraining.texts import LanguageText
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 500
_LONGEST = 128
# Of the largest value: what products of other sizes may round away. Rows themselves are copied.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
_LOW_PRECISION = 2e-2


@dataclass(frozen=True)
class Fit:
    """How one language's text is cut before and after.

    Attributes:
        documents: number of texts.
        words: what stands between spaces.
        tokens_before: tokens of the old tokenizer, special ones included.
        tokens_after: of the new one.
        unknown_before: unknown tokens of the old one.
        unknown_after: of the new one.
        changed: tokens of the old one that are no token of the new one at the same place.
        fell: how many of them have become unknown, in whole or in part; the others are split further.
    """

    documents: int
    words: int
    tokens_before: int
    tokens_after: int
    unknown_before: int
    unknown_after: int
    changed: int
    fell: int

    @property
    def split(self) -> int:
        """Tokens of the old tokenizer that are cut in another way and lose nothing."""
        return self.changed - self.fell


def encoded(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> Iterator[Any]:
    """Yield documents as fast tokenizers encode them, whole and with special tokens."""
    for start in range(0, len(documents), _BATCH):
        # Documents may be longer than the model's input; the tokenizer would warn of each.
        batch = tokenizer(list(documents[start : start + _BATCH]), verbose=False, truncation=False, padding=False)
        yield from batch.encodings


def compare(
    before: PreTrainedTokenizerBase,
    after: PreTrainedTokenizerBase,
    new_ids: Mapping[int, int],
    documents: Sequence[str],
) -> Fit:
    """Compare two tokenizers on the texts of a language."""
    words = tokens = fewer = unknown = lost = changed = fell = 0
    for text, old, new in zip(documents, encoded(before, documents), encoded(after, documents), strict=True):
        words += len(text.split())
        tokens, fewer = tokens + len(old.ids), fewer + len(new.ids)
        unknown += old.ids.count(before.unk_token_id)
        lost += new.ids.count(after.unk_token_id)
        if [new_ids.get(index) for index in old.ids] == new.ids:
            continue
        # By ids: an encoding gives an unknown token as the text that it stands for.
        there = set(zip(new.offsets, new.ids, strict=True))
        pairs = zip(old.offsets, old.ids, strict=True)
        gone = [place for place, index in pairs if (place, new_ids.get(index)) not in there]
        unknowns = [place for place, index in zip(new.offsets, new.ids, strict=True) if index == after.unk_token_id]
        changed += len(gone)
        fell += sum(any(start < last and first < end for first, last in unknowns) for start, end in gone)
    return Fit(len(documents), words, tokens, fewer, unknown, lost, changed, fell)


def check_same(fits: Mapping[str, Fit]) -> None:
    """Check that text is cut into the same pieces as before.

    Raises:
        RunError: it is not.
    """
    for code, fit in fits.items():
        if fit.changed or fit.tokens_before != fit.tokens_after:
            raise RunError(
                f"language `{code}`: {fit.changed:,} tokens of the text are cut in another way by the trimmed "
                f"tokenizer, which should not happen without {setting('limit')}. Nothing was written; please report "
                f"this "
                "tokenizer."
            )


@dataclass(frozen=True)
class Outputs:
    """What a model says to a sample of the text.

    Attributes:
        ids: token ids of each document.
        tensors: by document, the outputs by name.
    """

    ids: list[list[int]]
    tensors: list[dict[str, torch.Tensor]]


def sample(texts: Mapping[str, LanguageText], count: int) -> list[str]:
    """Return up to so many documents of every language, the same every time."""
    found = []
    for code, text in texts.items():
        draw = random.Random(derive_seed(0, "trim-vocab", code))
        found += draw.sample(text.documents, min(count, len(text.documents)))
    return found


def check_takes_text(model: PreTrainedModel) -> None:
    """Check that a model takes ids of tokens.

    Raises:
        ConfigError: it does not.
    """
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise ConfigError(f"`{type(model).__name__}` takes no ids of tokens, so it has no vocabulary to trim.")


def outputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> Outputs:
    """Run a model on documents, one by one, cut to a length that it takes."""
    made = shortened(model, tokenizer, documents)
    return Outputs(made, [_outputs(model, ids) for ids in made])


def shortened(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> list[list[int]]:
    """Return the ids of documents, cut to a length that the model takes."""
    longest = min(_LONGEST, usable_positions(model) or _LONGEST, tokenizer.model_max_length)
    return [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in documents]


@torch.inference_mode()
def _outputs(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, torch.Tensor]:
    inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    if "use_cache" in inspect.signature(model.forward).parameters:
        # Nothing is generated, and some kinds of layers have no cache to begin with.
        inputs["use_cache"] = False
    try:
        made = _tensors("output", model(**inputs))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"a model of the kind `{model.config.model_type}` cannot be compared before and after: it fails on "
            f"the text ({type(error).__name__}: {one_line(error).rstrip('.')}). Choose another model."
        ) from error
    return {name: tensor.float() for name, tensor in made if tensor.is_floating_point() and tensor.ndim > 1}


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _tensors(f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _tensors(f"{name}.{number}", entry)


@dataclass(frozen=True)
class Difference:
    """How outputs differ, over kept tokens where an output has one value per token.

    Attributes:
        documents: how many were looked at.
        same: how many of them are cut into the same pieces.
        largest: largest absolute difference of outputs to these.
        scale: largest absolute value of outputs to these.
        likeness: lowest cosine between mean outputs to the others, which a limit cuts otherwise; None without any.
    """

    documents: int
    same: int
    largest: float
    scale: float
    likeness: float | None


def difference(
    before: Outputs, model: PreTrainedModel, after: Sequence[Sequence[int]], rows: int, new_ids: Mapping[int, int]
) -> Difference:
    """Compare outputs before with those of a trimmed model on the same documents.

    Args:
        before: of the old model.
        model: the new one.
        after: the documents' ids by the new tokenizer.
        rows: of the old embeddings.
        new_ids: by old ids, in the old order.

    Raises:
        RunError: outputs to the same pieces differ by more than rounding.
    """
    kept = torch.tensor(list(new_ids))
    largest = scale = 0.0
    same, likenesses = 0, []
    for ids, old, now in zip(before.ids, before.tensors, after, strict=True):
        new = _outputs(model, now)
        pairs = [
            (tensor.index_select(-1, kept) if tensor.shape[-1] == rows and rows != len(kept) else tensor, new[name])
            for name, tensor in old.items()
        ]
        if [new_ids.get(index) for index in ids] != list(now):
            likenesses.append(min(map(_likeness, pairs)))
            continue
        same += 1
        for first, second in pairs:
            gap = torch.where((first == second) | (first.isnan() & second.isnan()), 0.0, (first - second).abs())
            largest = max(largest, float(gap.nan_to_num(float("inf")).max()))
            scale = max(scale, float(first[first.isfinite()].abs().amax()) if first.isfinite().any() else 0.0)
    if largest > _TOLERANCE.get(model.dtype, _LOW_PRECISION) * max(1.0, scale):
        raise RunError(
            f"outputs of the trimmed model differ by up to {largest:.3g} from those before (values up to "
            f"{scale:.3g}), which should not happen. Nothing was written; please report this model."
        )
    return Difference(len(before.ids), same, largest, scale, min(likenesses) if likenesses else None)


def _likeness(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the cosine between the means of two outputs over all positions."""
    first, second = (tensor.flatten(0, -2).mean(0) for tensor in pair)
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))
