"""One run from top to bottom: arguments, data, training, scoring, record, card, and the Hub where asked.

`python -m hf_xlt.run`, `accelerate launch -m hf_xlt.run` and `hf-xlt run` are this `main`.
"""

from __future__ import annotations

import copy
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_xlt.arguments import Arguments
from hf_xlt.averaging.summary import averaged, describe
from hf_xlt.data.generalized import choose_pair_sets, join_pairs
from hf_xlt.data.roles import SHOTS, TRAINING, DataPlan, resolve_data
from hf_xlt.errors import ConfigError, Interrupted, reports_errors
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.launch import check_launch, is_first_process, set_threads
from hf_xlt.output import check_space, claim_output, inspect_output
from hf_xlt.parsing import parse_arguments
from hf_xlt.record import FINISHED, INTERRUPTED, TRAINED, RunRecord
from hf_xlt.results import Results, plain
from hf_xlt.tasks import Encoding, get_task


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run once.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        Exit code: 0 done, 1 failure, 2 usage, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_arguments(argv)
    task = get_task(arguments.data.task)
    from hf_xlt.preparation import needs_validation, note_augmentation, settle_selection

    plan = resolve_data(arguments.data, task, needs_validation=needs_validation(arguments.config))
    selection = settle_selection(arguments, plan.task)
    note_augmentation(arguments, plan)
    if arguments.data.generalized:
        choose_pair_sets(plan, arguments.data)
    if arguments.run.dry_run:
        say(describe_plan(arguments, plan, selection))
        return 0
    check_launch(arguments.config)
    run = Run(arguments, plan, selection, argv)
    # Every process looks at the output directory before the first one writes into it.
    _wait_for_all(arguments.config)
    return run.go()


def say(text: str) -> None:
    """Print, from the first process only."""
    if is_first_process():
        print(text, flush=True)  # noqa: T201


