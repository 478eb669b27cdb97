"""A Trainer that resumes from, and selects, just the weights that it saved.

The stock one loads a checkpoint's file into the model as it is, and passes over names that do not fit. Where
transformers saves a model under other names than it holds in memory, a resumed run then goes on from the base model,
and a selected one ends with its last weights, in part or wholly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer

from hf_xlt.modelling.reloading import check_complete, reload_weights


class ReloadingTrainer(Trainer):
    """The stock Trainer; weights that are read back go through `from_pretrained`, and have to be complete."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is None and self._is_plain(self.model):
            reload_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_plain(self.model):
            reload_weights(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _is_plain(self, model: nn.Module) -> bool:
        """Say whether a model's checkpoints are whole and its own: not divided, quantised or beside a base model."""
        divided = self.is_fsdp_enabled or self.is_deepspeed_enabled
        own = isinstance(model, PreTrainedModel) and not getattr(model, "_hf_peft_config_loaded", False)
        return own and not divided and getattr(model, "hf_quantizer", None) is None

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The stock Trainer warns, and goes on with whatever the model held before. Tied weights are kept once.
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        check_complete(Path(self.args.output_dir), missing, list(load_result.unexpected_keys))
