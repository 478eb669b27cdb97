"""What a run would do, for `--dry-run`: data, labels, updates, cost."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_xlt.arguments import Arguments
from hf_xlt.data.generalized import choose_pair_sets
from hf_xlt.data.roles import AUXILIARY, SHOTS, DataPlan
from hf_xlt.errors import ConfigError

if TYPE_CHECKING:
    from hf_xlt.preparation import PlannedPhase
    from hf_xlt.training.embedding_rows import Saving


@dataclass(frozen=True)
class PlannedCost:
    """What training costs, in plain fine-tuning steps.

    Attributes:
        parts: name of a phase (empty where there is one only), its updates, and the cost of each.
        uncounted: phases whose updates cannot be given in such steps.
    """

    parts: tuple[tuple[str, int, float], ...]
    uncounted: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Plain steps in all."""
        return sum(updates * cost for _, updates, cost in self.parts)

    def describe(self) -> str:
        """Say it in a line."""
        without = f" ({' and '.join(self.uncounted)} not counted)" if self.uncounted else ""
        if len(self.parts) == 1:
            return f"{self.parts[0][2]:.2f} plain steps per update, {self.total:,.0f} plain steps in all{without}"
        sums = " + ".join(f"{name} {updates:,} x {cost:.2f}" for name, updates, cost in self.parts)
        return f"{sums} = {self.total:,.0f} plain steps in all{without}"


def describe_plan(arguments: Arguments, plan: DataPlan, selection: dict[str, Any]) -> str:
    """Say what would be run: data, labels, updates, cost."""
    from hf_xlt.preparation import plan_updates

    config, strategy = arguments.config, arguments.strategy
    lines = [f"Strategy   {strategy.name}: {strategy.summary}", f"Model      {arguments.model.model}"]
    if arguments.peft.peft:
        lines += _planned_adapter(arguments, plan)
    for role, entries in plan.sets.items():
        for entry in entries:
            lines.append(
                f"Data       {role:<18} {entry.language:<8} {entry.split:<12} {entry.size:>9,}  {entry.source.name}"
                f"{' (part)' * entry.is_part}"
            )
    _, inventory = plan.read_training()
    if inventory is not None:
        lines.append(f"Labels     {len(inventory)}: {', '.join(inventory.names)}")
    lines.append(f"Selection  {selection['protocol']}" + (f" by {selection['metric']}" if selection["metric"] else ""))
    planned = plan_updates(arguments, plan, exact=True)
    updates = main_updates(planned)
    if planned[0].phase.name:
        counted = (f"{entry.phase.name} {entry.updates:,}" for entry in planned)
        lines.append(f"Phases     {', '.join(counted)}")
    joint = _joint_languages(arguments, plan)
    if arguments.average.average:
        lines.append(f"Average    {arguments.average.describe()}")
        rivals = arguments.average.average_compare
        if rivals:
            count = planned_snapshots(arguments, plan)
            lines.append(f"Compared   with {', '.join(rivals)}; about {count} snapshots stay until they are scored")
    batches = f" and as many of each of {joint} target languages" if joint else ""
    lines.append(
        f"Updates    {updates:,}, each of {_global_batch(config):,} {strategy.trains_on(config)} examples{batches}"
    )
    lines.append(f"Cost       {planned_cost(arguments, plan, planned).describe()}")
    if arguments.peft.peft:
        lines.append("           in steps that train all weights; with these frozen a plain step, and an ascent step")
        lines.append("           as well, costs about 2/3 of one")
    rows = planned_rows(arguments, plan)
    if rows is not None:
        lines.append(f"Rows       {rows.describe(config.embedding_rows)}")
    if arguments.data.generalized:
        count = len(choose_pair_sets(plan, arguments.data))
        lines.append(f"Also       {count * count:,} ordered pairs of {count} languages are scored (--generalized)")
    lines.append(f"Output     {config.output_dir}")
    lines += [f"Note       {note}" for note in plan.notes]
    return "\n".join([*lines, "Nothing was run (--dry-run)."])


def plan_values(arguments: Arguments, plan: DataPlan, selection: dict[str, Any]) -> dict[str, Any]:
    """Return what would be run, JSON-able."""
    from hf_xlt.preparation import plan_updates

    config, strategy = arguments.config, arguments.strategy
    planned = plan_updates(arguments, plan, exact=True)
    updates, cost = main_updates(planned), planned_cost(arguments, plan, planned)
    _, inventory = plan.read_training()
    rows = planned_rows(arguments, plan)
    return {
        "strategy": strategy.name,
        "model": arguments.model.model,
        "data": [
            {
                "role": role,
                "language": entry.language,
                "split": entry.split,
                "examples": entry.size,
                "source": entry.source.name,
                **({"divided": True} if entry.is_part else {}),
            }
            for role, entries in plan.sets.items()
            for entry in entries
        ],
        "labels": list(inventory.names) if inventory is not None else None,
        "selection": selection,
        "updates": updates,
        "global_batch": _global_batch(config),
        "phases": [{"name": name, "updates": count, "plain_steps": each * count} for name, count, each in cost.parts],
        "plain_steps": cost.total,
        **({"embedding_rows": dataclasses.asdict(rows) | {"saved_bytes": rows.bytes}} if rows is not None else {}),
        "output_dir": config.output_dir,
        "notes": list(plan.notes),
    }


