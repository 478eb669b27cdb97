"""Put a finished pre-training into the package: `python -m hf_xlt.embedded.shipping RUN --sources MD --measured MD`.

The weights go to float16, the configuration fine-tunes with dropout, and the card says from the run's record how the
encoder was made, from the text's own list what it was made from, and from a table of `benchmarks/encoder_transfer.py`
what it does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_xlt.embedded import ENCODER_NAME
from hf_xlt.errors import ConfigError, reports_errors
from hf_xlt.record import FINISHED, RunRecord

SIZE_LIMIT = 16_000_000
# Pre-training ran without dropout; fine-tuning on a few hundred sentences needs some.
DROPOUT = {"embedding_dropout": 0.1, "mlp_dropout": 0.1, "classifier_dropout": 0.1}

CARD = """---
library_name: transformers
pipeline_tag: fill-mask
license: cc-by-4.0
language:
{languages}
tags:
- cross-lingual-transfer
- meta-pretrain
- modernbert
---

# {name}

A small multilingual encoder that comes with `hf_xlt`, for trying cross-lingual transfer offline on real text: {type},
{layers} layers of {width} dimensions, {pieces:,} pieces (lower-cased), {parameters:,} parameters, weights in float16.
It has seen {count} languages, most of them little. It is far weaker than XLM-R or mDeBERTa: use those for real work.

    hf-xlt run --strategy robust --model embedded --dataset 'data/{{split}}.{{lang}}.parquet'

## How it was made

With the package's own commands, on one thread of {processor}, beside other jobs, in {minutes:.0f} minutes,
seed {seed}, {precision} ({versions}):

    python -m hf_xlt.embedded.text --data DATA --output-dir text
    hf-xlt train-tokenizer --text 'text/multilingual/{{lang}}.parquet' --model bpe --vocab-size 20000 \\
        --sample-bytes 40000000 --alpha 0.3 --lowercase --split-digits --max-length 512 -o tokenizer
    hf-xlt pretrain --config examples/pretraining/encoder.yaml

{phases}

Each update takes {rows} rows of {length} tokens and, with the contrastive objective, {pairs} translation pairs. The
order of the phases, one language and then many, is that of Chi et al. 2021 (arXiv 2109.11129); objectives, mixture and
schedule are ours, and the contrastive objective is our addition. No label was used. Settings were not tuned:
rows and pairs were cut once, in the first minutes, for speed, and this is the first full run.

## What it does

{measured}

## What it was made from

{sources}

Nothing of this text is in the package. Rows equal to a sentence of the evaluation sets above were removed from the
text beforehand; translations of the training text's own sentences (not of the evaluation sets') are part of it, so
zero-shot here means without labels, not without parallel data.

## Limits

- Technical documentation, medical phrases and old novels: few everyday sentences, and for most languages 3,000 in all.
- Lower-cased: it cannot tell names by their capitals.
- Languages with short names only (see the list: those with CLDR rows alone) have seen no sentence at all.
- One run, one seed.

## Licence

CC BY 4.0, attributing the sources above. Apache-2.0, CC0, public-domain and Unicode-licensed text is part of it; see
the file NOTICE of `hf_xlt`. None of the sources' owners has a part in this model or endorses it.
"""


def render_card(record: RunRecord, config: Any, sources: str, measured: str) -> str:
    """Return the card; the same facts give the same text."""
    settings, hardware = record.settings, record.hardware
    languages = sorted({code for entry in record.data.values() for code in entry["tokens"]})
    rows = ["| phase | updates | text | objectives | rate | alpha |", "|:--|--:|:--|:--|--:|--:|"]
    for phase in settings["phases"]:
        objectives = " + ".join(f"{weight:g} {name}" for name, weight in phase["objectives"].items())
        text = ", ".join(source["text"] for source in phase["sources"])
        rate = phase["learning_rate"] or settings.get("learning_rate")
        rows.append(
            f"| {phase['name']} | {phase['steps']:,} | {text} | {objectives} | {rate:g} | {phase['alpha']:g} |"
        )
    return CARD.format(
        name=ENCODER_NAME,
        languages="\n".join(f"- {code}" for code in languages),
        count=len(languages),
        type=record.model["model_type"],
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        pieces=config.vocab_size,
        parameters=record.model["parameters"],
        processor=hardware["processor"],
        minutes=record.wall_time_seconds / 60,
        seed=record.seeds["seed"],
        precision="bfloat16 autocast" if settings.get("bf16") else "float32",
        versions=", ".join(f"{name} {record.versions[name]}" for name in ("torch", "transformers", "datasets")),
        phases="\n".join(rows),
        rows=settings["per_device_train_batch_size"],
        length=settings["row_length"],
        pairs=max(phase["pairs"] or 0 for phase in settings["phases"]),
        measured=measured.strip(),
        sources=sources.strip(),
    )


def ship(run: Path, output: Path, sources: str, measured: str) -> None:
    """Write the encoder beside and move it to its place.

    Args:
        run: output directory of a finished `hf-xlt pretrain`.
        output: folder of the package; what it holds is replaced.
        sources: Markdown list of the text's sources and licences.
        measured: Markdown of what was measured.

    Raises:
        ConfigError: the run is not finished, or its weights are too large.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    record = RunRecord.read(run)
    if record.status != FINISHED:
        raise ConfigError(f"the pre-training in `{run}` is {record.status}; finish it with `--resume` first.")
    model = AutoModelForMaskedLM.from_pretrained(run, dtype=torch.float32)
    model.config.update(DROPOUT)
    model.config._name_or_path = ""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".encoder-") as scratch:
        folder = Path(scratch, "encoder")
        model.half().save_pretrained(folder)
        AutoTokenizer.from_pretrained(run).save_pretrained(folder)
        size = (folder / "model.safetensors").stat().st_size
        if size > SIZE_LIMIT:
            raise ConfigError(f"the weights take {size:,} bytes; the package carries at most {SIZE_LIMIT:,}.")
        (folder / "README.md").write_text(render_card(record, model.config, sources, measured), encoding="utf-8")
        # safetensors writes for the owner only; the folder is to be packaged and read by others.
        for path in folder.iterdir():
            path.chmod(0o644)
        shutil.rmtree(output, ignore_errors=True)
        folder.rename(output)


@reports_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Ship one run; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hf_xlt.embedded.shipping", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="output directory of `hf-xlt pretrain`")
    parser.add_argument("--sources", type=Path, required=True, help="SOURCES.md of `python -m hf_xlt.embedded.text`")
    parser.add_argument("--measured", type=Path, required=True, help="Markdown of what was measured")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent / "encoder")
    options = parser.parse_args(argv)
    texts = []
    for path in (options.sources, options.measured):
        if not path.is_file():
            raise ConfigError(f"`{path}` is missing.")
        texts.append(path.read_text(encoding="utf-8"))
    sources = texts[0].split("\n## ")[0].split("\n", 1)[1]
    ship(options.run, options.output_dir, sources, texts[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
