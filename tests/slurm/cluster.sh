#!/usr/bin/env bash
# A real SLURM on this machine, for the tests: two nodes, each a slurmd with fake GPUs, on loopback.
# Debian's packages, run as root; everything it writes is in one folder.
#
#   cluster.sh install        the packages, if they are missing
#   cluster.sh start          write a configuration, start the daemons, wait until the nodes are idle
#   cluster.sh clear          cancel all jobs, wait until the nodes are idle
#   cluster.sh stop           cancel all jobs, end every daemon by its pid
#   cluster.sh restart-controller
#   cluster.sh lose NODE      kill -9 the slurmd of a node; its jobs live on unseen
#   cluster.sh crash NODE     kill -9 the slurmd of a node and all that ran there
#   cluster.sh recover NODE   start the slurmd of a node again
#
# SLURM_LAB is the folder; SLURM_CONF=$SLURM_LAB/slurm.conf is all that sbatch, squeue, ... need.
set -euo pipefail

LAB=${SLURM_LAB:?set it to a folder for the configuration, logs and state}
NODES=(n1 n2)
PORT=${SLURM_PORT:-26810}
export SLURM_CONF=$LAB/slurm.conf

install_packages() {
    local wanted=(slurmctld slurmd slurm-client munge)
    dpkg -s "${wanted[@]}" >/dev/null 2>&1 && return
    # what is installed must not start a daemon of its own
    [ -e /usr/sbin/policy-rc.d ] || install -m 755 /dev/stdin /usr/sbin/policy-rc.d <<<$'#!/bin/sh\nexit 101'
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${wanted[@]}" >/dev/null
}

configure() {
    local node gpu host number=0
    host=$(hostname -s)
    mkdir -p "$LAB"/{gpus,log,munge,pid,spool,state}
    chmod 755 "$LAB" "$LAB/munge"
    if [ ! -s "$LAB/munge/key" ]; then
        (umask 077 && head -c 256 /dev/urandom >"$LAB/munge/key")
    fi
    cat >"$LAB/slurm.conf" <<CONF
ClusterName=harness
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
# listen on loopback only
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
# a credential lives 5 s: else a requeued job waits two minutes for its old one to expire
AuthInfo=socket=$LAB/munge/socket,cred_expire=5
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/pid/slurmctld
SlurmdPidFile=$LAB/pid/%n
SlurmctldLogFile=$LAB/log/slurmctld
SlurmdLogFile=$LAB/log/%n
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_min_interval=0
# two nodes may claim more cores than the machine has
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
ReturnToService=2
MinJobAge=3600
MaxArraySize=${SLURM_MAX_ARRAY:-1001}
JobRequeue=1
GresTypes=gpu
CONF
    echo "AutoDetect=off" >"$LAB/gres.conf"
    for node in "${NODES[@]}"; do
        number=$((number + 1))
        mkdir -p "$LAB/spool/$node"
        for gpu in 0 1; do  # slurmd wants a device; nobody opens it
            [ -c "$LAB/gpus/$node-$gpu" ] || mknod -m 666 "$LAB/gpus/$node-$gpu" c 1 3
        done
        echo "NodeName=$node Name=gpu File=$LAB/gpus/$node-[0-1]" >>"$LAB/gres.conf"
        cat >>"$LAB/slurm.conf" <<CONF
NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((PORT + number)) CPUs=4 RealMemory=6000 Gres=gpu:2
CONF
    done
    cat >>"$LAB/slurm.conf" <<CONF
PartitionName=work Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
}

# Whether a process lives; one that ended and was not waited for does not.
lives() {
    local state
    state=$(ps -o stat= -p "$1" 2>/dev/null) && [ "${state:0:1}" != Z ]
}

# The pid in a file, if that process lives.
pid_in() {
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && lives "$pid" && echo "$pid"
}

# Wait up to so many seconds for a command to succeed.
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "waited in vain for: $*" >&2; return 1; }
        sleep 0.2
    done
}

idle_nodes() {
    [ "$(sinfo --noheader --Node --partition work --format %T | grep -c '^idle$')" = ${#NODES[@]} ]
}

start_node() {
    pid_in "$LAB/pid/$1" >/dev/null && return
    slurmd -N "$1"
    await 20 pid_in "$LAB/pid/$1"  # it writes the file a moment after the command is back
}

start() {
    configure
    pid_in "$LAB/munge/pid" >/dev/null || munged --key-file="$LAB/munge/key" --num-threads=2 \
        --socket="$LAB/munge/socket" --pid-file="$LAB/munge/pid" --log-file="$LAB/munge/log" \
        --seed-file="$LAB/munge/seed"
    pid_in "$LAB/pid/slurmctld" >/dev/null || slurmctld
    local node
    for node in "${NODES[@]}"; do start_node "$node"; done
    await 60 idle_nodes
}

# The processes that watch over the jobs of a node.
watchers() {
    local process
    for process in /proc/[0-9]*; do
        [[ $(readlink "$process/exe" 2>/dev/null) == */slurmstepd* ]] || continue
        tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF" || continue
        ls -l "$process/fd" 2>/dev/null | grep -q "$LAB/log/$1\$" && echo "${process#/proc/}"
    done
}

# A process and everything below it, the lowest first.
with_children() {
    local child
    for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do with_children "$child"; done
    echo "$1"
}

kill_tree() {
    local pid
    for pid in "$@"; do kill -9 $(with_children "$pid") 2>/dev/null || true; done
}

end_daemon() {
    local pid
    pid=$(pid_in "$1") || return 0
    kill "$pid"
    await 20 bash -c "! ps -o stat= -p $pid | grep -qv Z" || kill -9 "$pid"
}

no_jobs() {
    [ -z "$(squeue --noheader)" ]
}

clear_up() {
    local node
    for node in "${NODES[@]}"; do start_node "$node"; done
    scancel --user root
    await 60 no_jobs
    await 60 idle_nodes
}

stop() {
    local node
    if pid_in "$LAB/pid/slurmctld" >/dev/null; then
        timeout 20 scancel --user root || true
        await 20 no_jobs || true
    fi
    for node in "${NODES[@]}"; do
        end_daemon "$LAB/pid/$node"
        kill_tree $(watchers "$node")
    done
    end_daemon "$LAB/pid/slurmctld"
    end_daemon "$LAB/munge/pid"
}

case ${1:-} in
    install) install_packages ;;
    start) start ;;
    clear) clear_up ;;
    stop) stop ;;
    restart-controller)
        end_daemon "$LAB/pid/slurmctld"
        slurmctld
        await 20 pid_in "$LAB/pid/slurmctld"
        await 20 squeue
        ;;
    lose) kill -9 "$(pid_in "$LAB/pid/$2")" ;;
    crash)
        found=$(watchers "$2")
        kill -9 "$(pid_in "$LAB/pid/$2")"
        kill_tree $found
        ;;
    recover) start_node "$2" ;;
    *) sed -n '2,15p' "$0"; exit 2 ;;
esac
