#!/usr/bin/env bash
# Trains and measures an importance-weighted autoencoder on MNIST; docs/vae.md says what each recipe is for.
#
#     recipes/iwae.sh short        one stochastic layer, 10 epochs
#     recipes/iwae.sh two-hours    one stochastic layer, 110 epochs: two hours on two cores of a CPU
#     recipes/iwae.sh full         the 3,280 epochs of Burda, Grosse and Salakhutdinov (2016), one stochastic layer
#     recipes/iwae.sh full-2       the same, two stochastic layers
#
# Needs bm-fast on the path (. .venv/bin/activate after make) and MNIST (BM_FAST_DATA or the network).
# Runs go to runs/NAME, their results to recipes/results/NAME.json. Every other argument goes to bm-fast vae, so that
# "--estimator iwae --k 5" or "--estimator elbo --k 1" give the other rows of the table in that paper.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

recipe="${1:?which recipe: short, two-hours, full or full-2}"
shift
one=(--layers 200-200-50)
two=(--layers 200-200-100 100-100-50)
case "$recipe" in
    short) settings=("${one[@]}" --epochs 10) ;;
    two-hours) settings=("${one[@]}" --epochs 110) ;;
    full) settings=("${one[@]}" --schedule burda --epochs 3280) ;;
    full-2) settings=("${two[@]}" --schedule burda --epochs 3280) ;;
    *) echo "unknown recipe $recipe: short, two-hours, full or full-2" >&2 && exit 2 ;;
esac

run="runs/iwae-$recipe"
mkdir -p recipes/results
bm-fast vae mnist "${settings[@]}" --estimator dreg --k 50 --hold-out 400 --output "$run" --json "$@" \
    >"recipes/results/iwae-$recipe.json"
