"""What a phase will do, in figures: mixture, effective epochs, memory of the logits, and what to look out for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_xlt.pretraining.batches import Layout, PhaseBatches, PhaseText
from hf_xlt.pretraining.loading import UNKNOWN_LIMIT, unknown_shares
from hf_xlt.pretraining.mixture import effective_epochs, temperature_distribution
from hf_xlt.pretraining.plan import CONTRASTIVE, DISTILL, MLM, TLM, Phase


@dataclass(frozen=True)
class PhaseReport:
    """Figures of one phase.

    Attributes:
        phase: the phase.
        tokens: tokens of all packed rows of the phase.
        shares: q_l.
        epochs: how often each language's text is read by masked-LM rows.
        sizes: tokens of each language's text.
        estimated: languages whose size is an estimate.
        logits_bytes: float32 logits of one micro-batch if every token were projected.
        masked_bytes: float32 logits of its masked tokens alone; even these are held in parts.
        warnings: one sentence each.
        texts: texts to distil on, over all updates.
    """

    phase: Phase
    tokens: int
    shares: Mapping[str, float]
    epochs: Mapping[str, float]
    sizes: Mapping[str, float]
    estimated: frozenset[str]
    logits_bytes: int
    masked_bytes: int
    warnings: tuple[str, ...]
    texts: int = 0

    def lines(self) -> list[str]:
        """Return the report as text."""
        phase = self.phase
        weights = ", ".join(f"{name} x {weight:g}" for name, weight in phase.objectives.items())
        lines = [
            f"Phase {phase.name}: {phase.steps:,} updates, {self.tokens:,} tokens in packed rows, {weights}, "
            f"alpha {phase.alpha:g}",
            f"  logits: {self.logits_bytes / 2**20:,.0f} MiB if every token were projected, "
            f"{self.masked_bytes / 2**20:,.0f} MiB for the masked ones",
            f"  {'language':<10} {'tokens':>13} {'share':>7} {'epochs':>8}",
        ]
        if not phase.masked:
            lines.pop(1)
        if DISTILL in phase.objectives:
            lines.insert(1, f"  teacher: {phase.teacher}, {self.texts:,} texts of at most {phase.text_length} tokens")
        for code in sorted(self.shares, key=self.shares.get, reverse=True):
            mark = "~" if code in self.estimated else ""
            lines.append(
                f"  {code:<10} {mark + format(int(self.sizes[code]), ','):>13} {self.shares[code]:>7.4f} "
                f"{self.epochs[code]:>8.2f}"
            )
        return lines + [f"  Warning: {warning}" for warning in self.warnings]


def report_phase(phase: Phase, text: PhaseText, vocabulary: int, config: Any) -> PhaseReport:
    """Compute the figures of a phase.

    Args:
        phase: the phase.
        text: its text.
        vocabulary: rows of the output layer.
        config: a `MetaPretrainingConfig` with the phase's batch size.

    Raises:
        ConfigError: the mixture cannot be computed.
    """
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    tokens = phase.steps * rows * (config.row_length - 1) if phase.masked else 0
    shares = temperature_distribution(text.sizes, phase.alpha, phase.floors)
    part = 0.0 if MLM not in phase.objectives else 1.0 - (phase.tlm_share if TLM in phase.objectives else 0.0)
    epochs = effective_epochs(shares, text.sizes, tokens * part)
    batch_tokens = config.per_device_train_batch_size * config.row_length
    warnings = [
        f"{len(high)} languages would be read more than {config.epoch_limit:g} times ({', '.join(high[:8])}"
        f"{', ...' if len(high) > 8 else ''}); raise alpha, or lower the steps."
        for high in [[code for code, value in epochs.items() if value > config.epoch_limit]]
        if high
    ]
    if phase.alpha > 1:
        warnings.append(f"alpha is {phase.alpha:g}: above 1 it favours large languages beyond their share.")
    warnings += [
        f"{share:.1%} of the tokens of `{code}` are unknown to the tokenizer; train one that covers it."
        for code, share in unknown_shares(text.corpora).items()
        if share > UNKNOWN_LIMIT
    ]
    if CONTRASTIVE in phase.objectives and config.per_device_train_batch_size < 8 and phase.pairs is None:
        warnings.append("few translation pairs in a batch make an easy contrast; set `pairs`.")
    return PhaseReport(
        phase,
        tokens,
        shares,
        epochs,
        text.sizes,
        text.estimated,
        batch_tokens * vocabulary * 4,
        int(batch_tokens * phase.masked_share) * vocabulary * 4,
        tuple(warnings),
        phase.steps * rows // config.per_device_train_batch_size * (phase.texts or config.per_device_train_batch_size)
        if DISTILL in phase.objectives
        else 0,
    )


def try_batches(phase: Phase, text: Any, tokenizer: Any, config: Any) -> str:
    """Build one batch of the phase, and one row of every language; return the shapes as text.

    Raises:
        ConfigError: text, tokenizer and phase do not fit together.
    """
    batches = PhaseBatches(
        phase, text, tokenizer, config.seed, Layout(config.per_device_train_batch_size, config.row_length)
    )
    batches.open_streams(0, 1, None)
    shapes = {name: tuple(value.shape) for name, value in batches.batch(0).items() if hasattr(value, "shape")}
    if MLM in phase.objectives:
        for code in batches.shares:
            batches.row(MLM, code, 0)
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
