"""Soft layer selection: learn from auxiliary languages which layers to hold still while fine-tuning on the source.

After Xu, Haider, Krone and Mansour (2021). A re-implementation from the abstract: the body of the paper could not be
read and no code was published, so the update rule (one gate per layer on the optimizer's update), the meta-gradients
and every default are a reconstruction.
"""

from typing import TYPE_CHECKING

from hf_xlt.strategies import on_first_use

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.config import SoftLayerSelectionConfig as SoftLayerSelectionConfig
    from hf_xlt.strategies.soft_layers.entry import STRATEGY as STRATEGY
    from hf_xlt.strategies.soft_layers.gates_file import GatesFile as GatesFile
    from hf_xlt.strategies.soft_layers.trainer import SoftLayerSelectionTrainer as SoftLayerSelectionTrainer


_PUBLIC = {
    "STRATEGY": ".entry",
    "GatesFile": ".gates_file",
    "SoftLayerSelectionConfig": ".config",
    "SoftLayerSelectionTrainer": ".trainer",
}

__all__ = list(_PUBLIC)
if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _PUBLIC)
