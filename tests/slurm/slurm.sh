#!/usr/bin/env bash
# A real Slurm of one node on loopback, for tests: slurm.sh start|stop FOLDER. Needs root and Debian's slurm-wlm and munge.
# No accounting and no cgroups: time limits are enforced, memory limits are not. The node has a GPU that is an empty file.
set -euo pipefail
action=$1 base=$2 host=$(hostname -s)

start() {
    mkdir -p "$base"/{ctld,slurmd,log,run,dev} /etc/slurm
    : >"$base/dev/gpu0"
    local cpus=8 memory=64000 # more than there may be: what the jobs ask for is tested, not their speed
    cat >/etc/slurm/slurm.conf <<CONF
ClusterName=scap
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$base/ctld
SlurmdSpoolDir=$base/slurmd
SlurmctldPidFile=$base/run/slurmctld.pid
SlurmdPidFile=$base/run/slurmd.pid
SlurmctldLogFile=$base/log/slurmctld.log
SlurmdLogFile=$base/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$base/log/completed.txt
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=30
KillWait=2
OverTimeLimit=0
EnforcePartLimits=ALL
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus Sockets=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=24:00:00 State=UP
CONF
    echo "NodeName=$host Name=gpu File=$base/dev/gpu0" >/etc/slurm/gres.conf
    install -d -o munge -g munge -m 0755 /run/munge
    if [ ! -s /etc/munge/munge.key ]; then
        mungekey -c
        chown munge:munge /etc/munge/munge.key
    fi
    munge --no-input >/dev/null 2>&1 || setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged
    slurmctld
    slurmd -N "$host"
    local end=$((SECONDS + 30)) # a client waits 9 s for a controller that does not answer
    while [ $SECONDS -lt $end ]; do
        if sinfo --noheader --format=%T 2>/dev/null | grep --quiet --line-regexp idle; then return; fi
        sleep 0.5
    done
    sinfo -N -l >&2 || true
    tail -n 20 "$base"/log/*.log >&2
    exit 1
}

stop() {
    scancel --user=root 2>/dev/null || true
    for daemon in slurmd slurmctld; do
        if [ -e "$base/run/$daemon.pid" ]; then kill "$(cat "$base/run/$daemon.pid")" 2>/dev/null || true; fi
    done
    if [ -e /run/munge/munged.pid ]; then kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true; fi
    rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf # else the clients go on to wait for the controller
}

"$action"
