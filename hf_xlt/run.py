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
from hf_xlt.averaging.summary import averaged, describe, is_oracle
from hf_xlt.data.generalized import join_pairs
from hf_xlt.data.roles import TRAINING, DataPlan
from hf_xlt.errors import ConfigError, Interrupted, reports_errors
from hf_xlt.generalized_results import GeneralizedResults
from hf_xlt.launch import check_launch, is_first_process, set_threads
from hf_xlt.output import check_space, claim_output, inspect_output, kept_note, withdraw, write_card
from hf_xlt.parsing import parse_arguments, spelt_out
from hf_xlt.planning import describe_plan, of_adapter, plan_values, planned_snapshots
from hf_xlt.record import FINISHED, INTERRUPTED, TRAINED, RunRecord
from hf_xlt.results import Results, plain
from hf_xlt.streams import print_document, turned
from hf_xlt.tasks import Encoding

# What `--json` tells of a finished run; the rest is in its record.
_OUTCOME = ("status", "results", "floor", "zero_shot", "comparators", "generalized", "wall_time_seconds")


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run once.

    Args:
        argv: arguments; None takes those of the process.

    Returns:
        Exit code: 0 done, 1 failure, 2 usage, 130 interrupted.
    """
    argv = spelt_out(sys.argv[1:] if argv is None else argv)
    with turned(documents_only="--json" in argv, quiet="--quiet" in argv):
        arguments = parse_arguments(argv)
        # A YAML file may ask for the same.
        with turned(documents_only=arguments.run.json, quiet=arguments.run.quiet):
            return _run(arguments, argv)


def _run(arguments: Arguments, argv: list[str]) -> int:
    if arguments.run.quiet:
        arguments.config.disable_tqdm = True
    if arguments.sweep.seeds:
        from hf_xlt.sweep.execute import run_sweep

        return run_sweep(arguments, argv)
    from hf_xlt.preparation import plan_run

    plan, selection = plan_run(arguments)
    if arguments.run.dry_run:
        say(describe_plan(arguments, plan, selection))
        if arguments.run.json:
            print_document(plan_values(arguments, plan, selection))
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
        self.made = False
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
            self._push()
            return 0
        flag = InterruptionFlag()
        with flag.listen():
            return self._go(flag)

    def _go(self, flag: Any) -> int:
        from transformers.utils import logging

        from hf_xlt.bookkeeping import check_same_run, complete_hardware, start_record, take_over
        from hf_xlt.modelling.attention import score_with_default
        from hf_xlt.modelling.trial import first_rows, try_model
        from hf_xlt.preparation import prepare
        from hf_xlt.training.embedding_rows import saving_of_run
        from hf_xlt.training.phases import run_phases

        # The bars for reading and writing weights would cut the training bar in pieces.
        logging.disable_progress_bar()
        arguments = self.arguments
        threads = set_threads(self._threads(), arguments.config.world_size)
        prepared = prepare(arguments, self.plan, flag)
        context = prepared.context
        if self.before is not None:
            check_same_run(self.before, arguments, self.plan, prepared.inventory.names if prepared.inventory else ())
            take_over(self.before, arguments)
        record = self.before or start_record(arguments, prepared, self.selection, self.argv)
        model = context.load_model(None)
        complete_hardware(record, arguments, threads, model)
        self._announce(record, prepared, saving_of_run(model, context, self._averages()))
        rows, trial = first_rows(context.training), context.strategy.trial
        try_model(model, context.tokenizer, rows, context.task, arguments.config, trial)
        del model
        if is_first_process():
            self._claim_output(record)
        _wait_for_all(arguments.config)
        try:
            trainer, ledger = run_phases(context, self.folder, arguments.run.resume)
        except Interrupted as error:
            self._keep(record, INTERRUPTED)
            raise Interrupted(f"{error} To resume: {self._resume_command()}") from error
        except ConfigError:
            if is_first_process() and self.before is None:
                withdraw(self.folder, self.made)
            raise
        record.phases = ledger.done
        self._keep(record, TRAINED)
        if trainer is None or arguments.peft.peft:
            # Adapters are merged in what was saved, and that is what is pushed: it is what is scored.
            trainer = self._scoring_trainer(context, self.folder)
        elif prepared.kernel:
            score_with_default(trainer.accelerator.unwrap_model(trainer.model))
        tests, results, generalized = self._score(trainer, prepared, record)
        record.results = results.to_dict()
        record.generalized = generalized.to_dict() if generalized else None
        self._score_others(record, prepared, tests, results)
        self._finish(record)
        if arguments.embedded and arguments.run.floor:
            record.floor = self._floor(prepared, tests).to_dict()
            self._finish(record)
        self._show(record)
        self._push()
        return 0

    def _claim_output(self, record: RunRecord) -> None:
        config, overwrite = self.arguments.config, self.arguments.run.overwrite
        saves = str(getattr(config.save_strategy, "value", config.save_strategy)) != "no"
        trainable = record.model.get("adapter", {}).get("trainable_parameters")
        averages = self.arguments.average.average
        snapshots = planned_snapshots(self.arguments, self.plan)
        check_space(self.folder, record.model["parameters"], saves, overwrite, trainable, averages, snapshots)
        self.made = not self.folder.exists()
        for note in kept_note(self.folder, claim_output(self.folder, overwrite=overwrite)):
            say(note)
        if self.before is None:
            record.write(self.folder)

    def _threads(self) -> int | None:
        if self.arguments.run.threads is None and self.before is not None:
            return self.before.hardware.get("threads")
        return self.arguments.run.threads

    def _averages(self) -> bool:
        return self.arguments.average.average or self.arguments.strategy.averages

    def _announce(self, record: RunRecord, prepared: Any, saving: Any) -> None:
        plan = self.plan
        name = record.model["name"] or "a local model"
        trained = sum(entry.size for entry in plan.of_role(TRAINING))
        say(
            f"Strategy {self.arguments.strategy.name}: {name} ({record.model['parameters'] / 1e6:.1f}M parameters"
            f"{of_adapter(record.model)}), "
            f"{trained:,} labelled examples in {', '.join(plan.source_languages)}, "
            f"{len(plan.target_languages)} target languages, {record.hardware['device']}, "
            f"{record.hardware['processes']} x {record.hardware['threads']} threads."
        )
        if prepared.kernel:
            say(
                f"Attention: {prepared.kernel} for training, which is quicker than sdpa on a CPU in bf16; "
                "`--attn-implementation` chooses another."
            )
        if self.arguments.embedded:
            say("Embedded demo task: phrases of the Unicode CLDR. Its numbers say nothing about other tasks.")
        for note in plan.notes:
            say(f"Note: {note}")
        if saving is not None:
            say(f"Note: {saving.describe(self.arguments.config.embedding_rows)}")

    def _scoring_trainer(self, context: Any, folder: Path) -> Any:
        from hf_xlt.models import ModelSource
        from hf_xlt.training.trainer import XLTTrainer

        model = ModelSource(
            str(folder), None, attn_implementation=self.arguments.model.attn_implementation
        ).load_trained(self.plan.task)
        return context.build_trainer(XLTTrainer, context.config_for(self.folder), model)

    def _score_languages(self, trainer: Any, prepared: Any, features: dict[str, Any]) -> Results:
        """Score a model beside the run's, with a threshold of its own where the task has one."""
        from hf_xlt.evaluation import score, settle_threshold

        plan = self.plan
        task, _ = settle_threshold(trainer, plan.task, prepared.inventory, self._threshold_data(prepared))
        return score(trainer, features, task, plan.source_languages, None, plan.auxiliary_languages)

    def _threshold_data(self, prepared: Any) -> dict[str, Any]:
        """Return the source languages' validation features, for tasks with a threshold."""
        from hf_xlt.data.roles import VALIDATION
        from hf_xlt.evaluation import read_tests

        if self.plan.task.find_threshold is None:
            return {}
        return read_tests(
            self.plan, prepared.context.tokenizer, prepared.inventory, prepared.max_length, (VALIDATION,)
        )

    def _keep_threshold(self, record: RunRecord, threshold: float | None) -> None:
        from hf_xlt.models import write_threshold
        from hf_xlt.tasks.multi_label import DEFAULT_THRESHOLD

        record.task["threshold"] = DEFAULT_THRESHOLD if threshold is None else threshold
        if threshold is None:
            note = "there is no source validation data to choose a threshold by; labels count from probability 0.5."
            self.plan.notes.append(note)
            say(f"Note: {note}")
        if is_first_process():
            write_threshold(self.folder, record.task["threshold"])

    def _score(
        self, trainer: Any, prepared: Any, record: RunRecord
    ) -> tuple[dict[str, Any], Results, GeneralizedResults | None]:
        from hf_xlt.evaluation import read_tests, score, settle_threshold
        from hf_xlt.generalized import score_generalized
        from hf_xlt.items import ItemScores
        from hf_xlt.preparation import note_found

        tokenizer, inventory, pairs = prepared.context.tokenizer, prepared.inventory, None
        try:
            tests = read_tests(self.plan, tokenizer, inventory, prepared.max_length)
            for note in note_found(self.plan, inventory):
                say(f"Note: {note}")
            if self.arguments.data.generalized:
                pairs = join_pairs(self.plan, self.arguments.data, inventory)
        except ConfigError as error:
            raise ConfigError(
                f"{error} The model is trained and saved in `{self.folder}`; mend the test data and repeat the "
                "command with `--resume`, which only scores."
            ) from error
        plan = self.plan
        task, threshold = settle_threshold(trainer, plan.task, inventory, self._threshold_data(prepared))
        if task.find_threshold is not None:
            self._keep_threshold(record, threshold)
        items = ItemScores(task, inventory)
        results = score(trainer, tests, task, plan.source_languages, items.add, plan.auxiliary_languages)
        if is_first_process():
            items.write(self.folder)
        if pairs is None:
            return tests, results, None
        encoding = Encoding(tokenizer, {}, inventory, prepared.max_length, "")
        return tests, results, score_generalized(trainer, pairs, self.plan.task, encoding, results)

    def _score_others(self, record: RunRecord, prepared: Any, tests: dict[str, Any], results: Results) -> None:
        """Score what stands beside the run: the model it started from, and rivals of its average."""
        from hf_xlt.comparators import compare
        from hf_xlt.data.roles import TARGET_VALIDATION, VALIDATION
        from hf_xlt.evaluation import read_tests
        from hf_xlt.training.trainer import XLTTrainer

        context, asked = prepared.context, self.arguments.average.average_compare
        start = (
            prepared.model.load_task_model(self.plan.task, prepared.inventory) if self.arguments.data.shots else None
        )
        if start is not None:
            trainer = context.build_trainer(XLTTrainer, context.config_for(self.folder), start)
            record.zero_shot = self._score_languages(trainer, prepared, tests).to_dict()
        if not asked:
            return
        validation = read_tests(
            self.plan,
            context.tokenizer,
            prepared.inventory,
            prepared.max_length,
            (VALIDATION, TARGET_VALIDATION),
        )
        record.comparators = compare(
            asked,
            self.folder,
            averaged(record.phases)["steps"],
            results,
            lambda folder, features: self._score_languages(self._scoring_trainer(context, folder), prepared, features),
            validation,
            tests,
        ).to_dict()

    def _floor(self, prepared: Any, tests: dict[str, Any]) -> Results:
        """Train and score the same architecture from random weights, plainly, without saving anything."""
        from transformers import set_seed

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
            return self._score_languages(trainer, prepared, tests)

    def _keep(self, record: RunRecord, status: str) -> None:
        record.status = status
        now = time.monotonic()
        record.wall_time_seconds = round(record.wall_time_seconds + now - self.started, 1)
        self.started = now
        if is_first_process():
            record.write(self.folder)

    def _finish(self, record: RunRecord) -> None:
        from hf_xlt.averaging.snapshots import discard_snapshots
        from hf_xlt.bookkeeping import add_test_fingerprints
        from hf_xlt.comparators import write_comparators
        from hf_xlt.evaluation import write_results
        from hf_xlt.generalized import replace_generalized

        if is_first_process():
            add_test_fingerprints(record, self.plan)
            write_results(self.folder, record.scores, record.scores_beside)
            write_comparators(self.folder, record.comparator_scores)
            replace_generalized(self.folder, record.generalized_scores)
            record.plots = record.with_plots(self.folder).plots
        self._keep(record, FINISHED)
        if is_first_process():
            for note in write_card(self.folder, record):
                say(note)
            discard_snapshots(self.folder)

    def _show(self, record: RunRecord) -> None:
        results, beside = record.scores, record.scores_beside
        say("\n" + plain(results.table(beside)) + "\n")
        for line in results.summary_lines(beside):
            say(f"  {line}")
        if is_oracle(record.selection, record.phases):
            say("  Oracle: target-language validation labels chose the checkpoint; this is not zero-shot transfer.")
        if record.generalized_scores:
            say("\n" + record.generalized_scores.describe())
        compared = record.comparator_scores
        if compared:
            notes = "\n".join(f"  {note}" for note in compared.notes())
            say(f"\n{compared.heading()}\n\n{plain(compared.table(), left=2)}\n\n{notes}")
        force = " --force" if record.demo else ""
        average = averaged(record.phases)
        if average is not None:
            say(f"\n{describe(average)} Those without averaging are in {average['beside']}/.")
        say(
            f"\nSaved in {self.folder}: model and tokenizer, xlt_run.json (record), results.json, results.md, "
            f"README.md (card). Took {record.wall_time_seconds:.0f} s.\n"
            f"Next: hf-xlt push {self.folder} USER/NAME{force}"
        )
        if self.arguments.run.json and is_first_process():
            outcome = {name: getattr(record, name) for name in _OUTCOME}
            oracle = is_oracle(record.selection, record.phases)
            print_document(
                {"output_dir": str(self.folder), "strategy": record.strategy["name"], "oracle": oracle, **outcome}
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


def _wait_for_all(config: Any) -> None:
    if config.world_size > 1:
        config.distributed_state.wait_for_everyone()


if __name__ == "__main__":
    sys.exit(main())
