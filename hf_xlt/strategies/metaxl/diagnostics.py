"""How far source and target representations are apart, with and without the RTN, and the RTN on disk.

After the kind of analysis in Figure 1 of Xia et al. (2021), whose exact procedure could not be read: representations
here are means over an example's tokens at the first slot, Euclidean.

Shapes: N, M examples, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_xlt.files import write_json
from hf_xlt.plotting import load_pyplot, save_figure
from hf_xlt.strategies.metaxl.card import FIGURE_NAME
from hf_xlt.strategies.metaxl.placement import Injection
from hf_xlt.strategies.metaxl.rtn import RepresentationTransformation
from hf_xlt.training.losses import labels_of

if TYPE_CHECKING:
    from hf_xlt.strategies.metaxl.config import MetaXLConfig
    from hf_xlt.strategies.metaxl.trainer import MetaXLTrainer

RTN_FOLDER = "rtn"
_SAVED_SETTINGS = (
    "rtn_layers",
    "rtn_modules",
    "rtn_bottleneck",
    "rtn_activation",
    "rtn_gate",
    "rtn_detach_input",
)


def hausdorff_distance(first: Tensor, second: Tensor) -> float:
    """Return the larger of the two farthest nearest-neighbour distances between point sets (N, D) and (M, D)."""
    distances = torch.cdist(first, second)
    return float(torch.maximum(distances.min(dim=1).values.max(), distances.min(dim=0).values.max()))


def centroid_distance(first: Tensor, second: Tensor) -> float:
    """Return the distance between the means of point sets (N, D) and (M, D)."""
    return float(torch.linalg.vector_norm(first.mean(0) - second.mean(0)))


def representations(injection: Injection, batch: Mapping[str, Any], *, transformed: bool) -> Tensor:
    """Return an example's mean hidden state at the first slot: (N, D) float32.

    Args:
        injection: where the RTN sits.
        batch: inputs with `attention_mask` (N, T).
        transformed: through the RTN.
    """
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple, output: Any) -> None:
        kept.append(output if isinstance(output, Tensor) else output[0])

    inputs = {key: value for key, value in batch.items() if key not in labels_of(batch)}
    module = injection.modules[0]
    with torch.no_grad():
        if transformed:
            # The hook that keeps is added last, so it sees what the RTN made.
            with injection.active(0):
                _run_with_hook(injection, module, keep, inputs)
        else:
            _run_with_hook(injection, module, keep, inputs)
    mask = batch["attention_mask"].unsqueeze(-1).to(kept[0].dtype)
    return ((kept[0] * mask).sum(1) / mask.sum(1)).float()


def _run_with_hook(injection: Injection, module: torch.nn.Module, hook: Any, inputs: Mapping[str, Any]) -> None:
    handle = module.register_forward_hook(hook)
    try:
        injection.model(**inputs)
    finally:
        handle.remove()


def distances(source: Tensor, transformed: Tensor, target: Tensor) -> dict[str, float]:
    """Return the distances of source and target (N, D), (M, D), and of the transformed source (N, D) and target."""
    pairs = {"plain": source, "transformed": transformed}
    return {
        f"{kind}_{name}": round(measure(points, target), 6)
        for kind, measure in (("centroid", centroid_distance), ("hausdorff", hausdorff_distance))
        for name, points in pairs.items()
    }


def draw(source: Tensor, transformed: Tensor, target: Tensor, path: Path) -> bool:
    """Draw the three point sets in their two main directions; return False when matplotlib is not installed."""
    pyplot = load_pyplot()
    if pyplot is None:
        return False
    points = torch.cat([source, transformed, target]).double()
    points = points - points.mean(0)
    plane = points @ torch.linalg.svd(points, full_matrices=False).Vh[:2].T
    groups = plane.split([len(source), len(transformed), len(target)])
    figure, axes = pyplot.subplots(figsize=(5, 4))
    for group, label, marker in zip(groups, ("source", "source, transformed", "target"), "ox^", strict=True):
        axes.scatter(group[:, 0].tolist(), group[:, 1].tolist(), s=14, marker=marker, label=label, alpha=0.7)
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    axes.legend()
    figure.tight_layout()
    save_figure(figure, path)
    return True


def measure_and_draw(trainer: MetaXLTrainer) -> dict[str, Any]:
    """Measure up to `diagnostics_examples` source and target examples with the trained model, and draw them.

    Returns:
        The distances, the mean gate (where there is one), and the figure's name (None without matplotlib).
    """
    config, injection = trainer.args, trainer.passes.injection
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, description="diagnostics")
    datasets = [trainer.train_dataset, *trainer.role_datasets["target"].values()][:2]
    batches = [
        trainer._prepare_inputs(collate([data[i] for i in range(min(len(data), config.diagnostics_examples))]))
        for data in datasets
    ]
    training = injection.model.training
    injection.model.eval()
    try:
        source, target = (representations(injection, batch, transformed=False) for batch in batches)
        transformed = representations(injection, batches[0], transformed=True)
        facts: dict[str, Any] = distances(source, transformed, target)
        with torch.no_grad(), injection.active(0) as trace:
            injection.model(**{key: value for key, value in batches[0].items() if key not in labels_of(batches[0])})
    finally:
        injection.model.train(training)
    if trace.gate is not None:
        facts["gate"] = round(float(trace.gate), 6)
    facts["figure"] = None
    if config.should_save and draw(
        source.cpu(), transformed.cpu(), target.cpu(), Path(config.output_dir) / FIGURE_NAME
    ):
        facts["figure"] = FIGURE_NAME
    return facts


def save_rtn(rtn: RepresentationTransformation, config: MetaXLConfig) -> None:
    """Write the RTN's weights and what it takes to rebuild it into `rtn/` in the output directory."""
    folder = Path(config.output_dir) / RTN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in rtn.state_dict().items()}
    save_file(tensors, folder / "rtn.safetensors", metadata={"format": "pt"})
    settings = {name: getattr(config, name) for name in _SAVED_SETTINGS}
    write_json(folder / "rtn_config.json", {**settings, "hidden_size": rtn.slots[0].hidden})
