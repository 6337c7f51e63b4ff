#!/bin/sh
# `make bench`: builds the program as it ships and the peer cfsctl, makes the image to measure with, and runs
# testdata/bench.py in a mount namespace of its own, where the peers' Debian 13 root is set up. Root only.
#
#   BENCH_RUNS=5 BENCH_ONLY=regexp BENCH_PROGRAM=another-build testdata/bench.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
out=$PWD/target/bench
mkdir -p "$out"
[ "$(id -u)" = 0 ] || { echo 'bench.sh: needs root, for the peers (podman, a Debian 13 root with skopeo)' >&2; exit 1; }

[ -n "${BENCH_PROGRAM:-}" ] || cargo build --locked --release --package cfs-update
if [ ! -x "$out/cfsctl/bin/cfsctl" ]; then
    cargo install --locked composefs-ctl --version 0.9.4 --root "$out/cfsctl" --target-dir "$out/build"
fi
sh "$here/bench-image.sh" "$out"
cp "$out/cfsctl/bin/cfsctl" "$out/peers/usr/local/bin/cfsctl"
ln -sf cfsctl "$out/peers/usr/local/bin/mkcomposefs"

. "$here/registry.sh"
registry_start "$out/registry" "$out/registry.log"
trap registry_stop EXIT
printf '[[registry]]\nlocation = "127.0.0.1:%s"\ninsecure = true\n' "$registry_port" >"$out/peers/etc/containers/registries.conf"
unshare --mount sh -c '
    set -eu
    out=$1 port=$2 here=$3
    mkdir -p "$out/work" "$out/peers/bench"
    # podman unpacks layers in a root of its own making, for which / has to be a mount point.
    mount --bind "$out/peers" "$out/peers"
    mount --bind "$out" "$out/peers/bench"
    mount -t proc proc "$out/peers/proc"
    mount --rbind /dev "$out/peers/dev"
    mount --rbind /sys "$out/peers/sys"
    exec python3 "$here/bench.py" "$out" "$port"
' sh "$out" "$registry_port" "$here"
