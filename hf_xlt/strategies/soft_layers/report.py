"""What a run says of its gates: the file, the record, the plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_xlt.strategies.soft_layers.card import GATES_NAME
from hf_xlt.strategies.soft_layers.gates_file import GatesFile, thin
from hf_xlt.strategies.soft_layers.movement import movement
from hf_xlt.strategies.soft_layers.plots import plot_gates
from hf_xlt.strategies.soft_layers.source import ComputedGates

if TYPE_CHECKING:
    from hf_xlt.strategies.soft_layers.trainer import SoftLayerSelectionTrainer


def gates_file(trainer: SoftLayerSelectionTrainer) -> GatesFile | None:
    """Return the gates that a trainer learned or was given; None where they come from no learning."""
    setup, config, learning = trainer.setup, trainer.args, trainer.learning
    if learning is None:
        return setup.file
    learner = learning.learner
    state = {name: value.tolist() for name, value in learner.gates.state_dict().items()}
    return GatesFile(
        groups=list(setup.gated),
        sizes=[setup.groups.sizes[name] for name in setup.gated],
        open_groups=[name for name in setup.groups.names if name not in setup.gated],
        gates=final_gates(trainer),
        gate_type=config.gate_type,
        parameters=state,
        options=config.gate_options,
        grouping=config.grouping,
        learned={
            "mode": config.mode,
            "inner_steps": config.inner_steps,
            "meta_gradient": "exact" if learning.exact or config.inner_steps == 1 else "first_order",
            "meta_learning_rate": config.meta_learning_rate,
            "updates": len(learner.updates),
            "skipped": learner.skipped,
            "auxiliary_languages": list(learning.languages),
            "source_languages": list(trainer.source_languages),
        },
        evidence={name: learner.evidence.report(number) for number, name in enumerate(setup.gated)},
        audit=learning.audits,
        history=thin(learner.updates, learner.history),
    )


def final_gates(trainer: SoftLayerSelectionTrainer) -> list[float]:
    """Return the gates at the end: of the meta-parameters where they need no features, else the last ones used."""
    setup = trainer.setup
    source = setup.source
    if isinstance(source, ComputedGates):
        if source.gates.needs_features:
            return source.last.tolist() if source.last is not None else [1.0] * len(setup.gated)
        return source.gates(1.0).tolist()
    used = dict(zip(setup.groups.names, trainer.gated.gates if trainer.gated else (), strict=False))
    return [used.get(name, 1.0) for name in setup.gated]


def movement_of(trainer: SoftLayerSelectionTrainer) -> dict[str, dict[str, Any]]:
    """Return how far each layer group went from where training started, JSON-able."""
    gates = dict(zip(trainer.setup.gated, (round(value, 6) for value in final_gates(trainer)), strict=True))
    weights = dict(trainer.model.named_parameters())
    return movement(trainer.start, weights, trainer.setup.groups.members, gates, trainer.args.learning_rate)


def describe(trainer: SoftLayerSelectionTrainer) -> dict[str, Any]:
    """Return the facts for the record, JSON-able."""
    setup, config = trainer.setup, trainer.args
    values = [round(value, 6) for value in final_gates(trainer)]
    facts: dict[str, Any] = {
        "gates": dict(zip(setup.gated, values, strict=True)),
        "open_groups": [name for name in setup.groups.names if name not in setup.gated],
        "mean_gate": round(sum(values) / len(values), 6),
        "learned_here": trainer.learning is not None,
    }
    if trainer.movement is not None:
        facts["movement"] = trainer.movement
    if setup.frozen:
        facts["frozen_groups"] = list(setup.frozen)
    file = gates_file(trainer)
    if file is None:
        facts["profile"] = config.profile if config.gate_values is None else "given values"
        return facts
    verdicts = {name: evidence["verdict"] for name, evidence in file.evidence.items()}
    ratios = {name: round(evidence["signal_to_noise"], 4) for name, evidence in file.evidence.items()}
    return {
        **facts,
        **file.learned,
        "gate_type": file.gate_type,
        "verdicts": verdicts,
        "signal_to_noise": ratios,
        "audit": file.audit,
    }


def leave_gates(trainer: SoftLayerSelectionTrainer, folder: Path) -> None:
    """Write the file and the plots into a folder."""
    file = gates_file(trainer)
    if file is not None:
        file.write(folder / GATES_NAME)
        plot_gates(file, folder)
