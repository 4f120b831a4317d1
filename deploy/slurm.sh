#!/usr/bin/env bash
#SBATCH --job-name=pruning-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# A study on SLURM: one Ray cluster over the job's machines, one search on it. Before its time is over the job queues
# anew; the same command then goes on from the storage. A machine that fails brings it back into the queue as well.
#
#   sbatch deploy/slurm.sh SPACE.toml STORAGE [options of `orchestrator search`]
#
# The current folder must be one that every machine sees, and so must STORAGE, unless it is an s3:// URI.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: sbatch $0 SPACE.toml STORAGE [options of orchestrator search]" >&2
  exit 2
fi
space=$1 storage=$2
shift 2
if [ -f .venv/bin/activate ]; then
  # shellcheck disable=SC1091
  . .venv/bin/activate
fi

# The batch script runs on the first machine, which becomes the head. Its first address must be one that the others
# reach; else set HEAD_IP. A port of the job's own keeps two jobs of one user apart.
address=${HEAD_IP:-$(hostname -I | awk '{print $1}')}:$((20000 + SLURM_JOB_ID % 10000))
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds; machines of a large job do not start at once
if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] && [ ! -s ~/.ray/auth_token ]; then
  (umask 077 && ray get-auth-token --generate > /dev/null)
fi

requeue() {
  trap - USR1
  echo "time is nearly over: the job queues anew" >&2
  scontrol requeue "$SLURM_JOB_ID" # ends this one; whatever was unfinished is found so by the next
}
trap requeue USR1

srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" -- \
  orchestrator search "$space" --storage "$storage" --address "$address" "$@" &
step=$!
# A signal ends `wait` before the step has ended; the second one is for that.
wait "$step" || wait "$step"
