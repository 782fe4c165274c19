#!/usr/bin/env bash
# Effect of elastic pre-training on fine-tuning: the same base model, once cut and once pre-trained at every size, trained on
# SST-2 with the same steps. If interrupted, run the same command again to resume.
#
#   bash benchmarks/pretraining.sh ENCODER TEXT DATA OUT
#
# ENCODER: folder of a pretrained encoder; TEXT: a text file, folder or glob in quotes; DATA: folder with SST-2; OUT: folder for
# models, logs and table.md. Sizes by environment: MLM, WIDTH, DEPTH (steps), ROWS, EPOCHS (of SST-2). CORE: the CPU core to run on.
set -uo pipefail -f
cd "$(dirname "$0")/.."
encoder=${1:?folder of an encoder} text=${2:?text} data=${3:?folder with SST-2} out=${4:?folder for results}
export PYTHONPATH=$PWD/src HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
limbert="taskset -c ${CORE:-0} ${PYTHON:-python3} -m limbert"
pretrain="$limbert pretrain --corpus $text --documents paragraph --widths 0.25,0.5,1.0 --depths 0.5,1.0 --validation 0.02
  --precision bf16 --threads 1"
mkdir -p "$out"

step() { # step NAME COMMAND...: its output goes to OUT/NAME.log, its model to OUT/NAME
  local name=$1; shift
  echo "== $name"
  "$@" --output "$out/$name" > "$out/$name.log" 2>&1 || { tail -n 3 "$out/$name.log" >&2; exit 1; }
}

step mlm $pretrain --model "$encoder" --batch-size 16 --phases mlm --max-steps "${MLM:-250}"
# The control: rewired by importance for masked words, and cut; one step with a learning rate of almost 0.
step cut $pretrain --model "$out/mlm" --batch-size 16 --phases width --max-steps 1 --learning-rate 1e-12
step elastic $pretrain --model "$out/mlm" --set "width.max_steps=${WIDTH:-60}" --set "depth.max_steps=${DEPTH:-80}" \
  --set depth.sampled=3 --batch-size 8
for start in cut elastic; do
  step "sst2-$start" $limbert train --task sst-2 --data "$data/SST-2" --train-limit "${ROWS:-3000}" --max-length 64 \
    --model "$out/$start" --phases final --epochs "${EPOCHS:-4}" --learning-rate 1e-4 --set final.warmup=0.1 \
    --precision bf16 --threads 1
done
"${PYTHON:-python3}" docs/results_table.py accuracy "cut=$out/sst2-cut" "elastic=$out/sst2-elastic" | tee "$out/table.md"
