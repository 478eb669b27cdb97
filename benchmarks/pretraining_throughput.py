"""Tokens per second of `MetaPretrainingTrainer` against the stock masked-LM recipe, whole trainers, in one run.

Peer: `transformers.Trainer` with `DataCollatorForLanguageModeling(mlm_probability=0.15)` on text that is tokenised,
joined and cut into blocks beforehand, as `run_mlm.py` does. Ours: the same documents, model, optimizer and precision.
Both train in rounds of alternating order; a round's figure is the median time of its updates, so that checkpoints,
start-up and single stalls do not count. Also reported: the share of time that ours waits for data, and of tokens that
are not padding. With `--memory`, see `pretraining_step.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
import transformers
from datasets import Dataset
from stepping import add_model_argument, make_model, model_name, take_shape
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    XLMRobertaConfig,
)

from hf_xlt.pretraining.corpus import Corpus
from hf_xlt.pretraining.loading import phase_text
from hf_xlt.pretraining.plan import Phase, Source
from hf_xlt.strategies.meta_pretraining import MetaPretrainingConfig, MetaPretrainingTrainer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WARM_UP = 2


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the right size; the text comes as numbers already."""
    pieces = {token: number for number, token in enumerate([*SPECIAL, *(f"w{n}" for n in range(vocabulary - 5))])}
    backend = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>", **names)


def make_corpora(vocabulary: int, languages: int, documents: int) -> dict[str, Corpus]:
    """Documents of 5 to 200 tokens with word frequencies like those of text."""
    rng = np.random.default_rng(0)
    corpora = {}
    for number in range(languages):
        lengths = rng.integers(5, 200, documents)
        ranks = rng.zipf(1.2, int(lengths.sum())) % (vocabulary - 5) + 5
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        corpora[f"l{number}"] = Corpus(
            ranks.astype(np.uint16 if vocabulary <= 2**16 else np.int32), starts, None, 0, 0
        )
    return corpora


class Clock(TrainerCallback):
    """Times updates from begin to begin, so that fetching a batch counts."""

    def __init__(self) -> None:
        """Start without a mark."""
        self.marks: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):  # noqa: D102
        self.marks.append(time.perf_counter())

    def median(self) -> float:
        """Seconds of an update, the first ones apart."""
        return statistics.median(np.diff(self.marks)[WARM_UP:])


def settings(options: argparse.Namespace, folder: str, steps: int) -> dict:
    """Training arguments of both sides."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": options.batch,
        "learning_rate": 1e-4,
        "bf16": options.dtype == "bfloat16",
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 10**6,
        "optim": "adamw_torch_fused",
    }


def new_model(options: argparse.Namespace) -> torch.nn.Module:
    """Return `--model`, or 4 layers x 256 as XLM-R is laid out."""
    config = XLMRobertaConfig(
        vocab_size=options.vocabulary,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=options.length + 2,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return make_model(options, AutoModelForMaskedLM, config, options.attention)


def time_peer(options: argparse.Namespace, corpora: dict[str, Corpus], tokenizer: PreTrainedTokenizerFast) -> float:
    """Seconds of one update of the stock recipe."""
    joined = np.concatenate([corpus.tokens for corpus in corpora.values()]).astype(np.int64)
    blocks = joined[: len(joined) // options.length * options.length].reshape(-1, options.length)
    rows = Dataset.from_dict({"input_ids": blocks, "attention_mask": np.ones_like(blocks)})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=new_model(options),
            args=TrainingArguments(**settings(options, folder, options.steps)),
            train_dataset=rows,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            callbacks=[clock],
        ).train()
    return clock.median()


def time_ours(
    options: argparse.Namespace, corpora: dict[str, Corpus], tokenizer: PreTrainedTokenizerFast
) -> tuple[float, float, float]:
    """Seconds of one update, share of time waiting for data, share of tokens that are not padding."""
    phase = Phase("cross", options.steps, (Source("text"),))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = MetaPretrainingTrainer(
            model=new_model(options),
            args=MetaPretrainingConfig(**settings(options, folder, options.steps), row_length=options.length),
            phase=phase,
            text=phase_text(corpora, 0),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    waits = trainer._meter.waited / max(clock.marks[-1] - clock.marks[0], 1e-9)
    ids = torch.cat([trainer.batches.batch(number)["input_ids"] for number in range(options.steps)])
    return clock.median(), waits, float((ids != tokenizer.pad_token_id).float().mean())


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14, help="updates of a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    add_model_argument(parser)
    parser.add_argument("--vocabulary", type=int, help="default 24,000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    options = parser.parse_args()
    take_shape(options, ["vocabulary"])
    options.vocabulary = options.vocabulary or 24_000
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    tokenizer, corpora = make_tokenizer(options.vocabulary), make_corpora(options.vocabulary, 4, 2000)
    ratios, peers, ours, waits, filled = [], [], [], [], []
    for number in range(options.rounds):
        if number % 2:
            seconds, wait, full = time_ours(options, corpora, tokenizer)
            peer = time_peer(options, corpora, tokenizer)
        else:
            peer = time_peer(options, corpora, tokenizer)
            seconds, wait, full = time_ours(options, corpora, tokenizer)
        ratios.append(peer / seconds)
        peers.append(peer), ours.append(seconds), waits.append(wait), filled.append(full)
    tokens = options.batch * options.length
    print(
        f"{model_name(options, 'XLM-R layout 4 x 256')}, vocabulary {options.vocabulary:,}, batch {options.batch} x "
        f"{options.length}, {options.dtype}, dropout 0.1, {options.attention}, {options.threads} threads, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; {options.rounds} rounds of {options.steps} "
        "updates"
    )
    for name, values in (("stock run_mlm recipe", peers), ("MetaPretrainingTrainer", ours)):
        seconds = statistics.median(values)
        print(f"{name:<24} {seconds:.3f} s an update, {tokens / seconds:,.0f} tokens/s")
    low, high = min(ratios), max(ratios)
    print(
        f"ratio, median of pairs   {statistics.median(ratios):.2f} (lowest {low:.2f}, highest {high:.2f}; target 1.8)"
    )
    print(f"waiting for data         {statistics.median(waits):.2%} of the time (target below 2 %)")
    print(f"tokens not padding       {min(filled):.2%} (target 98 %)")


if __name__ == "__main__":
    main()
