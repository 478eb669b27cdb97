#!/usr/bin/env bash
# Few-shot transfer as in Schmidt et al. (2023): English first, then English and Swahili together; half a minute.
# What is there already is kept: finished steps are not repeated.
set -euo pipefail
here=$(dirname "$0")
for step in english joint; do
	hf-xlt run --config "$here/$step.yaml" --resume "$@"
done
