"""Tiny models, ragged batches and trainers for the tests of robust training."""

from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from hf_xlt.strategies.robust import RobustConfig, RobustTrainer
from hf_xlt.strategies.robust import trainer as trainer_module

VOCABULARY, WIDTH, PAD = 60, 16, 1
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "num_labels": 3,
    # Wide enough that a perturbation of a tenth of an embedding moves the loss of a random model.
    "initializer_range": 0.3,
}


def _bert(**options):
    return BertForSequenceClassification(BertConfig(**SHAPE | options))


def _xlmr(**options):
    return XLMRobertaForSequenceClassification(XLMRobertaConfig(**SHAPE | options))


def _distilbert(**options):
    shape = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    if "hidden_dropout_prob" in options:
        probability = options.pop("hidden_dropout_prob")
        options.pop("attention_probs_dropout_prob")
        options |= {"dropout": probability, "attention_dropout": probability, "seq_classif_dropout": probability}
    keep = ("vocab_size", "max_position_embeddings", "pad_token_id", "num_labels", "initializer_range")
    return DistilBertForSequenceClassification(
        DistilBertConfig(**{name: SHAPE[name] for name in keep} | shape | options)
    )


def _deberta(**options):
    relative = {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
    }
    relative |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**SHAPE | relative | options))


def _modernbert(**options):
    if "hidden_dropout_prob" in options:
        probability = options.pop("hidden_dropout_prob")
        options.pop("attention_probs_dropout_prob")
        options |= {"embedding_dropout": probability, "mlp_dropout": probability, "attention_dropout": probability}
    ids = {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    pooling = {"classifier_pooling": "mean", "local_attention": 8}
    return ModernBertForSequenceClassification(ModernBertConfig(**SHAPE | ids | pooling | options))


LAYOUTS = {
    "bert": _bert,
    "xlm-roberta": _xlmr,
    "distilbert": _distilbert,
    "deberta-v2": _deberta,
    "modernbert": _modernbert,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_model(layout: str = "bert", *, dropout: bool = False, seed: int = 0, **options):
    torch.manual_seed(seed)
    return LAYOUTS[layout](**({} if dropout else NO_DROPOUT) | options)


def make_examples(count: int = 8, seed: int = 0, lengths=None, token_labels: bool = False) -> list[dict]:
    """Examples of very different lengths; ids 0 and 2 open and close each, as special tokens do."""
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or [3 + (7 * number) % 13 for number in range(count)]
    examples = []
    for length in lengths[:count]:
        body = torch.randint(5, VOCABULARY, (length - 2,), generator=generator).tolist()
        label = torch.randint(0, 3, (length if token_labels else 1,), generator=generator).tolist()
        if token_labels:
            label[0] = label[-1] = -100
        examples.append({"input_ids": [0, *body, 2], "labels": label if token_labels else label[0]})
    return examples


def collate(examples: list[dict], side: str = "right", width: int | None = None) -> dict:
    width = width or max(len(example["input_ids"]) for example in examples)

    def pad(values, filler):
        fill = [filler] * (width - len(values))
        return values + fill if side == "right" else fill + values

    batch = {
        "input_ids": torch.tensor([pad(example["input_ids"], PAD) for example in examples]),
        "attention_mask": torch.tensor([pad([1] * len(example["input_ids"]), 0) for example in examples]),
    }
    labels = [example["labels"] for example in examples]
    batch["labels"] = torch.tensor([pad(label, -100) if isinstance(label, list) else label for label in labels])
    return batch


# SMART without its proximal part.
SMART = {
    "method": "adv",
    "epsilon": 0.2,
    "steps": 2,
    "init": "gaussian",
    "init_scale": 0.5,
    "inner_loss": "kl",
    "consistency": "symkl",
}
# Settings that use every kind of pass and random number.
ACTIVE = {
    "adv": {"method": "adv", "epsilon": 0.1},
    "adv, random start": {"method": "adv", "epsilon": 0.1, "steps": 3, "init": "uniform", "norm_scope": "sentence"},
    "adv, clean loss": {"method": "adv", "epsilon": 0.1, "clean_weight": 0.3, "init": "gaussian", "norm": "linf"},
    "rs_rp": {"method": "rs_rp", "epsilon": 0.1},
    "rs_rp, three draws": {
        "method": "rs_rp",
        "epsilon": 0.3,
        "noise": "l2_ball",
        "num_samples": 3,
        "clean_weight": 0.2,
    },
    "freelb": {"method": "freelb", "epsilon": 0.2, "steps": 3, "init": "uniform"},
    "r3f": {"method": "rs_rp", "epsilon": 0.2, "consistency": "symkl"},
    "smart": SMART,
}


class Tokenizer:
    """What the trainer asks of a tokenizer; 58 tokens for 60 rows, three of them special, one a placeholder."""

    all_special_ids = [0, 1, 2, 3]
    unk_token_id = 3
    pad_token_id = PAD
    padding_side = "right"

    def get_vocab(self):
        return {("[unused1]" if index == 4 else f"token{index}"): index for index in range(58)}

    def save_pretrained(self, folder):
        return ()


def make_trainer(
    folder, model=None, cls=RobustTrainer, config_cls=RobustConfig, *, examples=(), tokenizer=None, **settings
):
    options = {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1, "seed": 11}
    options |= {
        "per_device_train_batch_size": 8,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
    }
    config = config_cls(output_dir=str(folder), **options | settings)
    extra = {} if tokenizer is None else {"processing_class": tokenizer}
    return cls(model or make_model(), config, train_dataset=list(examples), data_collator=collate, **extra)


def open_window(trainer, *batches, update: int = 0):
    """Do what the training loop does before an update; return the micro-batches and their units."""
    trainer.model.train()
    trainer.state.global_step = update
    return trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def update_gradients(trainer, *batches) -> dict[str, torch.Tensor]:
    """Gradients of one update over micro-batches."""
    trainer.model.zero_grad()
    micro_batches, units = open_window(trainer, *batches)
    for batch in micro_batches:
        trainer.training_step(trainer.model, batch, units)
    return gradients(trainer.model)


@pytest.fixture
def perturbations(monkeypatch) -> list[torch.Tensor]:
    """Every perturbation that a training pass ran on, in order."""
    seen, original = [], trainer_module.perturbed_embeddings

    @contextmanager
    def spy(model, inputs, perturbation, *, detach=False):
        seen.append(perturbation.detach().clone())
        with original(model, inputs, perturbation, detach=detach) as perturbed:
            yield perturbed

    monkeypatch.setattr(trainer_module, "perturbed_embeddings", spy)
    return seen


@pytest.fixture
def kit(tmp_path) -> SimpleNamespace:
    """The helpers above, with a folder for trainers."""

    def trainer(*args, **options) -> RobustTrainer:
        return make_trainer(tmp_path, *args, **options)

    helpers: dict[str, Callable] = {
        "model": make_model,
        "examples": make_examples,
        "collate": collate,
        "trainer": trainer,
        "open_window": open_window,
        "gradients": gradients,
        "update_gradients": update_gradients,
        "tokenizer": Tokenizer,
    }
    return SimpleNamespace(**helpers, layouts=tuple(LAYOUTS), width=WIDTH, pad=PAD, folder=tmp_path)


@pytest.fixture(params=ACTIVE.values(), ids=ACTIVE)
def settings(request) -> dict:
    """Settings that together use every kind of pass and random number."""
    return request.param
