# For recipes of several commands, which source it with their arguments: puts --device into `device`, which every
# command takes, and all other arguments into `others`.
#
# Other settings than the recipe's own make a trial: `trial` is then "-trial", and empty otherwise. A trial has a run
# folder of its own, and its results stay in there: those in recipes/results are of the recipe's own settings.
device=() others=() trial=
while (($#)); do
    case "$1" in
        --device) device=("$1" "${2:?--device: which}") && shift ;;
        --device=*) device=("$1") ;;
        --threads) others+=("$1" "${2:?--threads: how many}") && shift ;;
        --threads=* | --overwrite | --debug) others+=("$1") ;;
        *) others+=("$1") trial=-trial ;;
    esac
    shift
done
