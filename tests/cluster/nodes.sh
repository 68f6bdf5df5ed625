#!/bin/bash
# Two machines on one: network namespaces with an address, a hostname and an sshd of their own, joined by a cable.
#
#   tests/cluster/nodes.sh up FOLDER                 node1 is 10.77.0.1, node2 is 10.77.0.2
#   tests/cluster/nodes.sh run FOLDER node1 COMMAND  as if typed there, in the present folder
#   tests/cluster/nodes.sh cut FOLDER                pull the cable; `join` puts it back
#   tests/cluster/nodes.sh kill FOLDER node2         kill -9 of all that runs there but the sshd
#   tests/cluster/nodes.sh down FOLDER
#
# Both see the same disk. Needs root, and the Debian packages iproute2, openssh-server and pdsh. What it writes is below
# FOLDER, /etc/netns and /run/sshd.
set -euo pipefail
PATH=$PATH:/usr/sbin
action=$1 folder=$2

# The namespace of a node. Its first process is the sshd.
namespace() { echo "ecgfm-$1"; }

start_node() {
    local node=$1 address=$2 space
    space=$(namespace "$node")
    mkdir -p "/etc/netns/$space"
    printf '127.0.0.1 localhost\n10.77.0.1 node1\n10.77.0.2 node2\n' > "/etc/netns/$space/hosts"
    ip -n "$space" addr add "$address/24" dev eth0
    ip -n "$space" link set eth0 up
    ip -n "$space" link set lo up
    cat > "$folder/$node.sshd" << EOF
ListenAddress $address
HostKey $folder/key
AuthorizedKeysFile $folder/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile $folder/$node.pid
EOF
    # A UTS namespace gives it a hostname of its own.
    ip netns exec "$space" unshare --uts sh -c \
        "hostname $node && exec /usr/sbin/sshd -f $folder/$node.sshd -E $folder/$node.log"
    for _ in $(seq 100); do
        [ -s "$folder/$node.pid" ] && return
        sleep 0.1
    done
    echo "the sshd of $node did not come up: $(cat "$folder/$node.log")" >&2
    exit 1
}

up() {
    if [ -e "/run/netns/$(namespace node1)" ]; then
        echo "there are nodes of an earlier call; if nobody uses them: tests/cluster/nodes.sh down $folder" >&2
        exit 1
    fi
    mkdir -p "$folder" /run/sshd
    ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
    cat > "$folder/ssh_config" << EOF
Host *
  IdentityFile $folder/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ServerAliveInterval 5
  ServerAliveCountMax 3
EOF
    ip netns add "$(namespace node1)"
    ip netns add "$(namespace node2)"
    ip link add eth0 netns "$(namespace node1)" type veth peer name eth0 netns "$(namespace node2)"
    start_node node1 10.77.0.1
    start_node node2 10.77.0.2
}

run() {
    # Into the namespaces of its sshd: network, hostname, and the mount that shows its own /etc/hosts.
    exec nsenter --target "$(cat "$folder/$1.pid")" --net --uts --mount --wd="$PWD" -- "${@:2}"
}

kill_node() {
    local sshd
    sshd=$(cat "$folder/$1.pid")
    for process in $(ip netns pids "$(namespace "$1")"); do
        if [ "$process" != "$sshd" ]; then kill -9 "$process" 2> /dev/null || true; fi
    done
}

down() {
    for node in node1 node2; do
        local space
        space=$(namespace "$node")
        for process in $(ip netns pids "$space" 2> /dev/null); do kill -9 "$process" 2> /dev/null || true; done
        ip netns del "$space" 2> /dev/null || true
        rm -rf "/etc/netns/$space"
    done
}

case $action in
    up) up ;;
    run) run "${@:3}" ;;
    cut) ip -n "$(namespace node2)" link set eth0 down ;;
    join) ip -n "$(namespace node2)" link set eth0 up ;;
    kill) kill_node "$3" ;;
    down) down ;;
    *) echo "up, run, cut, join, kill or down, not $action" >&2; exit 2 ;;
esac
