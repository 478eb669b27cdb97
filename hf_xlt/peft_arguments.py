"""What the user asks of adapters (`--peft lora`), and what does not go with them; the work is in `hf_xlt.adapters`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_xlt.arguments import Arguments, split_names
from hf_xlt.errors import ConfigError
from hf_xlt.launch import divides_weights
from hf_xlt.registry import STRATEGIES, get_strategy


@dataclass
class PeftArguments:
    """What to train in place of all weights."""

    _argument_group_name = "adapters"

    peft: Literal["lora"] | None = field(
        default=None,
        metadata={
            "help": "Train low-rank adapters and the head, and freeze all else: lora (Hu et al. 2022). The model is "
            "saved with the adapters merged in, and the adapter beside it. Wants a larger --learning-rate."
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapters, 1 or more; 8 as in peft."})
    lora_alpha: int = field(
        default=8, metadata={"help": "Scale of the adapters, above 0: they are multiplied by it / rank; 8 as in peft."}
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout before the adapters, from 0 to below 1; 0 as in peft."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the linear modules to adapt, separated by commas. Default: query and value where peft "
            "knows the architecture, else all linear modules of the encoder."
        },
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Names of modules to train in full besides the head, separated by commas."},
    )

    def __post_init__(self) -> None:
        """Split lists and check ranges."""
        self.lora_target_modules = split_names(self.lora_target_modules) or None
        self.lora_modules_to_save = split_names(self.lora_modules_to_save) or None
        if self.lora_rank < 1:
            raise ConfigError(f"`--lora-rank` is {self.lora_rank}; give 1 or more.")
        if self.lora_alpha < 1:
            raise ConfigError(f"`--lora-alpha` is {self.lora_alpha}; give 1 or more.")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"`--lora-dropout` is {self.lora_dropout}; give 0 or more, and less than 1.")


def check_peft(arguments: Arguments) -> None:
    """Refuse what does not go with `--peft`, and settings of adapters without it.

    Raises:
        ConfigError: the strategy takes no adapters, the weights are sharded, or there are no adapters to set.
    """
    strategy, config = arguments.strategy, arguments.config
    if arguments.peft.peft is None:
        unused = sorted(name for name in arguments.explicit if name.startswith("lora_"))
        if unused:
            raise ConfigError(f"`--{unused[0].replace('_', '-')}` does nothing without `--peft lora`; add that.")
        return
    if not strategy.peft:
        able = ", ".join(f"`{name}`" for name in STRATEGIES if get_strategy(name).peft)
        raise ConfigError(
            f"strategy `{strategy.name}` needs all weights trained and does not take `--peft`. Leave it out, or "
            f"choose one of {able}."
        )
    if divides_weights(config):
        raise ConfigError(
            "`--peft` does not go with FSDP or DeepSpeed, whose sharded weights cannot be merged. Use plain data "
            "parallelism (`accelerate launch --multi_gpu`)."
        )
