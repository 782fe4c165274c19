#!/usr/bin/env bash
# What only a GPU can tell, in one command of less than nine minutes: CUDA tests, benchmarks at BERT-base size, and trainings
# on whole tasks. What is done is not done again, so a run that was cut short goes on where it stopped.
#
#   bash benchmarks/gpu.sh ENCODER DATA OUT
#
# ENCODER: folder of a pretrained encoder; DATA: folder that holds MRPC and SST-2; OUT: receives tables, logs and models.
set -uo pipefail
cd "$(dirname "$0")/.."
encoder=${1:?folder of an encoder} data=${2:?folder with MRPC and SST-2} out=${3:?folder for results}
export PYTHONPATH=$PWD/src HF_HUB_OFFLINE=1 LIMBERT_CACHE=$out/cache TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}
mkdir -p "$out/done"
"$python" -c "import torch; assert torch.cuda.is_available(); print(torch.cuda.get_device_name(), torch.__version__)" \
  2> /dev/null > "$out/device.txt" || { echo "gpu.sh: no CUDA device for $python" >&2; exit 1; }
date +%F >> "$out/device.txt"

step() { # step NAME SECONDS COMMAND...: once, with a limit; its output is OUT/NAME.txt
  local name=$1 seconds=$2; shift 2
  [ -e "$out/done/$name" ] && return
  echo "== $name"
  if timeout "$seconds" "$@" > "$out/$name.txt" 2> "$out/$name.log"; then touch "$out/done/$name"; tail -n 40 "$out/$name.txt"
  else echo "gpu.sh: $name failed or ran out of time, see $out/$name.log" >&2; tail -n 5 "$out/$name.log" >&2; fi
}

# Speed does not depend on what the weights are: BERT-base with random ones.
step base 60 "$python" - "$encoder" "$out/base" <<'PY'
import sys
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
BertForSequenceClassification(BertConfig()).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
PY
step cuda-tests 90 "$python" -m pytest tests/run/test_cuda.py -q -rs -o addopts=
step train-base 100 "$python" benchmarks/train.py --model "$out/base" --data "sst-2=$data/SST-2" --device cuda \
  --precision bf16 --phase depth --rounds 2
step memory-base 60 "$python" benchmarks/memory.py --model "$out/base" --data "mrpc=$data/MRPC" --device cuda
step static-base 60 "$python" benchmarks/static.py "$out/base" --device cuda --rounds 5
step static-base-bf16 60 "$python" benchmarks/static.py "$out/base" --device cuda --precision bf16 --rounds 5
step mrpc 100 "$python" -m limbert train --task mrpc --data "$data/MRPC" --model "$encoder" --precision bf16 \
  --layers first --output "$out/mrpc"
step sst2 300 "$python" -m limbert train --task sst-2 --data "$data/SST-2" --model "$encoder" --precision bf16 \
  --layers first --epochs 1 --output "$out/sst2"
