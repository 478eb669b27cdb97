"""Which parts of a model read text: models of several kinds of input hold towers that do not."""

from __future__ import annotations

from torch import nn


def lists_for_text(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Return the module lists of a model, with their paths, but for those in parts that read images or sound alone.

    Args:
        model: of transformers, whose parts tell by `input_modalities` what they read.
    """
    towers = [
        f"{name}."
        for name, module in model.named_modules()
        if name and "text" not in (getattr(module, "input_modalities", None) or "text")
    ]
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(towers))
    ]
