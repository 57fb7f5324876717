#!/usr/bin/env bash
# Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
# The main job from nothing: installs what is missing, builds, fine-tunes the embedded backbone by LoRA on WordNet's
# definitions (which kind of thing does a definition define?), saves model.zip, and classifies sentences in a second process.
#   ./eng/demo.sh [FOLDER]        FOLDER for data, model and reports; default artifacts/demo
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-artifacts/demo}
mkdir -p "$folder"
start=$(date +%s)
stage() { printf '\n== %s (%s s since the start)\n' "$*" "$(($(date +%s) - start))"; }

stage "setup"
./eng/setup.sh
stage "build"
dotnet build src/Microsoft.ML.Peft.Cli -c Release --nologo -v q -clp:NoSummary

stage "data: WordNet's noun definitions, 20 kinds of things, 200 of each for training and 60 for testing"
awk -v train="$folder/train.tsv" -v test="$folder/test.tsv" -f eng/demo-data.awk /usr/share/wordnet/data.noun
wc -l "$folder/train.tsv" "$folder/test.tsv"

common=(train text-classification --data "$folder/train.tsv" --text definition --label kind --eval "$folder/test.tsv"
    --pooling Mean --max-tokens 64 --seed 1)
stage "frozen backbone with a linear head"
./eng/peft "${common[@]}" --method head-only --learning-rate 1e-2 --epochs 20 --out "$folder/head.zip" --report "$folder/head.json"
stage "LoRA, rank 8 on query and value"
./eng/peft "${common[@]}" --method lora --set rank=8 --set alpha=16 --set dropout=0.05 --learning-rate 1e-3 --epochs 2 \
    --out "$folder/model.zip" --report "$folder/lora.json"

stage "results on the test part"
figure() { sed -n "s/^ *\"$2\": *\([-0-9.eE+]*\),*\$/\1/p" "$1"; }
rows=$(($(wc -l <"$folder/test.tsv") - 1))
classes=$(tail -n +2 "$folder/test.tsv" | cut -f2 | sort -u | wc -l)
most=$(tail -n +2 "$folder/test.tsv" | cut -f2 | sort | uniq -c | sort -rn | awk 'NR == 1 {print $1}')
{
    printf '%-34s %9s %9s %9s %12s\n' "" accuracy "macro F1" seconds "file (MiB)"
    awk -v m="$most" -v n="$rows" -v c="$classes" 'BEGIN {p = m / n; printf "%-34s %9.3f %9.3f %9s %12s\n", "always the commonest kind", p, 2 * p / (1 + p) / c, "-", "-"}'
    for run in head lora; do
        file=$folder/model.zip name="LoRA, rank 8"
        [ "$run" = lora ] || { file=$folder/head.zip name="frozen backbone, linear head"; }
        awk -v name="$name" -v a="$(figure "$folder/$run.json" accuracy)" -v f="$(figure "$folder/$run.json" macroF1)" \
            -v s="$(figure "$folder/$run.json" trainSeconds)" -v b="$(stat -c %s "$file")" \
            'BEGIN {printf "%-34s %9.3f %9.3f %9.1f %12.1f\n", name, a, f, s, b / 1048576}'
    done
} | tee "$folder/table.txt"

stage "a second process loads $folder/model.zip"
if [ -t 0 ]; then
    echo "Type definitions, one a line; Ctrl+D ends."
    ./eng/peft predict "$folder/model.zip" --data - --out -
else
    sentences=$(cat)
    [ -n "$sentences" ] || sentences=$'a large cat with black stripes living in Asian forests\na tool with a heavy head for driving nails\nthe feeling of great happiness\na person who repairs shoes\na small red berry eaten in jam\nthe capital and largest city of a country'
    printf '%s\n' "$sentences" | ./eng/peft predict "$folder/model.zip" --data - --out -
fi
stage "done"
