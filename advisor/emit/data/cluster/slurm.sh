# Submit it inside this folder, which all nodes have to see: sbatch job.sbatch, or sbatch job.sbatch --resume
# --time is in minutes, the high end of the estimate. A run that needs longer saves a checkpoint shortly before, and
# this job goes back into the queue to go on from it. RUN_PYTHON names the interpreter that has the packages.
set -euo pipefail

mkdir -p runs
exec >> runs/train.log 2>&1 # not --output, which would read % and \ in this folder's own name
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT="$((20000 + SLURM_JOB_ID % 10000))"
export MASTER_ADDR MASTER_PORT NNODES="$SLURM_JOB_NUM_NODES"

arguments=("$@")
if [[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]]; then # back from the queue
  arguments=()
  if compgen -G 'runs/checkpoints/checkpoint-*/trainer_state.json' > /dev/null; then
    arguments=(--resume)
  fi
fi

time_is_up=no
trap 'time_is_up=yes; touch runs/stop' USR1

srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" "${RUN_PYTHON:-python}" node.py "${arguments[@]}" &
step=$!
status=138
while [[ "$status" -eq 138 ]]; do # 128 + USR1: the signal ended the wait, not the step
  status=0
  wait "$step" || status=$?
done

if [[ "$time_is_up" == yes ]] && tail -n 1 runs/metrics.jsonl | grep -q '"status": "stopped"'; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
