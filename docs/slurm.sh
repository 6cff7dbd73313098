#!/bin/bash
# One run over a Slurm array: each task does its shard of what works prompt by prompt, a last job selects and releases.
#
#   job=$(sbatch --parsable docs/slurm.sh RECIPE [KEY=VALUE …])
#   sbatch --array=0 --dependency=afterok:$job --export=ALL,LAST=1 docs/slurm.sh RECIPE [KEY=VALUE …]
#
# Submit from a directory that all nodes see: the run is runs/<recipe name> below it.
#SBATCH --job-name=tempered
#SBATCH --array=0-6
#SBATCH --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=INT@120
# Two minutes before the time is up Slurm sends SIGINT: what is in flight is waited for and stored.

recipe=("$@")

if [ -n "${LAST:-}" ]; then
    exec builder run "${recipe[@]}"
fi

# `srun` gets the signal and passes it on; a shell alone would end before its child. Without Slurm the step runs as it is.
launch=()
if command -v srun > /dev/null; then launch=(srun --ntasks=1); fi

"${launch[@]}" builder run "${recipe[@]}" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
code=$?
# 130: drained at the time limit. Put back, the task goes on where it was; the last job waits for that.
if [ "$code" -eq 130 ] && command -v scontrol > /dev/null; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
