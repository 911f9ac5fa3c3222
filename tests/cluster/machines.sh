#!/usr/bin/env bash
# machines.sh FOLDER IP...: machines that are reached by ssh, made of the kernel's namespaces on this one. Runs in network,
# process and mount namespaces of its own (tests/cluster/machines.py), which is the machine that the others are reached
# from. Each machine has an address, processes, a home (/srv), /tmp, /run and /dev/shm of its own; FOLDER is /mnt on all.
set -euo pipefail

own_folders() { # own_folders NAME: from now on this shell's mounts are those of the machine NAME.
    mkdir -p "/mnt/$1/home" "/mnt/$1/tmp"
    mount --bind "/mnt/$1/home" /srv
    mount --bind /mnt/passwd /etc/passwd
    mount --bind "/mnt/$1/tmp" /tmp
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /dev/shm
}

if [ "$1" = machine ]; then
    own_folders "$2"
    hostname "machine-${2##*.}"
    mkdir /run/sshd
    exec /usr/sbin/sshd -D -e -f /mnt/sshd_config -o "ListenAddress=$2"
fi

mount --bind "$1" /mnt
shift
sed 's,:/root:,:/srv:,' /etc/passwd >/mnt/passwd  # not /root: the Python of the environment may lie there
own_folders launcher
ip link set lo up
ip link add switch type bridge
ip address add 192.168.0.1/24 dev switch
ip link set switch up
for ip in "$@"; do
    name=m${ip##*.}
    ip netns add "$name"
    ip link add "$name" type veth peer name eth0 netns "$name"
    ip link set "$name" master switch up
    ip -n "$name" link set lo up
    ip -n "$name" address add "$ip/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" route add default via 192.168.0.1
    ip netns exec "$name" unshare --mount --uts --pid --fork --mount-proc --kill-child \
        bash "${BASH_SOURCE[0]}" machine "$ip" 2>"/mnt/$ip.sshd.log" &
done
touch /mnt/ready
wait
