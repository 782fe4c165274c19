#!/usr/bin/env bash
# Cost and benefit of augmentation: augment MRPC (with the rate in masked words per minute), then train the same number of
# steps with and without it from the same fine-tuned model. If interrupted, run the same command again to resume.
#
#   [WIDTH=80] [DEPTH=200] [PROBABILITY=0.4] bash benchmarks/augment.sh DATA LM FINETUNED OUT [SEED] [WORKERS]
#
# DATA: folder with MRPC; LM: masked language model; FINETUNED: encoder fine-tuned on MRPC; OUT: folder of the results.
# WIDTH, DEPTH: steps of the phases; PROBABILITY: probability of replacing a word.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?folder with MRPC} lm=${2:?masked language model} finetuned=${3:?fine-tuned model} out=${4:?folder for results}
seed=${5:-42} workers=${6:-2} width=${WIDTH:-80} depth=${DEPTH:-200} probability=${PROBABILITY:-0.4}
export PYTHONPATH=$PWD/src HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}
mkdir -p "$out"
"$python" -m limbert augment --task mrpc --data "$data/MRPC" --lm "$lm" --output "$out/copies-$probability" \
  --probability "$probability" --precision bf16 --workers "$workers"
common=(--task mrpc --data "$data/MRPC" --model "$finetuned" --precision bf16 --threads 1 --seed "$seed"
  --phases "width,depth" --widths "0.25,1.0" --depths "0.5,1.0" --learning-rate 2e-4
  --epochs 100 --set "width.max_steps=$width" --set "depth.max_steps=$depth")  # so that steps, not epochs, end a phase
plain="$out/plain-$width-$depth-$seed" augmented="$out/augmented-$probability-$width-$depth-$seed"
"$python" -m limbert train "${common[@]}" --output "$plain"
# an epoch is 31 times as long and has 31 validations: one every 104 steps, as without augmentation
"$python" -m limbert train "${common[@]}" --output "$augmented" --augmented "$out/copies-$probability/train_aug.tsv" \
  --set width.evaluations=31 --set depth.evaluations=31
for run in "$plain" "$augmented"; do
  "$python" -m limbert evaluate "$run" --task mrpc --data "$data/MRPC" --threads 1 --json | tee "$run.json"
done
