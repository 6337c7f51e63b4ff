#!/bin/sh
# Puts what an image needs of cfs-update into a folder, as it lies in the image: the program, the initramfs program with
# its dracut module, the units, and this example's own settings.
#
#   files.sh PROGRAM DIR            PROGRAM: the built cfs-update, an absolute path; cfs-update-root lies beside it
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
program=${1:?files.sh PROGRAM DIR} to=${2:?files.sh PROGRAM DIR}

make --no-print-directory -s -C "$repo" install BUILT="$(dirname "$program")" DESTDIR="$to"
strip "$to/usr/bin/cfs-update" "$to/usr/lib/cfs-update/cfs-update-root" 2>/dev/null || :
cp -a "$here/root/." "$to/"
