#!/usr/bin/env bash
# The whole system as one Slurm job, from the repository's root, which all nodes share, as they do the environment and the
# paths that you name (docs/cluster.md):
#   make setup DEVICE=gpu
#   sbatch deploy/slurm.sh +exp=mimic_rl data.root=DIR reward.weights=DIR
#   ROLES="learner learner rollout reward" sbatch --nodes=4 deploy/slurm.sh +exp=mimic_rl learner.num_ranks=8 ...
# ROLES has a word for each node, in their order: its role, or several joined by "+". A node has as much of its role's resource
# as GPUs. The first node also has the head and the driver.
#SBATCH --job-name=lm-rrg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --signal=B:TERM@180
# Three minutes before its time is over the run saves and ends; `sbatch deploy/slurm.sh resume=RUN_DIR` goes on.
set -euo pipefail

die() { printf 'slurm.sh: %s\n' "$*" >&2; exit 1; }

read -ra roles <<<"${ROLES:-learner rollout+reward}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#roles[@]}" = "${#nodes[@]}" ] || die "ROLES has ${#roles[@]} words (${roles[*]}), the job ${#nodes[@]} nodes"
gpus=${SLURM_GPUS_ON_NODE:?slurm.sh: ask for GPUs: sbatch --gpus-per-node=N}

resources() { # resources WORD: what Ray is told of the node, as JSON.
    local role listed=
    for role in ${1//+/ }; do
        case $role in
            learner | rollout | reward) listed+="${listed:+, }\"$role\": $gpus" ;;
            *) die "ROLES: $role is none of learner, rollout and reward" ;;
        esac
    done
    printf '{%s}' "$listed"
}

on_node() { # on_node INDEX ARGUMENT...: `ray start ARGUMENT...` on that node, in the background, until it is killed.
    local node=${nodes[$1]} has
    has=$(resources "${roles[$1]}")
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start "$@" --block --disable-usage-stats \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --resources="$has" &
}

# shellcheck disable=SC2317 # it is called by the trap
end() { # Ray's processes end with the steps of the job.
    local running
    mapfile -t running < <(jobs -p)
    kill "${running[@]}" 2>/dev/null || true
    wait || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}

cd "$SLURM_SUBMIT_DIR"
ulimit -S -n "$(ulimit -H -n)" # srun hands it on
export PATH="$PWD/.venv/bin:$PATH" PYTHONPATH="$PWD" LMRRG_CACHE="${LMRRG_CACHE:-$PWD/.cache}"
# Nobody else may use this Ray: a token of the job's own, which its user alone can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
trap end EXIT
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")

head="$(hostname --ip-address | cut -d' ' -f1):$((20000 + SLURM_JOB_ID % 10000))"
on_node 0 --head --node-ip-address="${head%:*}" --port="${head#*:}" --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
    --dashboard-host=127.0.0.1
for _ in {1..60}; do
    ray health-check --address "$head" 2>/dev/null && break
    sleep 2
done
for ((index = 1; index < ${#nodes[@]}; index++)); do
    on_node "$index" --address="$head"
done

# The run waits for the nodes by itself. No `cluster=ray`, which is not for resume=RUN_DIR.
python -m learner.main cluster.address="$head" cluster.autoscaled=true cluster.start_timeout_s=1800 \
    cluster.learner_nodes=own cluster.rollout_nodes=own cluster.reward_nodes=own "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
status=0
wait "$driver" || status=$?
if kill -0 "$driver" 2>/dev/null; then # the signal has ended the wait, not the run
    status=0
    wait "$driver" || status=$?
fi
exit "$status"
