#!/usr/bin/env bash
# Compares an RBM, a DBM, a VAE and an IWAE on one data set: one page with likelihoods, training times and samples.
#
#     recipes/comparison.sh digits     trains all four on the digits that come with the package: minutes
#     recipes/comparison.sh mnist      takes the runs of recipes/mnist.sh, dbm.py and iwae.sh, and makes those that are
#                                      missing: hours; measured on 2,000 of the test images
#
# Needs bm-fast on the path (. .venv/bin/activate after make) and for MNIST the data (BM_FAST_DATA or the network).
# The page goes to recipes/results/comparison-NAME. --device cuda computes all of it on a GPU; every other argument goes
# to bm-fast compare. One that changes a setting makes a trial, whose page goes to runs/comparison-NAME-trial.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

data="${1:?which data: digits or mnist}"
shift
source recipes/arguments.sh "$@"
settings=()

# Whether a run of recipes/dbm.py, and one of recipes/mnist.sh, is at its end: its figures come after the last checkpoint.
is_measured() {
    [[ -e $1/dbm.safetensors && recipes/results/${1#runs/}.json -nt $1/dbm.safetensors ]]
}
is_evaluated() {
    [[ -e $1/checkpoint.safetensors && $1/evaluation/evaluation.json -nt $1/checkpoint.safetensors ]]
}

case "$data" in
    digits)
        rbm=runs/rbm-digits dbm=runs/dbm-digits vae=runs/vae-digits iwae=runs/iwae-digits
        machine=(--hidden 100 --chains 500 --learning-rate 0.2 --epochs 400)
        networks=(--layers 50-50-10 --epochs 300 --batch-size 100 --learning-rate 0.003 "${device[@]}")
        [[ -e $rbm/filters.png ]] || bm-fast train digits "${machine[@]}" "${device[@]}" --output "$rbm"
        is_measured "$dbm" || python recipes/dbm.py digits "${device[@]}"
        [[ -e $vae/evaluation.json ]] || bm-fast vae digits "${networks[@]}" --estimator elbo --k 1 --output "$vae"
        [[ -e $iwae/evaluation.json ]] || bm-fast vae digits "${networks[@]}" --estimator dreg --k 50 --output "$iwae"
        ;;
    mnist)
        settings=(--rows 2000)
        rbm=runs/mnist-long dbm=runs/dbm-mnist vae=runs/iwae-two-hours-k1 iwae=runs/iwae-two-hours
        is_evaluated "$rbm" || rbm=runs/mnist-short
        is_evaluated "$rbm" || recipes/mnist.sh short "${device[@]}"
        is_measured "$dbm" || python recipes/dbm.py mnist "${device[@]}"
        [[ -e $vae/evaluation.json ]] || recipes/iwae.sh two-hours mnist 1 "${device[@]}"
        [[ -e $iwae/evaluation.json ]] || recipes/iwae.sh two-hours "${device[@]}"
        ;;
    *) echo "unknown data $data: digits or mnist" >&2 && exit 2 ;;
esac
page="recipes/results/comparison-$data"
[[ -n $trial ]] && page="runs/comparison-$data$trial"
bm-fast compare "$rbm" "$dbm" "$vae" "$iwae" --data "$data" --output "$page" --overwrite \
    "${settings[@]}" "${device[@]}" "${others[@]}"
