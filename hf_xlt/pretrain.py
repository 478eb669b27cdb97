"""Pre-training an encoder in phases, from a plan: what `hf-xlt pretrain` runs."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_xlt.errors import ConfigError, Interrupted, close_match
from hf_xlt.launch import check_launch, is_first_process, set_threads
from hf_xlt.output import check_space, claim_output, inspect_output, kept_note, write_card
from hf_xlt.pretraining.plan import CONTRASTIVE, DISTILL, Phase, split_budget
from hf_xlt.pretraining.plan_file import Plan, parse_layers
from hf_xlt.record import FINISHED, INTERRUPTED, RUNNING, RunRecord
from hf_xlt.registry import dependent, unused_problems
from hf_xlt.yaml_file import check_kinds

# Arguments that leave the weights as they would be.
_FREE_TO_CHANGE = frozenset(
    "phases logging_steps logging_strategy save_steps save_strategy save_total_limit disable_tqdm report_to "
    "epoch_limit max_failed_shards dataloader_num_workers dataloader_prefetch_factor strict_resume eval_strategy "
    "eval_steps".split()
)
# Fields of `MetaPretrainingConfig` that only `hf-xlt run` reads; a plan says these things phase by phase.
_OF_A_PHASE = frozenset(
    "total_steps meta_fraction meta_language objectives tlm_weight tlm_share contrastive_weight alpha replay_floor "
    "masked_share whole_words isolated pretraining_batch_size meta_learning_rate cross_learning_rate "
    "allow_phase_change".split()
)


def _is_streamed(plan: Any) -> bool:
    return any(source.streaming for phase in plan.phases for source in phase.sources)


_STREAMED = "text that is streamed (`streaming: true`)"
_DEPENDENT = (
    dependent(
        "pooling",
        lambda plan: any(CONTRASTIVE in phase.objectives for phase in plan.phases),
        "the objective contrastive",
    ),
    dependent("strict_resume max_failed_shards manifest", _is_streamed, _STREAMED),
)


@dataclass(frozen=True)
class Request:
    """What the command line asks for beside the plan.

    Attributes:
        resume: continue the pre-training in the output directory.
        overwrite: delete what it holds and start anew.
        only: name of the single phase to train now, or None for all.
        dry_run: print what would be done, and read one batch per language.
        output_dir: instead of the plan's.
        total_steps: T, or None.
        meta_fraction: f, or None.
        seed: instead of the plan's, or None.
        allow_phase_change: resume a phase whose definition has changed.
        student_layers: instead of the plan's, numbers separated by commas or how many; or None.
        command: as typed, for the record.
    """

    resume: bool = False
    overwrite: bool = False
    only: str | None = None
    dry_run: bool = False
    output_dir: str | None = None
    total_steps: int | None = None
    meta_fraction: float | None = None
    seed: int | None = None
    allow_phase_change: bool = False
    student_layers: str | None = None
    command: Sequence[str] = ()


def apply_request(plan: Plan, request: Request) -> Plan:
    """Return the plan as the command line changes it.

    Raises:
        ConfigError: the options contradict each other or the plan.
    """
    if request.resume and request.overwrite:
        raise ConfigError("`--resume` continues a pre-training and `--overwrite` deletes it; give one of them.")
    phases = plan.phases
    if request.student_layers is not None:
        if not isinstance(plan.model, str):
            raise ConfigError("`--student-layers` chooses layers of a trained `model`; this plan makes a new one.")
        plan = dataclasses.replace(plan, student_layers=parse_layers(request.student_layers))
    if request.total_steps is not None or request.meta_fraction is not None:
        following = [phase.name for phase in phases if DISTILL in phase.objectives]
        if following:
            raise ConfigError(
                f"`--total-steps` and `--meta-fraction` divide a budget of equal updates; phase `{following[0]}` has "
                "the objective `distill`, whose teacher is not counted in it. Set `steps` in the plan."
            )
        total = sum(phase.steps for phase in phases) if request.total_steps is None else request.total_steps
        fraction = phases[0].steps / sum(phase.steps for phase in phases)
        phases = split_budget(phases, total, fraction if request.meta_fraction is None else request.meta_fraction)
    names = [phase.name for phase in phases]
    if request.only is not None and request.only not in names:
        raise ConfigError(
            f"there is no phase `{request.only}`.{close_match(request.only, names)} Phases: {', '.join(names)}."
        )
    training = plan.training if request.seed is None else {**plan.training, "seed": request.seed}
    folder = request.output_dir or plan.output_dir
    return dataclasses.replace(plan, phases=phases, output_dir=folder, training=training)


def make_config(plan: Plan, **changes: Any) -> Any:
    """Build the config that all phases share.

    Raises:
        ConfigError: a training argument is unknown or out of range.
    """
    import torch

    from hf_xlt.strategies.meta_pretraining.config import OPTIMIZER_SETTINGS, MetaPretrainingConfig
    from hf_xlt.training.stock_settings import check_used

    known = {entry.name for entry in dataclasses.fields(MetaPretrainingConfig)}
    unknown = [key for key in plan.training if key not in known]
    if unknown:
        raise ConfigError(f"`training`: unknown key {unknown[0]!r}.{close_match(str(unknown[0]), known)}")
    given = sorted({"max_steps", "num_train_epochs", "output_dir", "push_to_hub"} & set(plan.training))
    if given:
        raise ConfigError(f"`training`: `{given[0]}` is not taken; phases have `steps`, the plan has `output_dir`.")
    misplaced = sorted(_OF_A_PHASE & set(plan.training))
    if misplaced:
        raise ConfigError(
            f"`training`: `{misplaced[0]}` is not taken here; it is set in each phase, or by `hf-xlt run`."
        )
    check_kinds(MetaPretrainingConfig, plan.training, "`training`")
    settings = {"report_to": [], **OPTIMIZER_SETTINGS, **plan.training, **changes}
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        settings.setdefault("use_cpu", True)
    steps = max(phase.steps for phase in plan.phases)
    try:
        config = MetaPretrainingConfig(output_dir=plan.output_dir, max_steps=steps, **settings)
    except TypeError as error:
        raise ConfigError(f"`training`: a value is of the wrong kind: {error}.") from error
    check_used(config, plan.training)
    return config


def _check_used(plan: Plan) -> None:
    """Refuse what no phase of a plan would read.

    Raises:
        ConfigError: there is something.
    """
    given = {**plan.training, **({"manifest": plan.manifest} if plan.manifest else {})}
    asked = SimpleNamespace(**given, phases=plan.phases)
    problems = unused_problems(asked, _DEPENDENT, changed=lambda names: [name for name in names if name in given])
    if problems:
        raise ConfigError(f"{'; '.join(problems)}.")


class Pretraining:
    """A pre-training under way: its plan, its directory and its record."""

    def __init__(self, plan: Plan, request: Request) -> None:
        """Take a plan as the request changes it.

        Raises:
            ConfigError: settings, tokenizer, model or output directory cannot be used.
        """
        from hf_xlt.models import ModelSource, load_tokenizer
        from hf_xlt.pretraining.boundary import check_boundaries
        from hf_xlt.pretraining.loading import read_manifest
        from hf_xlt.strategies.meta_pretraining import STRATEGY
        from hf_xlt.training.stock_settings import check_start

        self.plan, self.request = apply_request(plan, request), request
        self.config = make_config(self.plan, allow_phase_change=request.allow_phase_change)
        self.strategy = STRATEGY
        for refusal in self.strategy.refusals:
            if refusal.applies(self.config):
                raise ConfigError(refusal.reason)
        check_start(self.config)
        check_boundaries(self.plan.phases, self.config, new_encoder=not isinstance(self.plan.model, str))
        self.folder = Path(self.plan.output_dir)
        attention = self.plan.attn_implementation
        self.source = None
        if isinstance(self.plan.model, str):
            self.source = ModelSource.find(self.plan.model, attn_implementation=attention)
        self.tokenizer = load_tokenizer(self.plan.tokenizer or self.plan.model)
        self.manifest = read_manifest(self.plan.manifest, self.tokenizer) if self.plan.manifest else None
        _check_used(self.plan)
        self._texts: dict[tuple[str, str], Any] = {}

    def load_model(self, folder: Path | None) -> Any:
        """Load the encoder that pre-training starts from, or the one in a folder."""
        from hf_xlt.models import ModelSource
        from hf_xlt.pretraining.encoders import new_encoder, with_layers

        attention, seed = self.plan.attn_implementation, self.config.seed
        source = self.source if folder is None else ModelSource(str(folder), None, attn_implementation=attention)
        if source is None:
            return new_encoder(self.plan.model, self.tokenizer, seed, attention)
        model = source.load_masked_lm(seed)[0]
        if folder is None and self.plan.student_layers is not None:
            model = with_layers(model, self.plan.student_layers)
        return model

    def load_text(self, phase: Phase, tokenizer: Any) -> Any:
        """Read the text of a phase; what two phases share is kept."""
        from hf_xlt.pretraining.loading import load_phase_text
        from hf_xlt.pretraining.statistics import tokenizer_hash

        key = (phase.name, tokenizer_hash(tokenizer))
        if key not in self._texts:
            self._texts = {
                key: load_phase_text(
                    phase,
                    tokenizer,
                    seed=self.config.seed,
                    held_out_share=self.config.held_out_share,
                    manifest=self.manifest,
                )
            }
        return self._texts[key]

    def describe(self) -> None:
        """Print what would be done, and read one batch of every phase and language."""
        from hf_xlt.pretraining.report import try_batches

        model = self.load_model(None)
        self._check(model)
        say(f"Encoder    {model.config.model_type}, {model.num_parameters() / 1e6:.1f}M parameters")
        for phase in self.plan.phases:
            tokenizer = self._tokenizer_of(phase)
            text = self.load_text(phase, tokenizer)
            for line in self._report(phase, text, len(tokenizer)).lines():
                say(line)
            say(f"  read: {try_batches(phase, text, tokenizer, self.config)}")
        say(f"Output     {self.folder}\nNothing was trained (--dry-run).")

    def _tokenizer_of(self, phase: Phase) -> Any:
        from hf_xlt.models import load_tokenizer

        # A phase keeps the tokenizer that the last change before it brought.
        index = [known.name for known in self.plan.phases].index(phase.name)
        changes = [known.tokenizer for known in self.plan.phases[: index + 1] if known.tokenizer]
        return load_tokenizer(changes[-1]) if changes else self.tokenizer

    def _report(self, phase: Phase, text: Any, vocabulary: int) -> Any:
        from hf_xlt.pretraining.report import report_phase

        return report_phase(phase, text, vocabulary, self.config)

    def go(self) -> Path:
        """Pre-train; return the output directory.

        Raises:
            ConfigError: the output directory may not be used.
            Interrupted: a signal stopped it; a checkpoint is saved.
        """
        from hf_xlt.training.interruption import InterruptionFlag

        check_launch(self.config)
        before = inspect_output(self.folder, resume=self.request.resume, overwrite=self.request.overwrite)
        # Every process looks at the output directory before the first one writes into it.
        self._wait()
        if before is not None:
            self._check_same(before)
        if before is not None and before.status == FINISHED and self._all_done():
            say(f"The pre-training in `{self.folder}` is finished; nothing to resume.")
            return self.folder
        threads = set_threads(self.plan.threads, self.config.world_size)
        flag = InterruptionFlag()
        with flag.listen():
            return self._go(before, flag, threads)

    def _wait(self) -> None:
        if self.config.world_size > 1:
            self.config.distributed_state.wait_for_everyone()

    def _all_done(self) -> bool:
        """Say whether every phase of the plan is done; a finished pre-training may be given further ones."""
        from hf_xlt.training.phases import Ledger, check_finished

        done = Ledger.read(self.folder).done
        for phase, entry in zip(self.plan.phases, done, strict=False):
            check_finished(phase.name, phase.fingerprint(), entry)
        return len(done) >= len(self.plan.phases)

    def _go(self, before: RunRecord | None, flag: Any, threads: int) -> Path:
        from hf_xlt.pretraining.recording import describe_languages, describe_phase
        from hf_xlt.training.phases import run_phases

        started = time.monotonic()
        model = self.load_model(None)
        record = before or self._start_record(model, threads)
        reports = [
            self._report(phase, self.load_text(phase, self._tokenizer_of(phase)), model.config.vocab_size)
            for phase in self.plan.phases
        ]
        self._check(model)
        del model
        for line in [line for report in reports for line in report.lines()]:
            say(line)
        if is_first_process():
            check_space(self.folder, record.model["parameters"], True, self.request.overwrite)
            for note in kept_note(self.folder, claim_output(self.folder, overwrite=self.request.overwrite)):
                say(note)
            # A resumed pre-training may have been given further phases, or other ones to come.
            record.data = {report.phase.name: describe_phase(report) for report in reports}
            record.languages = {"text": describe_languages(record.data)}
            record.settings = self._settings()
            record.write(self.folder)
        self._wait()
        context = self._context(flag)
        try:
            trainer, ledger = run_phases(context, self.folder, self.request.resume, self.request.only)
        except Interrupted as error:
            self._write(record, INTERRUPTED, started)
            raise Interrupted(f"{error} To resume: {self._resume_command()}") from error
        record.phases = ledger.done
        if trainer is not None:
            # A new tokenizer changes the number of rows of the embeddings.
            record.model["parameters"] = trainer.bare_model().num_parameters()
        finished = len(ledger.done) == len(self.plan.phases)
        self._write(record, FINISHED if finished else RUNNING, started)
        if finished:
            self._write_card(record)
        say(f"\nSaved in {self.folder}. Took {record.wall_time_seconds:.0f} s.")
        if finished:
            say(f"Next: hf-xlt push {self.folder} USER/NAME")
        else:
            say(
                f"Phases done: {', '.join(entry['name'] for entry in ledger.done)}. To go on: {self._resume_command()}"
            )
        return self.folder

    def _check(self, model: Any) -> None:
        """Build what can be built before the output directory is touched: a mistake must leave nothing behind.

        Raises:
            ConfigError: model, tokenizer, text and phases do not fit together.
        """
        from hf_xlt.pretraining.report import try_batches
        from hf_xlt.strategies.meta_pretraining.fit import check_distillation, check_model

        if all(phase.tokenizer is None for phase in self.plan.phases):
            check_model(model, self.tokenizer, self.config.row_length)
        for phase in self.plan.phases:
            tokenizer = self._tokenizer_of(phase)
            text = self.load_text(phase, tokenizer)
            if text.teacher is not None:
                check_distillation(phase, model.config, text.teacher.tokenizer, bool(text.held_out))
            try_batches(phase, text, tokenizer, self.config)

    def _write_card(self, record: RunRecord) -> None:
        for note in write_card(self.folder, record) if is_first_process() else ():
            say(note)

    def _context(self, flag: Any) -> Any:
        from hf_xlt.strategies.meta_pretraining.phases import pretraining_phases
        from hf_xlt.training.phases import RunContext

        phases = pretraining_phases(self.plan.phases, lambda _, phase, tokenizer: self.load_text(phase, tokenizer))
        return RunContext(
            strategy=dataclasses.replace(self.strategy, phases=lambda _: phases),
            config=self.config,
            task=None,
            tokenizer=self.tokenizer,
            load_model=self.load_model,
            training=None,
            validation={},
            source_languages=(),
            joint={},
            roles={},
            compute_metrics=None,
            flag=flag,
            load_masked_lm=self.load_model,
        )

    def _settings(self) -> dict[str, Any]:
        from hf_xlt.pretraining.recording import settings

        return settings(self.plan)

    def _check_same(self, before: RunRecord) -> None:
        """Refuse to resume with other training arguments; the phases are compared one by one later.

        Raises:
            ConfigError: an argument that matters to the result differs.
        """
        processes = before.hardware.get("processes")
        if processes != self.config.world_size:
            say(
                f"Warning: the pre-training was started with {processes} process{'es' * (processes != 1)} and goes on "
                f"with {self.config.world_size}: an update now has another number of rows."
            )
        now = self._settings()
        for name in sorted((set(now) | set(before.settings)) - _FREE_TO_CHANGE):
            if now.get(name) != before.settings.get(name):
                raise ConfigError(
                    f"the pre-training to resume was started with `{name}` {before.settings.get(name)!r}, not "
                    f"{now.get(name)!r}. Restore it, or start anew in another `--output-dir`."
                )

    def _start_record(self, model: Any, threads: int) -> RunRecord:
        from hf_xlt.pretraining.recording import start_record

        return start_record(self.plan, self.config, self.strategy, self.source, model, threads, self.request.command)

    def _write(self, record: RunRecord, status: str, started: float) -> None:
        record.status = status
        record.wall_time_seconds = round(record.wall_time_seconds + time.monotonic() - started, 1)
        if is_first_process():
            record.write(self.folder)

    def _resume_command(self) -> str:
        parts, command = [], iter(self.request.command)
        for part in command:
            if part == "--phase":
                next(command, None)
            elif part not in ("--resume", "--overwrite") and not part.startswith("--phase="):
                parts.append(part)
        return f"hf-xlt pretrain {shlex.join(parts)} --resume"


def say(text: str) -> None:
    """Print, from the first process only."""
    if is_first_process():
        print(text, flush=True)  # noqa: T201
