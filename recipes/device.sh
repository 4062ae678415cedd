# For recipes of several commands, which source it with their arguments: puts --device into `device`, which every
# command takes, and all other arguments into `others`.
device=() others=()
while (($#)); do
    case "$1" in
        --device) device=("$1" "${2:?--device: which}") && shift ;;
        --device=*) device=("$1") ;;
        *) others+=("$1") ;;
    esac
    shift
done
