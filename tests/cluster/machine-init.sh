#!/usr/bin/env bash
# The first process of a machine: machine-init.sh NAME FOLDER, started by lib/machine.sh in new namespaces. It makes the
# machine's own view of the file system and then takes in the orphans of what is started there later.
set -euo pipefail
name=$1 folder=$2

# Before anything else: /proc is still that of the real machine, so this is the number to end this machine by.
read -r stat </proc/self/stat
echo "$stat" >"$folder/.init"
mv "$folder/.init" "$folder/init"

mount -t proc proc /proc
# What programs keep under fixed paths: sockets and pid files (gone when the machine ends, as on a real one), and disks.
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
mount --bind "$folder/var/lib" /var/lib
mount --bind "$folder/var/log" /var/log

# These settings of the kernel are the whole computer's. A kubelet wants to change them; let it find them as it wants.
mkdir -p "$folder/sysctl"
settings=(vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000)
for setting in "${settings[@]}"; do
    file="$folder/sysctl/$(tr / . <<<"${setting%=*}")"
    echo "${setting#*=}" >"$file"
    mount --bind "$file" "/proc/sys/${setting%=*}"
done
# A volume that is mounted into a running container must reach it. This ends at the machine: it is no copy of a mount
# outside.
mount --make-rshared /

hostname "$name"
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
touch "$folder/ready"

# bash takes in every process whose parent has ended. It sleeps in a child, because it would not hear of others' ends
# in a builtin.
while true; do
    sleep infinity &
    wait $! || true
done
