#!/bin/sh
# The command agent of a guest under test. It reads requests from a virtio-serial port, one a line:
#
#   ID BASE64        BASE64: a shell script
#
# runs each with `sh`, and answers `ID STATUS BASE64` with what the script wrote to standard output and error. When it
# starts it says `ready ID`, another ID each time. `agent.sh init` is for a kernel that starts this file as its first process: no systemd,
# only what the tests of the store need.
set -u
port_name=cfs.agent

init() {
    PATH=/usr/sbin:/usr/bin HOME=/root
    export PATH HOME
    mount -o remount,rw /
    for fs in proc:/proc sysfs:/sys devtmpfs:/dev tmpfs:/run tmpfs:/tmp; do
        mountpoint -q "${fs#*:}" || mount -t "${fs%%:*}" "${fs%%:*}" "${fs#*:}"
    done
    modprobe -a virtio_console virtio_net
    ip link set lo up
    for link in /sys/class/net/e*; do
        ip link set "${link##*/}" up
        ip address add 10.0.2.15/24 dev "${link##*/}"
    done
    ip route add default via 10.0.2.2
}

find_port() {
    _try=0
    while [ "$_try" -lt 120 ]; do
        for entry in /sys/class/virtio-ports/*/name; do
            if [ "$(cat "$entry" 2>/dev/null)" = "$port_name" ]; then
                entry=${entry%/name}
                port=/dev/${entry##*/}
                [ -c "$port" ] && return 0
            fi
        done
        _try=$((_try + 1))
        sleep 0.5
    done
    echo "agent: no virtio-serial port is called $port_name" >&2
    return 1
}

serve() {
    exec 3<>"$port"
    echo "ready $(cat /proc/sys/kernel/random/uuid)" >&3
    while read -r id script <&3; do
        [ -n "$id" ] || continue
        echo "$script" | base64 -d >/run/agent.script
        sh /run/agent.script >/run/agent.output 2>&1 3>&- </dev/null
        echo "$id $? $(base64 -w 0 /run/agent.output)" >&3
    done
}

[ "${1:-}" != init ] || init
find_port && serve
# The first process must not end.
while [ $$ = 1 ]; do sleep 1000; done