class Run:
    """A run under way: its arguments, its directory and its record."""

    def __init__(self, arguments: Arguments, plan: DataPlan, selection: dict[str, Any], argv: list[str]) -> None:
        """Take what was parsed and resolved.

        Raises:
            ConfigError: the output directory may not be used, or `--resume` names none.
        """
        self.arguments, self.plan, self.selection, self.argv = arguments, plan, selection, argv
        self.folder = Path(arguments.config.output_dir)
        if arguments.run.resume and "output_dir" not in arguments.explicit:
            raise ConfigError("`--resume` needs `--output-dir`: the directory of the run to continue.")
        self.before = inspect_output(self.folder, resume=arguments.run.resume, overwrite=arguments.run.overwrite)
        self.started = time.monotonic()
        self.hub = _take_hub_settings(arguments.config)
        if self.hub is not None and arguments.embedded:
            raise ConfigError(
                "`--push-to-hub` is not for the embedded demo task: its model serves no one. To try a push all the "
                "same, use `hf-xlt push RUN USER/NAME --force` after the run."
            )

    def go(self) -> int:
        """Train, score, record, render the card, push; return the exit code."""
        from hf_xlt.training.interruption import InterruptionFlag

        if self.before is not None and self.before.status == FINISHED:
            say(f"The run in `{self.folder}` is finished; nothing to resume.\n")
            self._show(self.before)
            return 0
        flag = InterruptionFlag()
        with flag.listen():
            return self._go(flag)

    def _go(self, flag: Any) -> int:
        from transformers.utils import logging

        from hf_xlt.bookkeeping import check_same_run, complete_hardware, start_record
        from hf_xlt.preparation import prepare
        from hf_xlt.training.phases import run_phases

        # The bars for reading and writing weights would cut the training bar in pieces.
        logging.disable_progress_bar()
        arguments = self.arguments
        threads = set_threads(self._threads(), arguments.config.world_size)
        prepared = prepare(arguments, self.plan, flag)
        context = prepared.context
        if self.before is not None:
            check_same_run(self.before, arguments, self.plan, prepared.inventory.names if prepared.inventory else ())
        record = self.before or start_record(arguments, prepared, self.selection, self.argv)
        model = context.load_model(None)
        complete_hardware(record, arguments, threads, model)
        self._announce(record, prepared)
        del model
        if is_first_process():
            self._claim_output(record)
        _wait_for_all(arguments.config)
        try:
            trainer, ledger = run_phases(context, self.folder, arguments.run.resume)
        except Interrupted as error:
            self._keep(record, INTERRUPTED)
            raise Interrupted(f"{error} To resume: {self._resume_command()}") from error
        record.phases = ledger.done
        self._keep(record, TRAINED)
        if trainer is None or arguments.peft.peft:
            # Adapters are merged in what was saved, and that is what is pushed: it is what is scored.
            trainer = self._scoring_trainer(context, prepared)
        tests, results, generalized = self._score(trainer, prepared)
        record.results = results.to_dict()
        record.generalized = generalized.to_dict() if generalized else None
        self._finish(record, results, None)
        if arguments.embedded and arguments.run.floor:
            floor = self._floor(prepared, tests)
            record.floor = floor.to_dict()
            self._finish(record, results, floor)
        self._show(record)
        self._push()
        return 0

    def _claim_output(self, record: RunRecord) -> None:
        config, overwrite = self.arguments.config, self.arguments.run.overwrite
        saves = str(getattr(config.save_strategy, "value", config.save_strategy)) != "no"
        trainable = record.model.get("adapter", {}).get("trainable_parameters")
        averages = self.arguments.average.average
        check_space(self.folder, record.model["parameters"], saves, overwrite, trainable, averages)
        claim_output(self.folder, overwrite=overwrite)
        if self.before is None:
            record.write(self.folder)

    def _threads(self) -> int | None:
        if self.arguments.run.threads is None and self.before is not None:
            return self.before.hardware.get("threads")
        return self.arguments.run.threads

    def _announce(self, record: RunRecord, prepared: Any) -> None:
        plan = self.plan
        name = record.model["name"] or "a local model"
        trained = sum(entry.size for entry in plan.of_role(TRAINING))
        say(
            f"Strategy {self.arguments.strategy.name}: {name} ({record.model['parameters'] / 1e6:.1f}M parameters"
            f"{_of_adapter(record.model)}), "
            f"{trained:,} labelled examples in {', '.join(plan.source_languages)}, "
            f"{len(plan.target_languages)} target languages, {record.hardware['device']}, "
            f"{record.hardware['processes']} x {record.hardware['threads']} threads."
        )
        if self.arguments.embedded:
            say("Embedded demo task: phrases of the Unicode CLDR. Its numbers say nothing about other tasks.")
        for note in plan.notes:
            say(f"Note: {note}")

    def _scoring_trainer(self, context: Any, prepared: Any) -> Any:
        from hf_xlt.models import ModelSource
        from hf_xlt.training.trainer import XLTTrainer

        model = ModelSource(
            str(self.folder), None, attn_implementation=self.arguments.model.attn_implementation
        ).load_trained(self.plan.task)
        return context.build_trainer(XLTTrainer, context.config_for(self.folder), model)

    def _score(self, trainer: Any, prepared: Any) -> tuple[dict[str, Any], Results, GeneralizedResults | None]:
        from hf_xlt.evaluation import read_tests, score
        from hf_xlt.generalized import score_generalized

        tokenizer, inventory, pairs = prepared.context.tokenizer, prepared.inventory, None
        try:
            tests = read_tests(self.plan, tokenizer, inventory, prepared.max_length)
            if self.arguments.data.generalized:
                pairs = join_pairs(self.plan, self.arguments.data, inventory)
        except ConfigError as error:
            raise ConfigError(
                f"{error} The model is trained and saved in `{self.folder}`; mend the test data and repeat the "
                "command with `--resume`, which only scores."
            ) from error
        results = score(trainer, tests, self.plan.task, self.plan.source_languages)
        if pairs is None:
            return tests, results, None
        encoding = Encoding(tokenizer, {}, inventory, prepared.max_length, "")
        return tests, results, score_generalized(trainer, pairs, self.plan.task, encoding, results)

    def _floor(self, prepared: Any, tests: dict[str, Any]) -> Results:
        """Train and score the same architecture from random weights, plainly, without saving anything."""
        from transformers import set_seed

        from hf_xlt.evaluation import score
        from hf_xlt.training.trainer import XLTTrainer

        context = prepared.context
        say("Random-initialisation floor: plain fine-tuning of the same length from random weights.")
        set_seed(context.config.seed)
        model = prepared.model.load_random(self.plan.task, prepared.inventory)
        with tempfile.TemporaryDirectory() as folder:
            config = copy.copy(context.config_for(Path(folder)))
            config.save_strategy, config.eval_strategy = (
                type(config.save_strategy)("no"),
                type(config.eval_strategy)("no"),
            )
            config.load_best_model_at_end, config.report_to = False, []
            trainer = context.build_trainer(XLTTrainer, config, model, eval_dataset=None)
            trainer.train()
            if context.flag.raised:
                raise Interrupted(f"the floor was not measured; everything else is saved in `{self.folder}`.")
            return score(trainer, tests, self.plan.task, self.plan.source_languages)

    def _keep(self, record: RunRecord, status: str) -> None:
        record.status = status
        now = time.monotonic()
        record.wall_time_seconds = round(record.wall_time_seconds + now - self.started, 1)
        self.started = now
        if is_first_process():
            record.write(self.folder)

    def _finish(self, record: RunRecord, results: Results, floor: Results | None) -> None:
        from hf_xlt.bookkeeping import add_test_fingerprints
        from hf_xlt.evaluation import write_results
        from hf_xlt.files import write_text
        from hf_xlt.generalized import replace_generalized
        from hf_xlt.model_cards.card import render

        if is_first_process():
            add_test_fingerprints(record, self.plan)
            write_results(self.folder, results, floor)
            replace_generalized(self.folder, record.generalized_scores)
        self._keep(record, FINISHED)
        if is_first_process():
            write_text(self.folder / "README.md", render(record))

    def _show(self, record: RunRecord) -> None:
        results, floor = record.scores, record.floor_scores
        say("\n" + plain(results.table(floor)) + "\n")
        for line in results.summary_lines(floor):
            say(f"  {line}")
        if record.selection.get("oracle"):
            say("  Oracle: target-language validation labels chose the checkpoint; this is not zero-shot transfer.")
        if record.generalized_scores:
            say("\n" + record.generalized_scores.describe())
        force = " --force" if record.demo else ""
        average = averaged(record.phases)
        if average is not None:
            say(f"\n{describe(average)} Those without averaging are in {average['beside']}/.")
        say(
            f"\nSaved in {self.folder}: model and tokenizer, xlt_run.json (record), results.json, results.md, "
            f"README.md (card). Took {record.wall_time_seconds:.0f} s.\n"
            f"Next: hf-xlt push {self.folder} USER/NAME{force}"
        )

    def _resume_command(self) -> str:
        parts = [part for part in self.argv if part not in ("--resume", "--overwrite")]
        if "output_dir" not in self.arguments.explicit:
            parts += ["--output-dir", str(self.folder)]
        return f"hf-xlt run {shlex.join(parts)} --resume"

    def _push(self) -> None:
        if self.hub is None or not is_first_process():
            return
        from hf_xlt.hub import push

        report = push(
            self.folder,
            self.hub["hub_model_id"] or self.folder.resolve().name,
            private=self.hub["hub_private_repo"],
            revision=self.hub["hub_revision"],
            token=self.hub["hub_token"],
        )
        say(f"Pushed to {report.url}")


