"""The teacher of distillation: its vectors and token states, computed once and kept on disk in half precision.

The states of all texts that a phase will draw are computed before its first update, in parts that are each written
beside and renamed, so that an interrupted computation goes on where it was. The folder's name is a hash of the
teacher's weights and config, its tokenizer, the texts' tokens and what is kept of them: states of another teacher or
of other text are never read. What the cap leaves out is computed again each time it is drawn, by the same function.

Where the student is narrower or wider, targets are the teacher's states times a fixed matrix with orthonormal rows or
columns: nothing is learnt that would have to be thrown away, and sentence vectors stay means of token states.

Shapes: N texts, T tokens, D_t width of the teacher, D width of the targets, that of the student.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from hf_xlt.errors import RunError
from hf_xlt.files import sync_file, sync_folder
from hf_xlt.models import ModelSource, quiet, readable_errors
from hf_xlt.pretraining.distillation import DistillationTexts, pad
from hf_xlt.pretraining.objectives import mean_pool
from hf_xlt.pretraining.statistics import tokenizer_hash
from hf_xlt.randomness import derive_seed

if TYPE_CHECKING:
    from hf_xlt.pretraining.plan import Phase

FOLDER = "teacher-"
PART_TEXTS = 2048
_BATCH = 32
_FORMAT = 1


class Teacher:
    """An encoder in evaluation mode, without gradients."""

    def __init__(
        self,
        name: str,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """Load it in float32.

        Args:
            name: directory or Hub id.
            device: where it runs.
            autocast: the context that it runs in.

        Raises:
            ConfigError: it cannot be loaded, or is no encoder.
        """
        from transformers import AutoModel

        source = ModelSource.find(name)
        with readable_errors(source.path), quiet():
            model, report = AutoModel.from_pretrained(source.path, dtype=torch.float32, output_loading_info=True)
        source.check_body(model, report)
        self.name, self.device, self.autocast = name, device, autocast
        self.model = model.eval().requires_grad_(False).to(device)
        self.width = model.config.get_text_config().hidden_size
        self.projection: Tensor | None = None

    def fingerprint(self) -> str:
        """Return a hash of weights and config."""
        digest = hashlib.sha256()
        config = {name: value for name, value in self.model.config.to_dict().items() if name != "_name_or_path"}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def targets(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a student is to match.

        Args:
            ids: (N, T).
            mask: (N, T).

        Returns:
            Mean-pooled vectors (N, D) and states (N, T, D), float16.

        Raises:
            RunError: a state does not fit into half precision.
        """
        with self.autocast():
            output = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device))
        states = output.last_hidden_state.float()
        if self.projection is not None:
            states = states @ self.projection.T.to(self.device)
        vectors = mean_pool(states, mask.to(self.device))
        halves = vectors.half(), states.half()
        if not all(bool(half.isfinite().all()) for half in halves):
            raise RunError(
                f"states of the teacher `{self.name}` do not fit into half precision; give another teacher."
            )
        return halves

    def complete(self, batch: dict[str, Any], texts: DistillationTexts) -> None:
        """Put into a batch of `DistillationTexts` what its cache lacks."""
        rows = batch["missing"]
        vectors, states = self.targets(batch["teacher_input_ids"], batch["teacher_attention_mask"])
        batch["teacher_vectors"][rows] = vectors
        if "teacher_states" in batch:
            own, other = len(texts.frame.before), len(texts.teacher_frame.before)
            count = min(batch["teacher_states"].shape[1] - own, states.shape[1] - other)
            batch["teacher_states"][rows, own : own + count] = states[:, other : other + count]


def orthonormal_projection(vectors: np.ndarray, width: int, *key: int | str) -> np.ndarray:
    """Return a matrix (D, D_t) that takes vectors to another width and keeps as much of them as it can.

    A smaller width keeps the directions that hold most of the vectors' squares (principal components, not centred, as
    cosines are not). A larger one keeps all: the columns are orthonormal, drawn from the key.

    Args:
        vectors: (n, D_t) of the teacher.
        width: D.
        *key: of the draw.
    """
    own = vectors.shape[1]
    if width <= own:
        return np.linalg.svd(vectors.astype(np.float64), full_matrices=True)[2][:width].astype(np.float32)
    generator = np.random.Generator(np.random.Philox(key=derive_seed(*key, "projection")))
    return np.linalg.qr(generator.standard_normal((width, own)))[0].astype(np.float32)


