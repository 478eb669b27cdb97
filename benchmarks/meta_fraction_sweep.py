"""Does the split pay? Pre-train at f = 0, 0.25, 0.5, 0.75 of one budget, and measure transfer and retrieval.

    python benchmarks/meta_fraction_sweep.py --config plan.yaml --total-steps 2000 --data DATA --output-dir DIR

All runs have the same number of updates, batch, text, tokenizer and seed; only the share f of monolingual updates
differs (f = 0 is the single-phase baseline). A finished or interrupted pre-training is continued, not repeated.
Differences below the spread over seeds are no results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml
from encoder_transfer import compare, header, line

from hf_xlt.cli.main import main as hf_xlt


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="plan of two phases, as for `hf-xlt pretrain`")
    parser.add_argument("--model", help="encoder to go on training, in place of the plan's")
    parser.add_argument("--total-steps", type=int, required=True)
    parser.add_argument("--fractions", default="0,0.25,0.5,0.75")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="fine-tuning seeds")
    parser.add_argument("--layer", default="middle")
    options = parser.parse_args()
    plan = Path(options.config)
    if options.model:
        changed = yaml.safe_load(plan.read_text()) | {"model": options.model}
        # The tokenizer is the encoder's own.
        changed.pop("tokenizer", None)
        plan = options.output_dir / "plan.yaml"
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(yaml.safe_dump(changed))
    encoders = {}
    for fraction in options.fractions.split(","):
        folder = options.output_dir / f"f-{fraction}"
        arguments = ["pretrain", "--config", str(plan), "--total-steps", str(options.total_steps)]
        code = hf_xlt([*arguments, "--meta-fraction", fraction, "--output-dir", str(folder), "--resume"])
        if code:
            return code
        encoders[f"f = {fraction}"] = folder
    rows = compare(encoders, options.data, options.seeds, options.layer)
    print("\n" + "\n".join([header(), *map(line, rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
