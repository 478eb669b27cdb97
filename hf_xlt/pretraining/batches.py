"""The batches of a phase: packed rows with masked tokens, translation pairs, and texts to distil on.

Batch n of a process is a pure function of (seed, phase, n) as long as no text is streamed: resuming takes one integer,
and the rows of an update do not depend on how it is split over micro-batches, processes and loader workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.pretraining.corpus import PackedRows, Subset, opening_token, separator_token
from hf_xlt.pretraining.distillation import DistillationTexts, TeacherText
from hf_xlt.pretraining.masking import MaskingRule, mask_rows, row_draws
from hf_xlt.pretraining.mixture import LanguageSampler, temperature_distribution
from hf_xlt.pretraining.parallel import JoinedDocuments, PairSampler, ParallelText
from hf_xlt.pretraining.plan import CONTRASTIVE, DISTILL, DISTILL_TOKENS, MLM, TLM, Phase
from hf_xlt.pretraining.streaming import MAX_FAILED_SHARDS, StreamedRows
from hf_xlt.randomness import derive_seed

IGNORED = -100
# Pairs of so many batches are sorted by length together, which saves most of the padding.
_WINDOW = 16
READER_STATE = "reader_state"
FAILURE = "failure"


@dataclass
class PhaseText:
    """The text of one phase.

    Attributes:
        corpora: documents to train on, by language; tokenised before.
        held_out: documents to evaluate on, by language.
        streams: streamed data sets by language, with their text column.
        sizes: tokens per language; estimated for streams.
        estimated: languages whose size is an estimate.
        names: what the streamed data are called, by language, for messages.
        teacher: the same documents as the tokenizer of a teacher cuts them, for distillation.
    """

    corpora: Mapping[str, Subset]
    held_out: Mapping[str, Subset] = field(default_factory=dict)
    streams: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    estimated: frozenset[str] = frozenset()
    names: Mapping[str, str] = field(default_factory=dict)
    teacher: TeacherText | None = None

    @classmethod
    def of_corpora(cls, corpora: Mapping[str, Subset], held_out: Mapping[str, Subset] | None = None) -> PhaseText:
        """Take corpora, whose sizes are exact."""
        sizes = {code: float(subset.lengths.sum()) for code, subset in corpora.items()}
        return cls(corpora, dict(held_out or {}), sizes=sizes)


@dataclass(frozen=True)
class Layout:
    """How updates are split.

    Attributes:
        rows: B, packed rows of one device's micro-batch.
        length: T, tokens of a row.
        rank: index of this process.
        processes: how many there are.
    """

    rows: int
    length: int
    rank: int = 0
    processes: int = 1


class PhaseBatches:
    """Builds the batches of one phase for one process."""

    def __init__(
        self,
        phase: Phase,
        text: PhaseText,
        tokenizer: Any,
        seed: int,
        layout: Layout,
        max_failed_shards: float = MAX_FAILED_SHARDS,
    ) -> None:
        """Prepare samplers and packers.

        Args:
            phase: objectives and mixture.
            text: the text of the phase.
            tokenizer: fast tokenizer with mask, separator and a classification or beginning token.
            seed: of the run.
            layout: how updates are split.
            max_failed_shards: share of a streamed language's shards that may fail in one pass, in [0, 1).

        Raises:
            ConfigError: the tokenizer lacks a token, or the phase needs translations and there are none.
        """
        self.phase, self.text, self.tokenizer, self.layout = phase, text, tokenizer, layout
        self.max_failed_shards = max_failed_shards
        self.key = (seed, "pre-training", phase.name)
        self.first, self.separator = opening_token(tokenizer), separator_token(tokenizer)
        self.rule = MaskingRule.from_tokenizer(tokenizer, phase.masked_share, whole_words=phase.whole_words)
        self.special = np.array(sorted(set(tokenizer.all_special_ids)))
        self.shares = temperature_distribution(text.sizes, phase.alpha, phase.floors)
        self.parallel = ParallelText(text.corpora) if phase.parallel else None
        self.kinds = LanguageSampler(self._kind_shares(), *self.key, "kinds") if phase.masked else None
        self.languages = LanguageSampler(self.shares, *self.key, MLM)
        if self.parallel is not None:
            codes = set(self.parallel.numbers)
            sizes = {code: text.sizes[code] for code in codes}
            shares = temperature_distribution({code: sizes[code] for code in sorted(codes)}, phase.alpha)
            self.pair_shares = self.parallel.distribution(shares, phase.pivot, phase.pivot_share)
            self.translations = LanguageSampler(self.pair_shares, *self.key, TLM)
            self.pairs = PairSampler(self.parallel, self.pair_shares, *self.key, CONTRASTIVE)
        self.distillation = self._texts() if DISTILL in phase.objectives else None
        self._packers: dict[str, PackedRows] = {}
        self._readers: dict[str, StreamedRows] = {}
        self._window: tuple[int, list[Any]] = (-1, [])

    def _texts(self) -> DistillationTexts:
        if self.text.teacher is None:
            raise ConfigError(f"phase `{self.phase.name}`: its text was loaded without its teacher's tokens.")
        longest, key = self.phase.text_length, (*self.key, DISTILL)
        return DistillationTexts(self.text.corpora, self.shares, self.text.teacher, self.tokenizer, longest, *key)

    def _kind_shares(self) -> dict[str, float]:
        kinds = list(self.phase.masked)
        if len(kinds) == 1:
            return {kinds[0]: 1.0}
        return {MLM: 1.0 - self.phase.tlm_share, TLM: self.phase.tlm_share}

    @property
    def body(self) -> int:
        """Tokens of a row after the opening one."""
        return self.layout.length - 1

    @property
    def pairs_per_batch(self) -> int:
        """Translation pairs in one contrastive batch."""
        return self.phase.pairs or max(self.layout.rows // 2, 2)

    @property
    def texts_per_batch(self) -> int:
        """Texts in one distillation batch."""
        return self.phase.texts or self.layout.rows

    def rows_before(self, number: int) -> int:
        """Return how many packed rows all processes took before their batch `number`."""
        return number * self.layout.processes * self.layout.rows

    def rows_per_language(self, rows: int) -> dict[str, int]:
        """Return how many of the first `rows` rows are masked-LM rows of each language."""
        if MLM not in self.phase.objectives:
            return dict.fromkeys(self.shares, 0)
        taken = self.kinds.counts_before(rows)[self.kinds.languages.index(MLM)]
        counts = self.languages.counts_before(int(taken))
        return dict(zip(self.languages.languages, counts.tolist(), strict=True))

    # ---- Streams

    def open_streams(self, reader: int, readers: int, state: Mapping[str, Any] | None) -> None:
        """Open the streamed languages for one reader, where `state` says it left off."""
        self._readers = {}
        for code, (dataset, column) in self.text.streams.items():
            stream = StreamedRows(
                dataset,
                self.tokenizer,
                self.body,
                *self.key,
                code,
                where=f"the text of `{code}`" + (f" ({self.text.names[code]})" if code in self.text.names else ""),
                text_column=column,
                reader=reader,
                readers=readers,
                max_failed_shards=self.max_failed_shards,
            )
            if state:
                stream.load_state(state[code])
            self._readers[code] = stream

    def streams_state(self) -> dict[str, Any]:
        """Return where the streams are, by language."""
        return {code: stream.state() for code, stream in self._readers.items()}

    # ---- Batches

    def batch(self, number: int) -> dict[str, Any]:
        """Build this process's batch `number`.

        Returns:
            `input_ids`, `labels` (B, T) and `objective` (B,), an index into `phase.masked`; with isolated documents
            also `attention_mask` (B, 1, T, T) and `position_ids` (B, T). With the contrastive objective
            `pair_input_ids` and `pair_attention_mask` (2P, S), left sides first, and `pair_numbers` (P,). With
            distillation what `DistillationTexts.batch` returns.
        """
        batch: dict[str, Any] = {}
        if self.phase.masked:
            batch |= self._masked(number)
        if CONTRASTIVE in self.phase.objectives:
            batch |= self._contrastive(number * self.layout.processes + self.layout.rank)
        if self.distillation is not None:
            slot = number * self.layout.processes + self.layout.rank
            batch |= self.distillation.batch(slot, self.texts_per_batch, DISTILL_TOKENS in self.phase.weights)
        return batch

    def _masked(self, number: int) -> dict[str, Any]:
        count = self.layout.rows
        start = self.rows_before(number) + self.layout.rank * count
        ids = np.empty((count, self.layout.length), dtype=np.int64)
        ids[:, 0] = self.first
        kinds, places = self.kinds.places(start, count)
        for kind, sampler in ((MLM, self.languages), (TLM, getattr(self, "translations", None))):
            mine = np.flatnonzero([self.kinds.languages[index] == kind for index in kinds])
            if len(mine):
                codes, positions = sampler.places(int(places[mine[0]]), len(mine))
                for row, code, position in zip(mine, codes, positions, strict=True):
                    ids[row, 1:] = self.row(kind, sampler.languages[code], int(position))
        eligible = ~np.isin(ids, self.special)
        rows = np.arange(start, start + count)
        draws = row_draws(derive_seed(*self.key, "mask"), rows, self.layout.length)
        inputs, labels = mask_rows(ids, eligible, draws, self.rule)
        batch = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
        batch["objective"] = torch.from_numpy(np.array(self._kind_index())[kinds])
        return batch | (isolate(ids, self.separator) if self.phase.isolated else {})

    def _kind_index(self) -> list[int]:
        names = list(self.phase.masked)
        return [names.index(kind) for kind in self.kinds.languages]

    def row(self, kind: str, name: str, position: int) -> np.ndarray:
        """Return one packed row without its opening token: (T - 1,) int64.

        Args:
            kind: `mlm` or `tlm`.
            name: language, or pair of languages `a b`.
            position: number of the row within that stream; streamed text ignores it and reads on.
        """
        if kind == MLM and name in self._readers:
            return self._readers[name].next_row()
        key = f"{kind} {name}"
        if key not in self._packers:
            documents: Any = self.text.corpora.get(name)
            if kind == TLM:
                longest = (self.body - 2) // 2
                documents = JoinedDocuments(self.parallel.common(name), self.separator, longest)
            self._packers[key] = PackedRows(documents, self.body, self.separator, *self.key, key)
        return self._packers[key].row(position)

    def _contrastive(self, slot: int) -> dict[str, Any]:
        count = self.pairs_per_batch
        window, place = divmod(slot, _WINDOW)
        if self._window[0] != window:
            pairs = self.pairs.draw(window * _WINDOW * count, _WINDOW * count)
            pairs.sort(key=lambda pair: max(len(pair[0]), len(pair[1])))
            order = np.random.Generator(np.random.Philox(key=derive_seed(*self.key, "window", window)))
            batches = [pairs[start : start + count] for start in range(0, len(pairs), count)]
            self._window = (window, [batches[index] for index in order.permutation(_WINDOW)])
        chosen = self._window[1][place]
        sides = [pair[0] for pair in chosen] + [pair[1] for pair in chosen]
        longest = self.phase.pair_length - 2
        width = min(max(map(len, sides)), longest) + 2
        ids = np.full((2 * count, width), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros((2 * count, width), dtype=np.int64)
        for row, side in enumerate(sides):
            tokens = [self.first, *side[:longest].tolist(), self.separator]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return {
            "pair_input_ids": torch.from_numpy(ids),
            "pair_attention_mask": torch.from_numpy(mask),
            "pair_numbers": torch.tensor([pair[2] for pair in chosen]),
        }


def isolate(ids: np.ndarray, separator: int) -> dict[str, torch.Tensor]:
    """Keep the documents of a row apart.

    Args:
        ids: (B, T) token ids before masking; a document ends with `separator`.
        separator: the closing token.

    Returns:
        `attention_mask` (B, 1, T, T) float, 0 where attention is allowed and the lowest number elsewhere, and
        `position_ids` (B, T) from 0 in each document.
    """
    ends = ids == separator
    segment = np.cumsum(ends, axis=1) - ends
    same = segment[:, :, None] == segment[:, None, :]
    places = np.arange(ids.shape[1])
    starts = np.where(np.diff(segment, axis=1, prepend=-1) != 0, places, 0)
    positions = places - np.maximum.accumulate(starts, axis=1)
    mask = np.where(same, 0.0, np.finfo(np.float32).min).astype(np.float32)
    return {"attention_mask": torch.from_numpy(mask[:, None]), "position_ids": torch.from_numpy(positions)}


class BatchNumbers(Dataset):
    """The batches of one process as a data set: item n is batch n. Loaders skip by number, without reading."""

    def __init__(self, batches: PhaseBatches, count: int, workers: int, states: Mapping[str, Any]) -> None:
        """Offer `count` batches to `workers` loader workers; `states` holds the streams' states by reader."""
        self.batches, self.count, self.workers, self.states = batches, count, max(workers, 1), states
        self._reader: int | None = None

    def __len__(self) -> int:
        """Return the number of batches."""
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Build one batch; with streamed text it carries the state of the streams after it, or what stopped them."""
        if not self.batches.text.streams:
            return self.batches.batch(number)
        # The loader deals numbers out in turn, so a worker always meets the same reader, wherever a run was resumed.
        reader = self.batches.layout.rank * self.workers + number % self.workers
        if self._reader != reader:
            readers = self.batches.layout.processes * self.workers
            self.batches.open_streams(reader, readers, self.states.get(str(reader)))
            self._reader = reader
        try:
            batch = self.batches.batch(number)
        except (ConfigError, RunError) as error:
            # Raised in a worker, it would reach the main process as a traceback.
            return {FAILURE: error}
        return batch | {READER_STATE: {str(reader): self.batches.streams_state()}}


def batch_loader(
    numbers: BatchNumbers, workers: int = 0, prefetch: int | None = None, pin_memory: bool = False
) -> DataLoader:
    """Return a loader of a process's batches in order."""
    return DataLoader(
        numbers,
        batch_sampler=BatchSampler(SequentialSampler(numbers), 1, drop_last=False),
        collate_fn=_only,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def _only(items: list[dict[str, Any]]) -> dict[str, Any]:
    return items[0]
