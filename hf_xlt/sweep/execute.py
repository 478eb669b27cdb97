"""Making the runs of a sweep: each in a process of its own, several at a time where there are devices, resumable."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_xlt.arguments import Arguments
from hf_xlt.errors import EXIT_INTERRUPTED, EXIT_USAGE, ConfigError, Interrupted, RunError
from hf_xlt.files import write_json
from hf_xlt.output import kept_note
from hf_xlt.planning import PlannedCost
from hf_xlt.record import FINISHED, RECORD_NAME, RunRecord
from hf_xlt.streams import print_document
from hf_xlt.sweep.members import DONOR, EACH, Member, divided_flags, plan_members, read_plans
from hf_xlt.written import delete_written

SWEEP_NAME = "sweep.json"
LOGS_NAME = "logs"
_POLL_SECONDS = 0.2


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)  # noqa: T201


def run_sweep(arguments: Arguments, argv: Sequence[str]) -> int:
    """Make all runs of a sweep, then its table and, of runs with one head, their average.

    Args:
        arguments: parsed, with `sweep.seeds` above 0.
        argv: the same as typed.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: the runs cannot be planned, or the folder holds something else.
        Interrupted: a signal stopped a run; its checkpoint is saved.
        RunError: a run failed; the others are kept.
    """
    members, folder = plan_members(arguments, argv), Path(arguments.config.output_dir)
    if arguments.run.dry_run:
        costs, notes = read_plans(members), divided_flags(arguments, argv)
        say(_describe(arguments, members, costs, notes))
        if arguments.run.json:
            print_document(_values(members, costs, notes, folder))
        return 0
    if arguments.sweep.strategies:
        # Data that the last strategy cannot use are told of now, and not after the runs of all others.
        read_plans([member for member in members if not is_finished(folder / member.name)])
    for note in divided_flags(arguments, argv):
        say(f"Note: {note}")
    _claim(folder, members, arguments.run.resume, arguments.run.overwrite)
    runs = Runs(arguments, folder, argv)
    with runs.listening():
        runs.make([member for member in members if member.name == DONOR])
        runs.make([member for member in members if member.name != DONOR])
    if arguments.sweep.strategies:
        from hf_xlt.sweep.strategies import finish_comparison

        finish_comparison(members, folder, arguments.run.json)
        return 0
    from hf_xlt.sweep.report import finish_sweep

    values = finish_sweep(arguments, members, folder, argv)
    if arguments.run.json:
        print_document(values)
    return 0


def _describe(
    arguments: Arguments, members: Sequence[Member], costs: Mapping[str, PlannedCost], notes: Sequence[str]
) -> str:
    lines = [f"Runs       {len(members)}, {_at_a_time(arguments)} at a time"]
    lines += [f"           {member.name:<8} {member.describe()}" for member in members]
    if arguments.sweep.share_head is not None:
        lines.append("Head       of the donor, frozen in the runs; their average goes to averaged/")
    commands = {member.strategy or EACH: member.tokens for member in members}
    for name, tokens in commands.items():
        lines += [f"{name:<10} hf-xlt run {shlex.join(tokens)}", f"           {costs[name].describe()}"]
    lines += [f"Note       {note}" for note in notes]
    lines.append(f"Output     {arguments.config.output_dir}")
    return "\n".join([*lines, "Nothing was run (--dry-run)."])


def _values(
    members: Sequence[Member], costs: Mapping[str, PlannedCost], notes: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Return what would be run, JSON-able."""
    runs = [
        {
            "name": member.name,
            "strategy": member.strategy,
            "seed": member.seed,
            "settings": member.settings,
            "arguments": list(member.tokens),
            "plain_steps": costs[member.strategy or EACH].total,
        }
        for member in members
    ]
    return {"runs": runs, "notes": list(notes), "output_dir": str(folder)}


def _claim(folder: Path, members: Sequence[Member], resume: bool, overwrite: bool) -> None:
    """Make the sweep's folder, or check that what is there is the same sweep.

    Raises:
        ConfigError: there is something that may not be touched, or another sweep.
    """
    definition = {"runs": [{"name": m.name, "seed": m.seed, "settings": m.settings} for m in members]}
    if any(member.strategy for member in members):
        definition["strategies"] = list(dict.fromkeys(member.strategy for member in members))
    path = folder / SWEEP_NAME
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not path.is_file():
            raise ConfigError(f"`{folder}` is not empty and holds no sweep, so it is left alone; give another folder.")
        if not (resume or overwrite):
            raise ConfigError(
                f"`{folder}` holds a sweep already. Add `--resume` to continue it, `--overwrite` to delete it, or "
                "give another `--output-dir`."
            )
        if resume and _read(path) != definition:
            raise ConfigError(
                f"the sweep in `{folder}` has other runs than this command asks for. Repeat its command and add "
                "`--resume`, or give another `--output-dir`."
            )
        if overwrite:
            others = delete_written(folder, _members_there(path, members))
            for note in kept_note(folder, [entry.relative_to(folder).as_posix() for entry in others]):
                say(note)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, definition)


def _members_there(path: Path, members: Sequence[Member]) -> tuple[str, ...]:
    """Return the names of the runs of the sweep that is there; of a damaged one, of the runs asked for."""
    try:
        return tuple(run["name"] for run in _read(path)["runs"])
    except (ConfigError, KeyError, TypeError):
        return tuple(member.name for member in members)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"`{path}` is damaged; start anew with `--overwrite`.") from error