@dataclass
class TeacherCache:
    """What is kept of a teacher's states.

    Attributes:
        folder: where it lies.
        languages: (n,) language index of each text, in the order in which they are drawn first.
        documents: (n,) document number.
        lengths: (n,) tokens whose states are kept; 0 where only the vector is.
        width: D.
        kept: the first so many texts are kept, the others are not.
        sizes: documents of each language.
    """

    folder: Path
    languages: np.ndarray
    documents: np.ndarray
    lengths: np.ndarray
    width: int
    kept: int
    sizes: list[int]
    _open: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the texts that are kept."""
        self._places = [np.full(size, -1, dtype=np.int64) for size in self.sizes]
        for place, (language, document) in enumerate(self.texts(0, self.kept)):
            self._places[language][document] = place
        starts = [np.concatenate([[0], np.cumsum(self.lengths[part])]) for part in self.parts()]
        self._starts = starts

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: loader workers open their own."""
        return {**self.__dict__, "_open": {}}

    def texts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield language index and document number."""
        return zip(self.languages[start:end].tolist(), self.documents[start:end].tolist(), strict=True)

    def parts(self) -> list[slice]:
        """Return which texts lie in which file."""
        return [slice(start, min(start + PART_TEXTS, self.kept)) for start in range(0, self.kept, PART_TEXTS)]

    def path(self, part: int) -> Path:
        """Return the file of one part."""
        return self.folder / f"states-{part:05d}.safetensors"

    def read(self, language: int, document: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return vector (D,) and states (n, D) of a text in float16, or None where they are not kept.

        Raises:
            RunError: a file is missing or damaged.
        """
        place = int(self._places[language][document])
        if place < 0:
            return None
        part, row = divmod(place, PART_TEXTS)
        try:
            if part not in self._open:
                self._open[part] = safe_open(self.path(part), framework="np").__enter__()
            file = self._open[part]
            start, end = (int(bound) for bound in self._starts[part][row : row + 2])
            vector = file.get_slice("vectors")[row : row + 1][0]
            states = file.get_slice("states")[start:end] if end > start else np.zeros((0, self.width), np.float16)
        except (OSError, SafetensorError) as error:
            raise RunError(f"`{self.path(part)}` is missing or damaged; delete `{self.folder}` and resume.") from error
        return vector, states

    def bytes(self) -> int:
        """Return the size of what is kept."""
        return int(2 * self.width * (self.kept + self.lengths[: self.kept].sum()))

    # ---- Filling it

    def fill(self, teacher: Teacher, texts: DistillationTexts, process: int = 0, processes: int = 1) -> int:
        """Compute the parts that are not there; return how many this process made.

        Args:
            teacher: with its projection.
            texts: where the tokens come from.
            process: this one; parts are dealt out in turn.
            processes: how many there are.
        """
        made = 0
        for number, part in enumerate(self.parts()):
            if number % processes != process or _is_whole(self.path(number)):
                continue
            vectors = np.zeros((part.stop - part.start, self.width), dtype=np.float16)
            starts = self._starts[number]
            states = np.zeros((max(int(starts[-1]), 1), self.width), dtype=np.float16)
            before = len(texts.teacher_frame.before)
            for rows, found, hidden in _computed(teacher, texts, list(self.texts(part.start, part.stop))):
                vectors[rows] = found
                for row, one in zip(rows, hidden, strict=True):
                    count = int(starts[row + 1] - starts[row])
                    states[starts[row] : starts[row + 1]] = one[before : before + count]
            _write(self.path(number), {"vectors": vectors, "states": states})
            made += 1
        return made