def planned_cost(arguments: Arguments, plan: DataPlan, planned: list[PlannedPhase]) -> PlannedCost:
    """Return the cost of training: by phases that say theirs, else of the updates that the registry's cost is for."""
    strategy, config, updates = arguments.strategy, arguments.config, main_updates(planned)
    # Batches of target languages join those of the source, where the loader of the source is used.
    batches = 1 + _joint_languages(arguments, plan)
    phases = [entry.phase for entry in planned]
    if all(phase.cost is not None for phase in phases):
        languages = len(plan.of_role(AUXILIARY))
        parts = [
            (phase.name, entry.updates, phase.cost(languages) * (batches if phase.updates is None else 1))
            for phase, entry in zip(phases, planned, strict=True)
        ]
        return PlannedCost(tuple(parts))
    uncounted = tuple(phase.name for phase in phases if phase.updates is not None)
    return PlannedCost((("", updates, strategy.cost(config) * batches),), uncounted)


def _joint_languages(arguments: Arguments, plan: DataPlan) -> int:
    shared = arguments.strategy.uses_shots or arguments.data.few_shot_mode != "joint"
    return 0 if shared else len(plan.of_role(SHOTS))


def _global_batch(config: Any) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size


def main_updates(planned: list[PlannedPhase]) -> int:
    """Return the updates of the phase that trains the task on the run's data, the last such one."""
    own = [entry.updates for entry in planned if entry.phase.updates is None]
    return own[-1] if own else planned[-1].updates


def planned_snapshots(arguments: Arguments, plan: DataPlan) -> int:
    """Return how many snapshots stay on the disk until they are scored."""
    from hf_xlt.preparation import plan_updates

    asked = arguments.average
    if not asked.average_compare:
        return 0
    schedule = asked.schedule()
    if isinstance(schedule.every, str):
        # Epochs and regular saves are known only with the length of the loader; two a epoch are many.
        return 2 * max(round(arguments.config.num_train_epochs), 1)
    return len(schedule.steps(main_updates(plan_updates(arguments, plan))))


def planned_rows(arguments: Arguments, plan: DataPlan) -> Saving | None:
    """Return what training on the rows of seen tokens saves; None where it is refused unasked, or of no use.

    All that is trained and selected on is encoded for it.

    Raises:
        ConfigError: it is asked for, and does not go with the model or the data.
    """
    import torch

    from hf_xlt.preparation import adapt, prepare
    from hf_xlt.training.embedding_rows import LARGE, SEEN, saving_of_run
    from hf_xlt.training.interruption import InterruptionFlag

    source, asked = plan.fitted.source, arguments.config.embedding_rows == SEEN
    if not asked and getattr(source.load_config().get_text_config(), "vocab_size", 0) < LARGE:
        return None
    # Preparing settles the updates of some baselines in the config.
    own = dataclasses.replace(arguments, config=copy.copy(arguments.config))
    try:
        with torch.device("meta"):
            model = adapt(source.load_random(plan.task, plan.read_training()[1]), own, plan.task)
        averages = arguments.average.average or arguments.strategy.averages
        return saving_of_run(model, prepare(own, plan, InterruptionFlag()).context, averages)
    except ConfigError:
        if asked:
            raise
        return None


def of_adapter(model: dict[str, Any]) -> str:
    """Return what the record's model says of adapters, to be put behind the number of its parameters."""
    if "adapter" not in model:
        return ""
    adapter = model["adapter"]
    count = adapter["trainable_parameters"]
    return f"; LoRA of rank {adapter['rank']} trains {count:,}, {count / model['parameters']:.2%}"


def _planned_adapter(arguments: Arguments, plan: DataPlan) -> list[str]:
    """Return the plan's lines on adapters, counted on a model without weights; none without `--peft`."""
    import torch

    from hf_xlt.adapters import describe, merged_size
    from hf_xlt.preparation import adapt

    _, inventory = plan.read_training()
    with torch.device("meta"):
        model = adapt(plan.fitted.source.load_random(plan.task, inventory), arguments, plan.task)
    facts = {"parameters": merged_size(model), "adapter": describe(model)}
    return [
        f"Parameters {facts['parameters']:,}{of_adapter(facts)}",
        f"Adapters   on {', '.join(facts['adapter']['target_modules'])}; trained in full: "
        f"{', '.join(facts['adapter']['modules_to_save'])}",
    ]