def is_finished(folder: Path) -> bool:
    """Say whether a folder holds a finished run."""
    return (folder / RECORD_NAME).is_file() and RunRecord.read(folder).status == FINISHED


def _devices() -> list[str]:
    """Return the GPUs that runs can be spread over, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name] if torch.cuda.is_available() else []
    return [str(number) for number in range(torch.cuda.device_count())]


def _at_a_time(arguments: Arguments) -> int:
    on_cpu = arguments.config.use_cpu
    return arguments.sweep.parallel_runs or (1 if on_cpu else max(len(_devices()), 1))


@dataclass
class _Process:
    """A run under way."""

    member: Member
    process: subprocess.Popen
    place: int
    log: Path | None
    started: float = field(default_factory=time.monotonic)


class Runs:
    """Makes runs, at most so many at a time.

    Args:
        arguments: of the sweep.
        folder: of the sweep.
        argv: as typed, for the command that resumes.
    """

    def __init__(self, arguments: Arguments, folder: Path, argv: Sequence[str]) -> None:
        """Take the sweep."""
        self.arguments, self.folder, self.argv = arguments, folder, argv
        self.devices = [] if arguments.config.use_cpu else _devices()
        self.limit = _at_a_time(arguments)
        self.under_way: list[_Process] = []
        self.stopped = False
        self.started, self.total = 0, 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Pass signals on to the runs inside the block; when it is left by an error, runs under way are stopped."""
        # Only the main thread can receive signals.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        before = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for running in self.under_way:
                running.process.terminate()
            for running in self.under_way:
                running.process.wait()

    def _pass_on(self, number: int, frame: object) -> None:
        self.stopped = True
        for running in self.under_way:
            running.process.send_signal(number)

    def make(self, members: Sequence[Member]) -> None:
        """Make runs that are not finished yet.

        Raises:
            ConfigError: a run's arguments or data cannot be used.
            Interrupted: a signal came.
            RunError: a run failed.
        """
        waiting = [member for member in members if not is_finished(self.folder / member.name)]
        self.total += len(waiting)
        for member in members:
            if member not in waiting:
                say(f"{member.name} ({member.describe()}) is finished.")
        while (waiting or self.under_way) and not (self.stopped and not self.under_way):
            while waiting and len(self.under_way) < self.limit and not self.stopped:
                self._start(waiting.pop(0))
            time.sleep(_POLL_SECONDS)
            for running in [entry for entry in self.under_way if entry.process.poll() is not None]:
                self.under_way.remove(running)
                self._close(running)
        if self.stopped:
            raise Interrupted(f"the sweep stopped; finished runs are kept. To resume: {self._resume_command()}")

    def _start(self, member: Member) -> None:
        home = self.folder / member.name
        tokens = [*member.tokens, f"--output-dir={home}", f"--seed={member.seed}"]
        if self.arguments.sweep.share_head is not None and member.name != DONOR:
            tokens.append(f"--share-head={self.arguments.sweep.share_head or self.folder / DONOR}")
        if (home / RECORD_NAME).is_file():
            tokens.append("--resume")
        environment, place = dict(os.environ), self._free_place()
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        elif self.limit > 1 and self.arguments.run.threads is None:
            environment["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // self.limit, 1))
        log = None
        if self.limit > 1:
            log = self.folder / LOGS_NAME / f"{member.name}.txt"
            log.parent.mkdir(exist_ok=True)
        self.started += 1
        place_in_sweep = f"run {self.started} of {self.total}"
        where = f"; its output goes to {log}" if log else ""
        say(f"{member.name} ({member.describe()}), {place_in_sweep}, starts{where}.")
        with open(log, "ab") if log else contextlib.nullcontext() as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "hf_xlt.run", *tokens],
                env=environment,
                stdin=subprocess.DEVNULL,
                # With `--json` stdout is for the document alone.
                stdout=file or (sys.stderr.fileno() if self.arguments.run.json else None),
                stderr=subprocess.STDOUT if log else None,
                # Signals of the terminal reach the runs through `_pass_on` alone, once.
                start_new_session=True,
            )
        self.under_way.append(_Process(member, process, place, log))

    def _free_place(self) -> int:
        taken = {running.place for running in self.under_way}
        return next(place for place in range(self.limit) if place not in taken)

    def _close(self, running: _Process) -> None:
        code, name = running.process.returncode, running.member.name
        if code == 0:
            say(f"{name} is finished after {time.monotonic() - running.started:.0f} s.")
            return
        if code == EXIT_INTERRUPTED or self.stopped:
            self.stopped = True
            return
        where = f"; its last lines are in `{running.log}`" if running.log else ""
        error = ConfigError if code == EXIT_USAGE else RunError
        raise error(
            f"{name} failed with exit code {code}{where}. Finished runs are kept. Once it is mended: "
            f"{self._resume_command()}"
        )

    def _resume_command(self) -> str:
        tokens = [token for token in self.argv if token not in ("--resume", "--overwrite")]
        if "output_dir" not in self.arguments.explicit:
            tokens += ["--output-dir", str(self.folder)]
        return f"hf-xlt run {shlex.join(tokens)} --resume"
