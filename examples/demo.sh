#!/bin/sh
# The main job from end to end, on a machine that has only Rust: no root, no network beyond the crates.
#
# It builds the program, makes two versions of a small operating system as an OCI image (real layers, but the kernel and
# the initrd are a line of text each, since nothing is booted here), and leads a temporary sysroot through a life:
# switch, upgrade, rollback. `examples/demo.sh DIR` keeps everything in DIR to look at; CFS_UPDATE names a program that
# is built already.
set -eu
repo=$(cd "$(dirname "$0")/.." && pwd)
. "$repo/testdata/oci.sh"

if [ $# -gt 0 ]; then
    work=$1
    mkdir -p "$work"
    work=$(cd "$work" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
if [ -z "${CFS_UPDATE:-}" ]; then
    (cd "$repo" && ${CARGO:-cargo} build --locked --package cfs-update)
    CFS_UPDATE=${CARGO_TARGET_DIR:-$repo/target}/debug/cfs-update
fi

title() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
mkdir -p "$work/sysroot"
cfs() {
    printf '\n\033[32m$ cfs-update --sysroot S %s\033[0m\n' "$*"
    "$CFS_UPDATE" --sysroot "$work/sysroot" "$@"
}
show() {
    printf '\n\033[32m$ %s\033[0m\n' "$*"
    (cd "$work/sysroot" && "$@")
}

# NAME: what is in the folder tree/ becomes a layer, owned by root, the same bytes at every run
layer() {
    mkdir -p "$work/layers"
    tar --create --file="$work/layers/$1.tar" --format=posix --pax-option=delete=atime,delete=ctime --sort=name \
        --owner=0 --group=0 --numeric-owner --mtime=@1767225600 -C "$work/tree" .
    rm -rf "$work/tree"
}

# --- An operating system ---------------------------------------------------------------------------------------------
title 'An operating system as a container image, version 1 and version 2'
t=$work/tree
mkdir -p "$t/boot" "$t/dev" "$t/proc" "$t/run" "$t/sys" "$t/sysroot" "$t/tmp" "$t/var" "$t/etc" "$t/usr/bin" "$t/usr/lib"
ln -s usr/bin "$t/bin"
printf 'NAME=Demo\nID=demo\nVERSION_ID=1\nPRETTY_NAME="Demo OS 1"\n' >"$t/usr/lib/os-release"
ln -s ../usr/lib/os-release "$t/etc/os-release"
echo 'demo' >"$t/etc/hostname"
echo 'greeting = "hello"' >"$t/etc/greeter.conf"
layer base
mkdir -p "$t/usr/lib/modules/6.12.1-demo" "$t/usr/lib/bootc/kargs.d"
echo 'stands for a kernel, 6.12.1' >"$t/usr/lib/modules/6.12.1-demo/vmlinuz"
echo 'stands for an initial ram disk' >"$t/usr/lib/modules/6.12.1-demo/initramfs.img"
echo 'kargs = ["quiet", "console=ttyS0"]' >"$t/usr/lib/bootc/kargs.d/10-demo.toml"
layer kernel
mkdir -p "$t/usr/bin" "$t/usr/share/greeter"
yes 'a program of the demo' | head -c 200000 >"$t/usr/bin/greeter"
chmod 755 "$t/usr/bin/greeter"
for i in 1 2 3 4 5 6 7 8 9; do yes "greeting $i" | head -c "${i}000" >"$t/usr/share/greeter/$i"; done
layer app-1
# Version 2: another program, one file less, new defaults; base and kernel are the same layers.
mkdir -p "$t/usr/bin" "$t/usr/share/greeter" "$t/usr/lib" "$t/etc"
yes 'a better program of the demo' | head -c 220000 >"$t/usr/bin/greeter"
chmod 755 "$t/usr/bin/greeter"
: >"$t/usr/share/greeter/.wh.9"
echo 'greeting = "hello again"' >"$t/etc/greeter.conf"
printf 'NAME=Demo\nID=demo\nVERSION_ID=2\nPRETTY_NAME="Demo OS 2"\n' >"$t/usr/lib/os-release"
layer app-2

L=$work/layers
oci_init "$work/os"
oci_image "$work/os" stable gzip 2026-01-01T00:00:00Z 1 "$L/base.tar" "$L/kernel.tar" "$L/app-1.tar"
echo "made oci:$work/os:stable, $(ls "$work/os/blobs/sha256" | wc -l) blobs, $(du -sk "$work/os" | cut -f1) KiB"

# --- Its life --------------------------------------------------------------------------------------------------------
title 'Follow the image: fetched, checked, imported, signed, and the next to boot'
cfs switch "oci:$work/os:stable"
cfs status

title 'An admin changes a file in /etc of the deployment'
deployed=$(ls -d "$work"/sysroot/state/deploy/*/ | head -n 1)
show sh -c "echo 'demo-of-my-own' > '${deployed}etc/hostname'"

title 'The publisher moves the tag to version 2; only the changed layer is fetched'
oci_image "$work/os" stable gzip 2026-01-02T00:00:00Z 2 "$L/base.tar" "$L/kernel.tar" "$L/app-1.tar" "$L/app-2.tar"
cfs upgrade
cfs status

title 'Nothing new is no work (exit code 77)'
set +e
cfs upgrade
code=$?
set -e
echo "exit code $code"
[ "$code" = 77 ]

title 'Version 2 disappoints: the previous deployment boots next'
cfs rollback
cfs status

title 'What is on disk'
show find boot state -not -path '*/etc/*' -print
show sh -c 'for entry in boot/loader/entries/*.conf; do echo "--- $entry"; cat "$entry"; done'

title 'Every object, image, signature and entry is what it should be'
cfs fsck
