#!/usr/bin/env bash
# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
# Measures this library beside a plain PyTorch loop in Python and ONNX Runtime: training, scoring, one sentence at a time, start,
# memory, growth, and how near the products come to the machine's peak; prints the ratios and writes eng/bench/RESULTS.md.
#   ./eng/bench/run.sh [--rounds 5] [--threads CORES] [--only SECTIONS] [--without SECTIONS] [--precisions ALL] [--out FILE]
#                      [--steps 230] [--base-steps 12] [--base-rounds 3] [--loss-steps 30] [--growth-rows 1000,10000,100000] [--keep-environment]
#   sections: minilm, base (BERT-base's geometry), latency, start, roofline, growth; words between commas
# Set ONNXRUNTIME_NODE to a folder with the npm package onnxruntime-node (npm install onnxruntime-node --ignore-scripts).
#   ./eng/bench/run.sh --rows [--count 1000000] [--model one-layer|minilm]
#                                       memory and speed of `peft predict` over a very long table; writes RESULTS.rows.md
#   ./eng/bench/run.sh --sites          what a projection costs that may be patched, and what shared products save
#   ./eng/bench/run.sh --images         images read and resized a second, beside Pillow in Python; writes RESULTS.images.md
#   ./eng/bench/run.sh --image-training [--rounds 3] [--threads 1,CORES] [--precisions Float32,BFloat16]
#                                       ViTs trained by LoRA, beside PyTorch; writes RESULTS.image-training.md
#   ./eng/bench/run.sh --profile        where the time of our training and scoring goes, part by part
# The Python is that of $PEFT_PYTHON, or the first python3 that imports torch (Debian: apt-get install python3-torch).
set -euo pipefail
cd "$(dirname "$0")/../.."
./eng/setup.sh >&2
dotnet build eng/bench/Bench -c Release --nologo -v q -clp:NoSummary >&2
source=${PeftPackages:-$(sed -n 's/.*>\(local\|nuget\)<.*/\1/p' artifacts/package-source.props)}
bench=artifacts/$source/bin/Bench/release/Microsoft.ML.Peft.Bench
folder=artifacts/bench
if [ "${1:-}" = --sites ]; then exec "$bench" sites; fi

# The first python3 that imports modules (words between commas), or $PEFT_PYTHON.
python_with() {
    local candidate
    for candidate in ${PEFT_PYTHON:-python3 /usr/bin/python3 /usr/local/bin/python3}; do
        if "$candidate" -c "import $1" 2>/dev/null; then echo "$candidate"; return; fi
    done
    echo "No python3 here imports $1: apt-get install $2, or set PEFT_PYTHON." >&2
    return 1
}

# The OpenBLAS with OpenMP threads, for both sides: ours loads it itself, Python is told by the loader's path.
openblas_folder() { local found; found=$(compgen -G "/usr/lib/*-linux-gnu/openblas-openmp/libopenblas.so.0" | head -1 || true); echo "${found:+$(dirname "$found")}"; }

if [ "${1:-}" = --images ]; then
    python=$(python_with PIL,numpy "python3-pil python3-numpy")
    exec "$bench" images "$folder/images" "$python" eng/bench/pillow_loop.py "${@:2}"
fi

# A shell may tell OpenBLAS to take the processor for an older one, which makes PyTorch's products slower and ours not: fair is
# what the library chooses by itself. --keep-environment leaves it.
if [ "${1:-}" = --keep-environment ]; then shift; else unset OPENBLAS_CORETYPE; fi

if [ "${1:-}" = --image-training ]; then
    python=$(python_with torch python3-torch)
    exec "$bench" image-training "$folder/image-training" "$python" "$(openblas_folder)" eng/bench "${@:2}"
fi

# ---- rows: sst2 sentences where shared material lies beside the checkout, else WordNet's definitions ----
shared=${PEFT_SHARED:-../shared}
if [ -e "$shared/data/sst2/train.tsv.gz" ] && [ -e "$shared/weights/all-minilm-l6-v2/model.safetensors" ]; then
    material=("sst2 sentences" "$shared/data/sst2/train.tsv.gz" "$shared/data/sst2/test.tsv" "$shared/weights/all-minilm-l6-v2")
else
    mkdir -p "$folder"
    awk -v train="$folder/train.tsv" -v test="$folder/test.tsv" -f eng/demo-data.awk /usr/share/wordnet/data.noun
    material=("WordNet's definitions" "$folder/train.tsv" "$folder/test.tsv")
fi
"$bench" prepare "$folder" "${material[@]}"

if [ "${1:-}" = --profile ]; then
    exec "$bench" profile "$folder" "${@:2}"
fi

if [ "${1:-}" = --rows ]; then
    dotnet build src/Microsoft.ML.Peft.Cli -c Release --nologo -v q -clp:NoSummary >&2
    exec "$bench" rows "$folder" "artifacts/$source/bin/Microsoft.ML.Peft.Cli/release/peft.dll" eng/bench/RESULTS.rows.md "${@:2}"
fi

# ---- the Python with torch ----
python=$(python_with torch python3-torch)

exec "$bench" compare "$folder" "$python" "$(openblas_folder)" eng/bench "$@"
