#!/usr/bin/env bash
# Trains and measures autoencoders as Burda, Grosse and Salakhutdinov (2016); docs/vae.md says what each recipe is for.
#
#     recipes/iwae.sh short                    one stochastic layer, 10 epochs
#     recipes/iwae.sh two-hours                one stochastic layer, 60 epochs: within two hours on two cores of a CPU
#     recipes/iwae.sh full --device cuda       one stochastic layer, the 3,280 epochs of the paper, on a GPU
#     recipes/iwae.sh short-2                  two stochastic layers; two-hours-2 and full-2 likewise
#     recipes/iwae.sh short omniglot           another data set: mnist (default), omniglot or omniglot-chardata
#     recipes/iwae.sh short mnist 5            k = 1 (the variational autoencoder), 5 or 50 (default)
#     recipes/iwae.sh --resume runs/NAME       goes on after Ctrl-C, or measures a finished run again
#
# Needs bm-fast on the path (. .venv/bin/activate after make) and the data (BM_FAST_DATA, or the network).
# Runs go to runs/NAME, their results to recipes/results/NAME.json. Every other argument goes to bm-fast vae. One that
# changes a setting makes a trial: it lies in runs/NAME-trial, its results too; with --resume they stay in the run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# An older result stays unless there is a new one.
record() {
    local file="$1" result
    shift
    result=$(bm-fast vae "$@" --json) || { local code=$? && echo "$result" && exit "$code"; }
    mkdir -p "$(dirname "$file")"
    echo "$result" >"$file"
}

recipe="${1:?which recipe: short, two-hours, full, or one of these with -2; or --resume and the folder of a run}"
if [[ $recipe == --resume ]]; then
    run="${2:?--resume: which run, as in runs/iwae-short}"
    shift 2
    source recipes/arguments.sh "$@"
    file="recipes/results/$(basename "$run").json"
    [[ -n $trial || $run == *-trial ]] && file="$run/record.json"
    record "$file" --resume "$run" "${device[@]}" "${others[@]}"
    exit
fi
data=mnist
k=50
shift
[[ $# -gt 0 && $1 != -* ]] && data=$1 && shift
[[ $# -gt 0 && $1 != -* ]] && k=$1 && shift

case "$recipe" in
    short | short-2) settings=(--epochs 10) ;;
    two-hours | two-hours-2) settings=(--epochs 60 --mixed-precision) ;;
    full | full-2) settings=(--schedule burda --epochs 3280) ;;
    *) echo "unknown recipe $recipe: short, two-hours, full, or one of these with -2" >&2 && exit 2 ;;
esac
case "$recipe" in
    *-2) settings+=(--layers 200-200-100 100-100-50) ;;
    *) settings+=(--layers 200-200-50) ;;
esac
case "$k" in
    1) settings+=(--estimator elbo --k 1) ;;
    5 | 50) settings+=(--estimator dreg --k "$k") ;;
    *) echo "k: expected 1, 5 or 50, got $k" >&2 && exit 2 ;;
esac
case "$data" in
    mnist) settings+=(--hold-out 400) ;; # the other sets come with a validation split of their own
    omniglot | omniglot-chardata) ;;
    *) echo "unknown data $data: mnist, omniglot or omniglot-chardata" >&2 && exit 2 ;;
esac

name="iwae-$recipe"
[[ $data != mnist ]] && name+="-$data"
[[ $k != 50 ]] && name+="-k$k"
source recipes/arguments.sh "$@"
file="recipes/results/$name.json"
[[ -n $trial ]] && file="runs/$name$trial/record.json"
record "$file" "$data" "${settings[@]}" --output "runs/$name$trial" "${device[@]}" "${others[@]}"
