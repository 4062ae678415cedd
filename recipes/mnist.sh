#!/usr/bin/env bash
# Trains and measures an RBM on MNIST; docs/results.md says what each recipe reaches.
#
#     recipes/mnist.sh short       500 hidden units, minutes
#     recipes/mnist.sh long        500 hidden units, longer
#     recipes/mnist.sh hidden20    20 hidden units, whose likelihood is exact
#
# Needs bm-fast on the path (. .venv/bin/activate after make) and MNIST (BM_FAST_DATA or the network).
# Runs go to runs/NAME, their results to recipes/results/NAME.*.json. --device cuda computes all of it on a GPU; every
# other argument goes to bm-fast train. One that changes a setting makes a trial: runs/NAME-trial, results included.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

recipe="${1:?which recipe: short, long or hidden20}"
shift
source recipes/arguments.sh "$@"
case "$recipe" in
    short) settings=(--hidden 500 --epochs 20) ;;
    long) settings=(--hidden 500 --epochs 120) ;;
    hidden20) settings=(--hidden 20 --epochs 60) ;;
    *) echo "unknown recipe $recipe: short, long or hidden20" >&2 && exit 2 ;;
esac

run="runs/mnist-$recipe$trial"
again=()
for other in "${others[@]}"; do
    if [ "$other" = --overwrite ]; then again=(--overwrite); fi
done
results="recipes/results/mnist-$recipe"
[[ -n $trial ]] && results="$run/record"

# An older result stays unless there is a new one.
record() {
    local file="$1" found
    shift
    found=$("$@") || { local code=$? && echo "$found" && exit "$code"; }
    mkdir -p "$(dirname "$file")"
    echo "$found" >"$file"
}

record "$results.train.json" bm-fast train mnist "${settings[@]}" --chains 500 --learning-rate 0.1 \
    --output "$run" --json "${device[@]}" "${others[@]}"
record "$results.evaluate.json" bm-fast evaluate "$run" --output "$run/evaluation" --json "${device[@]}" "${again[@]}"
if [ "$recipe" != hidden20 ]; then
    record "$results.bracket.json" bm-fast evaluate "$run" --method bracket --runs 64 --output "$run/bracket" --json \
        "${device[@]}" "${again[@]}"
fi
bm-fast sample "$run" --output "$run/samples" "${device[@]}" "${again[@]}"
