"""Smoothed prediction: one answer from several noisy passes, and how the passes voted.

Source: Cohen, Rosenfeld and Kolter (2019), "Certified Adversarial Robustness via Randomized Smoothing". Here the noise
lies on word embeddings, so a certificate speaks of shifts in embedding space, not of edits of words. The certified
radius is in `certificate`.

Noise is keyed by the seed of the run and the content of an example, its input ids without padding: so it depends
neither on the batch, nor on padding, order or process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_xlt.errors import ConfigError
from hf_xlt.randomness import keyed_generator
from hf_xlt.strategies.robust.dropout import side_pass
from hf_xlt.strategies.robust.embedding_hook import perturbed_embeddings
from hf_xlt.strategies.robust.noise import draw_noise
from hf_xlt.strategies.robust.perturbation import content_positions
from hf_xlt.strategies.robust.predictions import kind_of, log_probabilities, logits_of, without_labels
from hf_xlt.strategies.robust.search import PerturbingTrainer


def content_generators(input_ids: Tensor, content: Tensor, seed: int) -> list[torch.Generator]:
    """Return a generator per example, keyed by its ids (B, T) at the positions that hold text, bool (B, T)."""
    texts = [" ".join(map(str, ids[kept].tolist())) for ids, kept in zip(input_ids, content, strict=True)]
    return [keyed_generator(seed, "smoothing", text, device=content.device) for text in texts]


def count_votes(draws: Iterable[Tensor]) -> Tensor:
    """Count how often each choice was the most probable: log probabilities (..., C) per draw -> int64 (..., C)."""
    return sum(F.one_hot(draw.argmax(dim=-1), draw.shape[-1]) for draw in draws)


def combine(draws: list[Tensor], mode: str) -> Tensor:
    """Make one prediction of several.

    Args:
        draws: log probabilities (..., C), one per draw.
        mode: `mean_prob`, or `vote`.

    Returns:
        Log probabilities (..., C), finite: of the mean, or of the votes with the mean as one vote more. That vote
        decides ties and nothing else, and keeps a choice without votes from probability 0.
    """
    stacked = torch.stack(draws)
    mean = stacked.logsumexp(dim=0) - torch.tensor(float(len(draws))).log()
    if mode == "mean_prob":
        return mean
    shares = (count_votes(draws) + mean.exp()) / (len(draws) + 1)
    return shares.clamp(min=torch.finfo(shares.dtype).tiny).log()


def smooth(draws: Iterable[Mapping[str, Tensor]], mode: str, config: Any, content: Tensor) -> dict[str, Tensor]:
    """Make one prediction of several.

    Args:
        draws: logits by name, as `logits_of` returns, one dict per draw.
        mode: `vote`, `mean_prob` or `mean_logit`.
        config: the model's config, for the kind of prediction.
        content: bool (B, T), positions that hold text; others are no candidates for a start or an end.

    Returns:
        By the names and in the shapes of `draws`: mean logits, or log probabilities (log odds for several labels),
        which are logits of the smoothed model.

    Raises:
        ConfigError: a vote over numbers.
    """
    predictions = list(draws)
    kind = kind_of(predictions[0], config)
    if kind == "number" and mode == "vote":
        raise ConfigError("`smooth_predict` vote needs classes, and the model predicts a number. Use mean_logit.")
    smoothed = {}
    for name in predictions[0]:
        logits = [prediction[name] for prediction in predictions]
        if mode == "mean_logit" or kind == "number":
            smoothed[name] = torch.stack(logits).mean(dim=0)
            continue
        choices = combine([log_probabilities(draw, kind, content) for draw in logits], mode)
        smoothed[name] = choices[..., 1] - choices[..., 0] if kind == "labels" else choices
    return smoothed


class SmoothedModel(nn.Module):
    """Stands in for a model in evaluation; a call returns the smoothed prediction."""

    def __init__(self, predict: Callable[[Mapping[str, Any]], dict[str, Tensor]]) -> None:
        """Wrap a function from a batch to logits by name."""
        super().__init__()
        self.predict = predict
        self.training = False

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        """Return logits by name."""
        return self.predict(inputs)


class SmoothingTrainer(PerturbingTrainer):
    """Evaluates by smoothed prediction when `smooth_predict` asks for it, and counts votes."""

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Evaluate a batch as `Trainer.prediction_step`, with `smooth_predict` that of the smoothed model.

        Returns:
            Loss, logits and labels; the loss is that of the logits, which are the smoothed model's.

        Raises:
            ConfigError: a vote over numbers, or a batch without `input_ids`.
        """
        if self.args.smoothing_radius > 0:
            plain = model

            def predict(batch: Mapping[str, Any]) -> dict[str, Tensor]:
                bare = self.bare_model()
                content = content_positions(batch, getattr(bare.config, "pad_token_id", None))
                draws = self.noisy_predictions(plain, batch, self.args.smooth_samples)
                return smooth(draws, self.args.smooth_predict, bare.config, content)

            model = SmoothedModel(predict)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def noisy_predictions(
        self, model: nn.Module, inputs: Mapping[str, Any], samples: int
    ) -> Iterator[dict[str, Tensor]]:
        """Yield logits by name under fresh noise, without dropout; the model is left as it was after each pass.

        Args:
            model: wrapped or bare.
            inputs: one batch with `input_ids`; labels in it are not used.
            samples: number of passes.

        Raises:
            ConfigError: the batch has no `input_ids`, to which the noise is keyed.
        """
        if inputs.get("input_ids") is None:
            raise ConfigError("smoothed prediction keys its noise by `input_ids`, and the batch has none.")
        bare, config = self.bare_model(), self.args
        content = content_positions(inputs, getattr(bare.config, "pad_token_id", None))
        generators = content_generators(inputs["input_ids"], content, config.seed)
        place, radius = self._place(bare, inputs, generators), self._absolute(config.smoothing_radius)
        unlabelled = without_labels(inputs)
        for _ in range(samples):
            noise = draw_noise(config.noise, config.norm_scope, radius, place)
            with (
                torch.no_grad(),
                self.accelerator.autocast(),
                side_pass(bare, config.device, "eval", 0),
                perturbed_embeddings(bare, unlabelled, noise) as noisy,
            ):
                logits = logits_of(model(**noisy))
            yield logits

    def vote_counts(self, inputs: Mapping[str, Any], samples: int | None = None) -> dict[str, Tensor]:
        """Count the votes of noisy passes, for example for a certificate (`certificate.certify`).

        Args:
            inputs: one batch with `input_ids` on the model's device.
            samples: number of passes; unset: `smooth_samples`.

        Returns:
            int64 by name: `logits` (B, C), or (B, T, C) for a prediction per token, or (B, C, 2), absent and present,
            for several labels; or `start_logits` and `end_logits` (B, T). The votes of a decision sum to `samples`.

        Raises:
            ConfigError: the model predicts a number, the batch has no `input_ids`, or `smooth_predict` is none or its
                radius 0.
        """
        if self.args.smoothing_radius == 0:
            raise ConfigError("votes need noise: set `smooth_predict` and a radius above 0.")
        bare = self.bare_model()
        content = content_positions(inputs, getattr(bare.config, "pad_token_id", None))
        counts: dict[str, Tensor] = {}
        for logits in self.noisy_predictions(bare, inputs, samples or self.args.smooth_samples):
            kind = kind_of(logits, bare.config)
            if kind == "number":
                raise ConfigError("votes need classes, and the model predicts a number.")
            for name, values in logits.items():
                votes = count_votes([log_probabilities(values, kind, content)])
                counts[name] = counts[name] + votes if name in counts else votes
        return counts

    def phase_facts(self) -> dict[str, Any]:
        """Return what the record is to say: with smoothed prediction, how the scores were obtained."""
        config, facts = self.args, super().phase_facts()
        if config.smoothing_radius > 0:
            names = ("smooth_predict", "smooth_samples", "noise", "norm_scope")
            how = {name.removeprefix("smooth_"): getattr(config, name) for name in names}
            facts["smoothed_prediction"] = how | {"radius": self.smoothing_sigma()}
        return facts

    def smoothing_sigma(self) -> float:
        """Return the radius of the noise at evaluation in embedding space; for gaussian noise its sigma."""
        return self._absolute(self.args.smoothing_radius)
