"""The model card of the phrase encoder, rendered from what the pre-training command measured."""

from dataclasses import dataclass

TEMPLATE = """---
library_name: transformers
pipeline_tag: fill-mask
license: other
license_name: unicode-license-v3
license_link: https://www.unicode.org/license.txt
language:
{language_list}
tags:
- cross-lingual-transfer
- modernbert
---

# {name}

A very small multilingual encoder for the offline demonstration of `hf_xlt`: ModernBERT with 2 layers, 128 dimensions,
4 heads and at most 6,000 pieces, {parameters:,} parameters, weights in fp16. It knows short phrases (names of places,
languages, currencies and time zones; dates, times, durations, measures) in {language_count} languages:
{languages}.

## How it was made

From the data of Unicode CLDR {cldr_version} in babel {babel_version}, with the command

    {command}

and one thread, without labels. Phrases are generated, parallel by construction, from *training items* only: an item
of the development or test part of the demonstration task occurs in no line, in no language.

- Contrastive steps (70 %): 64 phrases, each in two languages, mean-pooled, cosine, temperature 0.05, symmetric softmax
  over the batch; one number for the whole batch.
- Masked-LM steps (30 %): one phrase in two languages in a sequence, 40 % of the pieces masked.
- {steps:,} steps, AdamW, learning rate 2e-3, warm-up over one sixteenth of the steps, linear decay, clipping at 1.0,
  float32, no dropout.

### Seeds looked at

English accuracy: 500 development phrases, after 180 plain fine-tuning steps on 1,200 English phrases. Retrieval:
share of development phrases whose nearest neighbour in the other language is their translation, mean of English with
each other language, both directions; no labels.

{seed_table}

Shipped: seed {shipped_seed}, the best retrieval. Target labels played no part: choosing by them would make the
zero-shot figures oracle figures. With one thread the command repeats its figures and its weights bit for bit on the
same processor and versions.

## Use

    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=10, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)

Give `dtype="float32"`: the file is in fp16, which is too coarse for training. The classifier pools the mean, as
pre-training did. The configuration sets dropout to 0.1 for fine-tuning. At most {maximum_length} pieces.

## Limits

- Phrases, not sentences: it has never seen running text and is of no use beyond the demonstration.
- It saw translations of other items: zero-shot here means without labels, not without parallel data.
- All numbers are in Latin digits, an anchor shared by all languages; text is lower-cased.
- Pieces of rare characters in Chinese, Japanese and Korean may be unknown.
- Names follow CLDR, whose choices of territory and language names are those of the Unicode Consortium.

The test phrases of the demonstration task, {test_count:,} in each language, have the SHA-256
`{test_set_hash}`.

## Licence and notice

The weights and the vocabulary derive from data of the Unicode Common Locale Data Repository (CLDR), copyright (c)
2004-2025 Unicode, Inc., used under the Unicode License v3 (SPDX `Unicode-3.0`,
https://www.unicode.org/license.txt), whose full text is in the file NOTICE of `hf_xlt`. Unicode, Inc. has no part in
this model and does not endorse it.
"""


@dataclass(frozen=True)
class SeedFigures:
    """Development figures of one pre-training seed, in percent, and the wall time of its pre-training."""

    seed: int
    english_accuracy: float
    retrieval: float
    seconds: float

    def line(self) -> str:
        """Return the figures as a line of text."""
        return (
            f"seed {self.seed}: English development accuracy {self.english_accuracy:.1f}, "
            f"development retrieval {self.retrieval:.1f}, pre-training {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class EncoderFacts:
    """What the card says beyond its fixed text."""

    name: str
    parameters: int
    languages: tuple[str, ...]
    steps: int
    seeds: tuple[SeedFigures, ...]
    shipped_seed: int
    untrained_retrieval: float
    babel_version: str
    cldr_version: str
    test_set_hash: str
    test_count: int
    maximum_length: int


def render_card(facts: EncoderFacts) -> str:
    """Return the card; the same facts give the same text."""
    rows = ["| seed | English accuracy | retrieval |", "|---|---|---|"]
    rows += [f"| untrained | - | {facts.untrained_retrieval:.1f} |"]
    rows += [f"| {row.seed} | {row.english_accuracy:.1f} | {row.retrieval:.1f} |" for row in facts.seeds]
    seeds = " ".join(str(row.seed) for row in facts.seeds)
    return TEMPLATE.format(
        name=facts.name,
        language_list="\n".join(f"- {language}" for language in facts.languages),
        languages=", ".join(facts.languages),
        language_count=len(facts.languages),
        parameters=facts.parameters,
        command=f"python -m hf_xlt.embedded.pretraining --output-dir DIR --seeds {seeds} --steps {facts.steps}",
        steps=facts.steps,
        seed_table="\n".join(rows),
        shipped_seed=facts.shipped_seed,
        babel_version=facts.babel_version,
        cldr_version=facts.cldr_version,
        test_set_hash=facts.test_set_hash,
        test_count=facts.test_count,
        maximum_length=facts.maximum_length,
    )
