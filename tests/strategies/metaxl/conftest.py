"""Trainers over tiny data for the tests of MetaXL."""

import pytest
import torch
from tiny import make_features, make_model, make_tokenizer
from transformers import DataCollatorWithPadding

from hf_xlt.strategies.metaxl import MetaXLConfig, MetaXLTrainer

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SETTINGS = {
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "use_cpu": True,
    "disable_tqdm": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
}
# Of the RTN, which the baselines have not.
RTN = {"rtn_bottleneck": 8, "rtn_warmup_ratio": 0.0}


class Kit:
    """Builds trainers; every one has a folder of its own."""

    def __init__(self, folder):
        torch.set_num_threads(1)
        self.folder, self.count = folder, 0
        self.source, self.target = make_features(24), {"de": make_features(11, seed=3, language="de")}

    def model(self, dropout=0.0, **changes):
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        return make_model(**{**rates, "initializer_range": 0.2, **changes})

    def config(self, **changes):
        self.count += 1
        own = RTN if changes.get("method", "metaxl") == "metaxl" else {}
        settings = {"output_dir": str(self.folder / str(self.count)), **SETTINGS, **own, **changes}
        return MetaXLConfig(**settings)

    def trainer(self, model=None, *, source=None, target=None, callbacks=(), sources=None, **changes):
        tokenizer = make_tokenizer()
        roles = {"target": target or self.target, **({"source": sources} if sources else {})}
        return MetaXLTrainer(
            self.model() if model is None else model,
            self.config(**changes),
            train_dataset=source or self.source,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
            role_datasets=roles,
            callbacks=list(callbacks),
        )

    def ready(self, model=None, **changes):
        """A trainer with its optimizer, at its first update."""
        trainer = self.trainer(model, **changes)
        trainer.create_optimizer()
        trainer.model_wrapped, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
        trainer.state.max_steps = trainer.args.max_steps
        trainer.model_wrapped.train()
        return trainer

    def update(self, trainer, batches=1):
        """Do the forward and backward passes of one update on the first source examples; return its units."""
        size = trainer.args.per_device_train_batch_size
        rows = trainer.train_dataset
        parts = [trainer.data_collator([rows[i] for i in range(n * size, (n + 1) * size)]) for n in range(batches)]
        micro_batches, units = trainer.get_batch_samples(iter(parts), batches, trainer.args.device)
        losses = []
        for number, batch in enumerate(micro_batches):
            trainer.accelerator.gradient_state._set_sync_gradients(number == batches - 1)
            losses.append(trainer.training_step(trainer.model_wrapped, batch, units))
        return sum(losses)


@pytest.fixture
def kit(tmp_path):
    return Kit(tmp_path)


def gradients(trainer):
    """The model's gradients by name."""
    named = trainer.model.named_parameters()
    return {name: value.grad.clone() for name, value in named if value.grad is not None}
