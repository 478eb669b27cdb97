"""Looking at an encoder: plain fine-tuning on English labels, accuracy, and retrieval of parallel phrases.

Used by the pre-training command to choose among seeds and by the tests. It is no strategy and no replacement for
`hf_xlt.run`: a bare loop, so that a figure of an encoder owes nothing to the Trainer.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_xlt.embedded.phrases import CALENDAR_KINDS, LABELS, PhraseGenerator, PhraseSpec
from hf_xlt.randomness import generators

STEPS, BATCH_SIZE, WARMUP_STEPS, LEARNING_RATE = 180, 32, 20, 5e-4


def linear_schedule(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate at a step counted from 0: linear warm-up, then linear decay to 2 %."""
    return min(1.0, (step + 1) / warmup) * max(0.02, 1 - step / steps)


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Average the vectors of the real tokens.

    Args:
        hidden: (B, T, D).
        mask: (B, T), 1 for real tokens.

    Returns:
        (B, D) in float32.
    """
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    steps: int = STEPS,
    seed: int = 0,
) -> PreTrainedModel:
    """Train a sequence classifier in place with AdamW, and leave it in evaluation mode.

    Args:
        model: the classifier; its head must have `len(LABELS)` outputs.
        tokenizer: the tokenizer of the model.
        rows: rows of `phrase_rows`, at least one batch of them.
        steps: updates of 32 phrases.
        seed: order of the rows and dropout.

    Returns:
        The model given.
    """
    with generators(torch.device("cpu"), seed):
        rng = random.Random(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
        queue: list[dict] = []
        model.train()
        for step in range(steps):
            if len(queue) < BATCH_SIZE:
                queue = rng.sample(rows, len(rows))
            batch, queue = queue[:BATCH_SIZE], queue[BATCH_SIZE:]
            inputs = tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * linear_schedule(step, steps, WARMUP_STEPS)
            loss = model(**inputs, labels=torch.tensor([row["label"] for row in batch])).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return model.eval()


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], batch_size: int = 100
) -> float:
    """Return the percentage of rows whose label the classifier predicts."""
    ordered = sorted(rows, key=lambda row: len(row["text"]))
    correct = 0
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        inputs = tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
        predicted = model(**inputs).logits.argmax(-1)
        correct += int((predicted == torch.tensor([row["label"] for row in batch])).sum())
    return 100 * correct / len(ordered)


@torch.no_grad()
def embed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Return unit-length mean-pooled vectors (B, D) of the base model."""
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    hidden = model.base_model(**inputs).last_hidden_state
    return functional.normalize(mean_pool(hidden, inputs["attention_mask"]), dim=-1)


def development_specs(generator: PhraseGenerator, seed: int = 0) -> list[PhraseSpec]:
    """Return one spec per development item, all with one number, so that digits identify none.

    Dates and clock times are left out: their digits are the same in all languages.
    """
    rng = random.Random(seed)
    specs = []
    for kind in LABELS:
        for item in generator.items(kind, "validation") if kind not in CALENDAR_KINDS else ():
            spec = generator.sample(rng, "validation", kind, item)
            specs.append(PhraseSpec(kind, item, min(spec.number, 1) * 7, spec.style))
    return specs


def retrieval_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    generator: PhraseGenerator,
    source: str,
    targets: Sequence[str],
) -> float:
    """Measure how well development phrases find their translations; no labels are used.

    Args:
        model: an encoder with any head; it is used in evaluation mode.
        tokenizer: the tokenizer of the model.
        generator: renders the source and the target languages.
        source: the language that is paired with each target.
        targets: the other languages.

    Returns:
        Mean over targets and both directions of the percentage of phrases whose nearest neighbour by cosine, among
        all development phrases of the other language, is their translation.
    """
    model.eval()
    specs = development_specs(generator)
    vectors = {
        language: embed(model, tokenizer, [generator.render(language, spec) for spec in specs])
        for language in (source, *targets)
    }
    gold = torch.arange(len(specs))
    hits = []
    for target in targets:
        similarity = vectors[source] @ vectors[target].T
        hits += [(similarity.argmax(dim) == gold).float().mean().item() for dim in (0, 1)]
    return 100 * sum(hits) / len(hits)
