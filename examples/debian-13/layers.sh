#!/bin/sh
# Cuts a finished root folder into the image's layers; run by mmdebstrap, with the rights to read every file.
#
#   layers.sh ROOT FILES OUT         FILES: what was added to Debian; writes OUT/*.tar
set -eu
root=$1 files=$2 out=$3

pack() { # NAME, then tar's options
    _name=$1
    shift
    tar --create --file="$out/$_name.tar" --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner \
        --sort=name --xattrs --xattrs-include='*' -C "$root" "$@"
}

# Everything of ours, and what is made of it, by name: left out of the first layer, put into the last.
(cd "$files" && find . ! -type d) >"$out/ours"
(cd "$root" && find ./usr/lib/modules -name initramfs.img) >>"$out/ours"
(cd "$root" && find ./usr/lib/modules ! -name initramfs.img) >"$out/kernel"

# What is mounted while this runs belongs to the machine that runs it, and may change meanwhile: the image has empty folders.
pack 1-debian --exclude-from="$out/ours" --exclude=./usr/lib/modules \
    --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./run .
mkdir "$out/empty" "$out/empty/dev" "$out/empty/proc" "$out/empty/sys" "$out/empty/run"
tar --append --file="$out/1-debian.tar" --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner \
    --owner=0 --group=0 --mode=0755 --mtime=@0 -C "$out/empty" ./dev ./proc ./run ./sys
rm -r "$out/empty"
pack 2-kernel --no-recursion --files-from="$out/kernel"
pack 3-host --no-recursion --files-from="$out/ours"
rm "$out/ours" "$out/kernel"
