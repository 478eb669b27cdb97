#!/usr/bin/env bash
# Runs one example: examples/run.sh robust [further arguments of `hf-xlt run`]
set -euo pipefail
name=${1:?name of an example, such as robust}
shift
exec hf-xlt run --config "$(dirname "$0")/$name.yaml" "$@"
