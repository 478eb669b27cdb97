"""A run with the head of another one, frozen, so that both can be averaged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xlt.averaging.heads import Head, digest_of, head_digest, head_parameters, put_head, read_head
from hf_xlt.averaging.parameters import bare
from hf_xlt.errors import ConfigError, RunError, setting
from hf_xlt.models import is_adapted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEY = "shared_head"


class SharedHead:
    """The head of a donor, for every model that a run loads.

    Attributes:
        name: last part of the donor's path.
        names: of its parameters.
        digest: SHA-256 of the head as models hold it, in float32.
    """

    def __init__(self, donor: str) -> None:
        """Read the donor's head.

        Raises:
            ConfigError: there is no donor, or it has no head.
        """
        if not Path(donor).exists():
            raise ConfigError(
                f"{setting('share_head', donor)} is missing; give a finished run, its model, or a head file."
            )
        head = read_head(donor)
        self.name = Path(donor).name
        self._head = Head({name: value.float() for name, value in head.tensors.items()}, head.labels, head.place)
        self.names = set(head.tensors)
        self.digest = digest_of(self._head.tensors)

    def put(self, model: PreTrainedModel) -> None:
        """Put the head into a model and freeze it.

        Raises:
            ConfigError: it is of another class, size or order of labels.
        """
        put_head(model, self._head)

    def settings(self) -> dict[str, str]:
        """Return what the record says of it."""
        return {KEY: f"of `{self.name}`, frozen (SHA-256 {self.digest[:16]})"}


class FrozenHeadCheck(TrainerCallback):
    """Checks after training that the shared head is still the donor's, bit for bit.

    Args:
        shared: the donor's head.
    """

    def __init__(self, shared: SharedHead) -> None:
        """Take the donor's head."""
        self.shared = shared

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Compare.

        Raises:
            RunError: training moved the head.
        """
        inner = bare(model)
        inner = inner.get_base_model() if is_adapted(inner) else inner
        if set(head_parameters(inner)) != self.shared.names:
            # A phase that pre-trains has another head.
            return
        if head_digest(inner) != self.shared.digest:
            raise RunError(
                "the shared head moved in training although it is frozen: some callback or optimizer changes weights "
                "that need no gradient. Without an equal head runs cannot be averaged."
            )
