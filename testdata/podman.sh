#!/bin/sh
# Runs a command with Debian 13's podman, as on a machine of its own. Root only.
#
#   podman.sh make ROOT                    a Debian 13 with podman in the folder ROOT (minutes, once)
#   podman.sh run ROOT SHARED SCRIPT       SCRIPT with sh in it; the folder SHARED is there under its own name
#
# podman and crun want / to be a mount point, and cgroup version 2 alone on /sys/fs/cgroup: hence a mount namespace, and the
# root that is pivoted to. Nothing of it is left when the script has ended.

set -eu
case $1 in
make)
    root=$2
    [ ! -e "$root/made" ] || exit 0
    rm -rf "$root"
    mkdir -p "$root"
    cat /usr/share/keyrings/debian-archive-*.gpg >"$root.keyring"
    mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\?\(http[^ ]*\).*/\2/p; s/^URIs: *\([^ ]*\).*/\1/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v security | head -n 1)
    mmdebstrap --quiet --mode=root --variant=essential --keyring="$root.keyring" --format=directory \
        --include=podman,crun,mount,ca-certificates,netavark,uidmap \
        trixie "$root" ${mirror:+"$mirror"} >&2
    mkdir -p "$root/etc/containers" "$root/var/lib/containers"
    printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$root/etc/containers/policy.json"
    : >"$root/made"
    ;;
run)
    # shellcheck disable=SC2016 # it is for the shell inside
    exec unshare --mount --propagation private sh -c '
        set -eu
        root=$1 shared=$2 script=$3
        mount --bind "$root" "$root"
        mkdir -p "$root$shared" "$root/old"
        mount --bind "$shared" "$root$shared"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t sysfs sysfs "$root/sys"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
        mount -t tmpfs tmpfs "$root/run"
        mount -t tmpfs tmpfs "$root/var/lib/containers"
        cd "$root"
        pivot_root . old
        # What is still in there is not needed; without the tool it does no harm.
        umount -l /old 2>/dev/null || :
        exec env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin sh -euc "$script"
    ' sh "$2" "$3" "$4"
    ;;
esac