def _computed(
    teacher: Teacher, texts: DistillationTexts, chosen: list[tuple[int, int]]
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield rows of `chosen`, texts of like length together, with their vectors and states."""
    inputs = [texts.teacher_tokens(*text) for text in chosen]
    order = sorted(range(len(chosen)), key=lambda row: len(inputs[row]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        ids, mask = pad([inputs[row] for row in rows], texts.teacher.tokenizer.pad_token_id)
        vectors, states = teacher.targets(torch.from_numpy(ids), torch.from_numpy(mask))
        yield rows, vectors.cpu().numpy(), states.cpu().numpy()


def _is_whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            return bool(list(file.keys()))
    except (OSError, SafetensorError):
        return False


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, part)
        sync_file(part)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"the teacher's states cannot be kept in `{path.parent}`: {error.strerror or error}. Free some space, or "
            "lower `teacher_cache_gb`."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def plan_cache(texts: DistillationTexts, slots: int, count: int, width: int, phase: Phase) -> TeacherCache:
    """Decide what is kept of the texts that a phase draws; nothing is computed and no folder named yet.

    Args:
        texts: of the phase.
        slots: batches of all processes.
        count: texts of a batch.
        width: D.
        phase: says what is matched, and the cap.
    """
    languages, documents = texts.all_texts(slots, count)
    lengths = np.zeros(len(documents), dtype=np.int64)
    if phase.token_weight:
        for place, text in enumerate(zip(languages.tolist(), documents.tolist(), strict=True)):
            same = texts.agreeing(*text)
            lengths[place] = 0 if same is None else len(same)
    sizes = np.cumsum(2 * width * (1 + lengths))
    kept = int(np.searchsorted(sizes, phase.teacher_cache_gb * 2**30, side="right"))
    return TeacherCache(Path(), languages, documents, lengths, width, kept, [len(corpus) for corpus in texts.corpora])


def text_hash(cache: TeacherCache, texts: DistillationTexts) -> str:
    """Return a hash of the teacher's tokens of all texts that are kept, and of how many states each has."""
    digest = hashlib.sha256(np.ascontiguousarray(cache.lengths[: cache.kept]).data)
    for text in cache.texts(0, cache.kept):
        digest.update(texts.teacher_tokens(*text).data)
        digest.update(b"|")
    return digest.hexdigest()


@dataclass(frozen=True)
class Places:
    """Where and by whom the states of a phase are computed.

    Attributes:
        folder: of the phase.
        process: this one.
        processes: how many there are.
        wait: returns when all processes have called it.
        precision: of the teacher's arithmetic, as a word.
    """

    folder: Path
    process: int = 0
    processes: int = 1
    wait: Callable[[], Any] = lambda: None
    precision: str = "float32"


def keep_states(
    teacher: Teacher, texts: DistillationTexts, slots: int, count: int, width: int, phase: Phase, places: Places
) -> tuple[TeacherCache, str]:
    """Compute and keep what a phase needs of its teacher, or find it kept; sets the teacher's projection.

    Returns:
        The cache, and a sentence for the user.
    """
    from hf_xlt.written import delete_written

    began = time.monotonic()
    cache = plan_cache(texts, slots, count, width, phase)
    key = {
        "format": _FORMAT,
        "teacher": teacher.fingerprint(),
        "tokenizer": tokenizer_hash(texts.teacher.tokenizer),
        "texts": text_hash(cache, texts),
        "longest": texts.longest,
        "width": width,
        "precision": places.precision,
    }
    name = FOLDER + hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    cache.folder = places.folder / name
    if places.process == 0:
        for other in places.folder.glob(f"{FOLDER}*"):
            if other.name != name and other.is_dir():
                delete_written(other, itself=True)
    if teacher.width != width:
        _project(teacher, cache, texts, places)
    made = cache.fill(teacher, texts, places.process, places.processes)
    places.wait()
    total, left = len(cache.documents), len(cache.documents) - cache.kept
    with_states = int((cache.lengths > 0).sum())
    line = (
        f"Teacher {teacher.name}: {total:,} texts are drawn, {with_states:,} of them with token states that both "
        f"tokenizers cut alike; {cache.bytes() / 2**20:,.0f} MiB in `{name}`, "
        + (f"computed in {time.monotonic() - began:.0f} s." if made else "found there.")
    )
    if left:
        line += (
            f" `teacher_cache_gb` {phase.teacher_cache_gb:g} leaves out {left:,} of them, which the teacher reads "
            "again each time they are drawn: slower, and the same up to rounding."
        )
    if phase.token_weight and not with_states:
        line += " No text is cut alike by both tokenizers, so only sentence vectors are matched."
    return cache, line


def _project(teacher: Teacher, cache: TeacherCache, texts: DistillationTexts, places: Places) -> None:
    """Make the projection from the texts that are drawn first, or read it."""
    path = cache.folder / "projection.safetensors"
    if places.process == 0 and not _is_whole(path):
        sample = list(cache.texts(0, PART_TEXTS))
        vectors = np.zeros((len(sample), teacher.width), dtype=np.float32)
        for rows, found, _ in _computed(teacher, texts, sample):
            vectors[rows] = found
        matrix = orthonormal_projection(vectors, cache.width, *texts.key)
        _write(path, {"projection": np.ascontiguousarray(matrix)})
    places.wait()
    with safe_open(path, framework="np") as file:
        teacher.projection = torch.from_numpy(file.get_tensor("projection"))
