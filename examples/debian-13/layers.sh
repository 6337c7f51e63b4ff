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

pack 1-debian --exclude-from="$out/ours" --exclude=./usr/lib/modules \
    --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./run/*' .
pack 2-kernel --no-recursion --files-from="$out/kernel"
pack 3-host --no-recursion --files-from="$out/ours"
rm "$out/ours" "$out/kernel"
