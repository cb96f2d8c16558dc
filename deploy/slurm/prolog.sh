#!/bin/sh
# Prolog of slurmd, run as root on each node of a job before its first step: makes the job's run directory.
# It never fails: Slurm would take the node out of service for that. What went wrong goes to stderr.
set -u
umask 022

runs=${TRAINVITALS_RUNS:-/run/trainvitals-runs}
ended=$runs-ended # a file for each job that has ended
keep_minutes=60   # the exporter serves the last values of an ended run for 15

say() { echo "trainvitals prolog: $*" >&2; }
is_number() { case $1 in '' | *[!0-9]*) return 1 ;; esac }
is_of_root() { [ -d "$1" ] && [ ! -L "$1" ] && [ "$(stat -c %u -- "$1")" = 0 ]; }

remove_old() {
  find "$ended" -mindepth 1 -maxdepth 1 -type f -name '[0-9]*' -mmin "+$keep_minutes" |
    while read -r marker; do
      # rm follows no link, whatever the job left in its folder.
      rm -rf --one-file-system -- "$runs/slurm-${marker##*/}" && rm -f -- "$marker"
    done
}

make() {
  folder=$runs/slurm-$SLURM_JOB_ID
  rm -f -- "$ended/$SLURM_JOB_ID" # of a job that was put back into the queue
  # mkdir makes a folder or fails: a link that somebody put there first is not followed.
  if mkdir -m 0700 -- "$folder" 2>/dev/null; then
    chown -h -- "$SLURM_JOB_UID" "$folder" || say "cannot give $folder to user $SLURM_JOB_UID"
  elif [ -L "$folder" ] || [ "$(stat -c %F:%u:%a -- "$folder")" != "directory:$SLURM_JOB_UID:700" ]; then
    say "$folder was made by somebody else; this job's runs go to the default run directory"
  fi
}

if ! is_number "${SLURM_JOB_ID-}" || ! is_number "${SLURM_JOB_UID-}"; then
  say "SLURM_JOB_ID or SLURM_JOB_UID is not set: is this the Prolog of slurmd?"
elif ! mkdir -p -- "$runs" "$ended" || ! is_of_root "$runs" || ! is_of_root "$ended"; then
  say "$runs and $ended have to be folders that belong to root"
else
  remove_old
  make
fi
exit 0
