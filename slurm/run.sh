# What the scripts beside this one do with a command, which they read by `. slurm/run.sh`: start it on every task, pass on
# the warning before the time is up, and go back into the queue when it has saved and is not done.

# Set these in the environment of sbatch where the defaults do not fit.
PYTHON=${PYTHON:-.venv/bin/python}
# The ranks meet at the first node. On a node with several networks, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name
# the one to use.
export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

if [ $# = 0 ] || [ ! -f "$1" ]; then
    echo "error: the first word after the script must be a command of this project, such as recipes/jepa_vit.py," \
        "seen from $PWD; got: ${1:-nothing}" >&2
    exit 2
fi
if ! command -v "$PYTHON" > /dev/null; then
    echo "error: there is no $PYTHON in $PWD: submit from the project's folder after 'make setup', or set PYTHON" >&2
    exit 2
fi
echo "$(date '+%F %T') job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_NTASKS ranks on" \
    "$SLURM_JOB_NODELIST, which meet at $MASTER_ADDR:$MASTER_PORT"

# srun starts every rank; it tells them who they are in Slurm's words, and torch wants its own.
# Signals are ignored while Python starts, which takes some seconds; from the first step on, the run answers them.
# --wait: when a rank has died, the others may be waiting for it, and are ended after so many seconds.
# --kill-on-bad-exit=0: a rank that has saved ends with a status that is not 0; that must not kill the others.
srun --wait=60 --kill-on-bad-exit=0 bash -c '
    trap "" USR1 TERM
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    exec "$0" -u "$@"' "$PYTHON" "$@" &
srun=$!

# The warning reaches this script alone, so it is passed on to the ranks: until they end, as they may be starting only.
# At a preemption Slurm sends SIGTERM to the ranks by itself, and on some sites to this script too.
pass_on() {
    trap "" USR1 TERM
    echo "$(date '+%F %T') told to stop; the run is asked to save"
    while kill -0 "$srun" 2> /dev/null; do
        scancel --quiet --signal=USR1 "$SLURM_JOB_ID.0"
        sleep 2
    done &
}
trap pass_on USR1 TERM

# A signal ends `wait` early, so it is called until srun is gone, and once more for its status.
wait "$srun"
while kill -0 "$srun" 2> /dev/null; do wait "$srun"; done
wait "$srun"
status=$?

# 85 is a run that has saved and has steps left. After scancel the job counts as ended already, and stays so.
if [ "$status" = 85 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    echo "$(date '+%F %T') saved; back into the queue (Slurm waits about two minutes before it starts a job again)"
    scontrol requeue "$SLURM_JOB_ID" && exit
fi
echo "$(date '+%F %T') ended with status $status"
exit "$status"
