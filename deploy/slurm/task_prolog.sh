#!/bin/sh
# TaskProlog of slurmd, run as the job's user: Slurm puts what is printed here into the environment of the task.
folder=${TRAINVITALS_RUNS:-/run/trainvitals-runs}/slurm-${SLURM_JOB_ID-}
if [ -z "${TRAINVITALS_RUN_DIR-}" ] && [ ! -L "$folder" ] && [ -O "$folder" ] && [ -w "$folder" ]; then
  echo "export TRAINVITALS_RUN_DIR=$folder"
fi
exit 0