def _take_hub_settings(config: Any) -> dict[str, Any] | None:
    """Take the Hub's settings away from the Trainer: the run is pushed once, after it is saved.

    Raises:
        ConfigError: a push is asked for without a repository.
    """
    if not config.push_to_hub:
        return None
    names = ("hub_model_id", "hub_private_repo", "hub_revision", "hub_token")
    taken = {name: getattr(config, name) for name in names}
    if not taken["hub_model_id"]:
        raise ConfigError("`--push-to-hub` needs `--hub-model-id USER/NAME`.")
    config.push_to_hub, config.hub_token = False, None
    return taken


def _of_adapter(model: dict[str, Any]) -> str:
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
    from hf_xlt.preparation import adapt, find_model

    _, inventory = plan.read_training()
    with torch.device("meta"):
        model = adapt(find_model(arguments).load_random(plan.task, inventory), arguments, plan.task)
    facts = {"parameters": merged_size(model), "adapter": describe(model)}
    return [
        f"Parameters {facts['parameters']:,}{_of_adapter(facts)}",
        f"Adapters   on {', '.join(facts['adapter']['target_modules'])}; trained in full: "
        f"{', '.join(facts['adapter']['modules_to_save'])}",
    ]


def _wait_for_all(config: Any) -> None:
    if config.world_size > 1:
        config.distributed_state.wait_for_everyone()


