#!/bin/sh
# Epilog of slurmd, run as root on each node of a job after its last step: notes that the job's run directory may go.
# A later prolog removes it, after an hour, so that the last values of a run that failed are still scraped.
# It never fails: Slurm would take the node out of service for that. What went wrong goes to stderr.
set -u
umask 022

runs=${TRAINVITALS_RUNS:-/run/trainvitals-runs}
ended=$runs-ended

say() { echo "trainvitals epilog: $*" >&2; }

case ${SLURM_JOB_ID-} in
  '' | *[!0-9]*) say "SLURM_JOB_ID is not set: is this the Epilog of slurmd?" ;;
  *)
    if [ -L "$ended" ] || [ "$(stat -c %u -- "$ended" 2>/dev/null)" != 0 ]; then
      say "$ended has to be a folder that belongs to root: did the prolog run?"
    else
      touch -- "$ended/$SLURM_JOB_ID"
    fi
    ;;
esac
exit 0
