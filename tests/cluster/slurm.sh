#!/bin/bash
# A Slurm of two nodes on this machine, without systemd and cgroups: munged, slurmctld and two slurmd.
#
#   tests/cluster/slurm.sh up FOLDER CONTROL_PORT NODE1_PORT NODE2_PORT
#   SLURM_CONF=FOLDER/slurm.conf sinfo
#   tests/cluster/slurm.sh down FOLDER
#
# Needs root, and the Debian packages slurm-wlm and munge. All it writes is below FOLDER.
set -euo pipefail
PATH=$PATH:/usr/sbin
action=$1 folder=$2

configure() {
    local host user
    host=$(hostname -s)
    user=$(id -un)
    cat > "$folder/slurm.conf" << EOF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
# Neither cgroups nor an accounting database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
# As many processors and as much memory as a script asks for, whatever there is.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=30
# The partition "urgent" preempts the default one.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$2 CPUs=8 RealMemory=64000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$3 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=normal Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF State=UP
EOF
}

up() {
    mkdir -p "$folder"/{state,munge,spool/n1,spool/n2}
    chmod 755 "$folder" "$folder/munge"
    (umask 377 && head -c 1024 /dev/urandom > "$folder/munge/key")
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge.pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2> "$folder/munged.err"
    configure "$@"
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -f "$SLURM_CONF" -c
    for node in n1 n2; do
        slurmd -f "$SLURM_CONF" -N "$node" -c
    done
    for _ in $(seq 300); do
        [ "$(sinfo --noheader --Node --states=idle --partition=normal 2> /dev/null | wc -l)" = 2 ] && return
        sleep 0.1
    done
    echo "the two nodes did not come up; see $folder/*.log" >&2
    exit 1
}

down() {
    for name in slurmd-n1 slurmd-n2 slurmctld munge; do
        if [ -f "$folder/$name.pid" ]; then
            pid=$(cat "$folder/$name.pid")
            # Waited for, since it still writes into the folder.
            for _ in $(seq 100); do
                kill "$pid" 2> /dev/null || break
                sleep 0.1
            done
        fi
    done
}

case $action in
    up) up "${@:3}" ;;
    down) down ;;
    *) echo "up or down, not $action" >&2; exit 2 ;;
esac