def describe_plan(arguments: Arguments, plan: DataPlan, selection: dict[str, Any]) -> str:
    """Say what would be run: data, labels, updates, cost."""
    config, strategy = arguments.config, arguments.strategy
    lines = [f"Strategy   {strategy.name}: {strategy.summary}", f"Model      {arguments.model.model}"]
    if arguments.peft.peft:
        lines += _planned_adapter(arguments, plan)
    for role, entries in plan.sets.items():
        for entry in entries:
            lines.append(
                f"Data       {role:<18} {entry.language:<8} {entry.split:<12} {entry.size:>9,}  {entry.source.name}"
            )
    _, inventory = plan.read_training()
    if inventory is not None:
        lines.append(f"Labels     {len(inventory)}: {', '.join(inventory.names)}")
    lines.append(f"Selection  {selection['protocol']}" + (f" by {selection['metric']}" if selection["metric"] else ""))
    updates = planned_updates(arguments, plan)
    phases = strategy.phases(config) if strategy.phases else []
    if phases:
        counted = (f"{phase.name} {updates if phase.updates is None else phase.updates:,}" for phase in phases)
        lines.append(f"Phases     {', '.join(counted)}")
    shared = strategy.uses_shots or arguments.data.few_shot_mode != "joint"
    joint = 0 if shared else len(plan.of_role(SHOTS))
    if arguments.average.average:
        lines.append(f"Average    {arguments.average.describe()}")
    cost = strategy.cost(config) * (1 + joint)
    batches = f" and as many of each of {joint} target languages" if joint else ""
    lines.append(f"Updates    {updates:,}, each of {_global_batch(config):,} source examples{batches}")
    lines.append(f"Cost       {cost:.2f} plain steps per update, {cost * updates:,.0f} plain steps in all")
    if arguments.peft.peft:
        lines.append("           in steps that train all weights; with these frozen a plain step, and an ascent step")
        lines.append("           as well, costs about 2/3 of one")
    if arguments.data.generalized:
        count = len(choose_pair_sets(plan, arguments.data))
        lines.append(f"Also       {count * count:,} ordered pairs of {count} languages are scored (--generalized)")
    lines.append(f"Output     {config.output_dir}")
    lines += [f"Note       {note}" for note in plan.notes]
    return "\n".join([*lines, "Nothing was run (--dry-run)."])


def _global_batch(config: Any) -> int:
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size


def planned_updates(arguments: Arguments, plan: DataPlan) -> int:
    """Return the number of updates of one phase, as the Trainer counts them."""
    from hf_xlt.preparation import count_updates

    config, data = arguments.config, arguments.data
    augmentation = arguments.strategy.augmentation(config)
    copies = augmentation.copies if augmentation else 1
    examples = sum(entry.size for entry in plan.of_role(TRAINING)) * copies
    if data.shots and data.few_shot_mode == "concat" and not arguments.strategy.uses_shots:
        examples += sum(entry.size for entry in plan.of_role(SHOTS))
    return count_updates(config, examples)


if __name__ == "__main__":
    sys.exit(main())
