#!/bin/sh
# Cuts a freshly made root folder into layers, adds what real images have and small ones do not (links in and across
# layers, capabilities, odd names, times, devices), and makes the layer that turns version 1 into version 2.
# Run by mmdebstrap inside its namespace, with the rights to read and write every file:
#
#   testdata/os-layers.sh ROOT OUT        writes OUT/layers/*.tar and OUT/versions/{1,2}
set -eu
root=$1 out=$2
cd "$root"

pack() { # NAME, then what to pack and tar's options; PAX keeps nanoseconds, long names, big ids and xattrs
    _name=$1
    shift
    tar --create --file="$out/layers/$_name.tar" --format=posix --pax-option=delete=atime,delete=ctime \
        --numeric-owner --sort=name --xattrs --xattrs-include='*' --exclude-backups \
        --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./run --exclude=./tmp \
        --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/apt/*' --exclude='./var/log/*' \
        --exclude='./usr/share/site' --exclude='./usr/lib/site' "$@"
}
real_root() { # ids and device nodes are ours to make, not only those of a user namespace
    [ "$(awk '{ print $3 }' /proc/self/uid_map | head -n 1)" = 4294967295 ]
}

mkdir -p sysroot boot usr/lib/bootc/kargs.d
rm -f etc/machine-id etc/hostname etc/resolv.conf
echo uninitialized >etc/machine-id
ls boot usr/lib/modules >"$out/kernel.txt"

# --- Version 1: four layers of Debian -------------------------------------------------------------------------------
pack 1-base --exclude=./usr/lib --exclude=./usr/share --exclude='./boot/*' .
# The kernel's own folders may be mounted just now: empty ones in their place.
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
mkdir -m 755 "$new/dev" "$new/run" && mkdir -m 555 "$new/proc" "$new/sys" && mkdir -m 1777 "$new/tmp"
tar --append --file="$out/layers/1-base.tar" --format=posix --numeric-owner -C "$new" ./dev ./proc ./run ./sys ./tmp
pack 2-lib --exclude=./usr/lib/modules ./usr/lib
pack 3-share ./usr/share
pack 4-kernel ./boot ./usr/lib/modules

# --- and one of the site ---------------------------------------------------------------------------------------------
rm -rf "${new:?}"/*
chmod 755 "$new"
mkdir -p "$new/etc/site.d" "$new/usr/lib/site" "$new/usr/lib/bootc/kargs.d" "$new/usr/share/site"
{ cat usr/lib/os-release; echo 'IMAGE_ID=cfs-test'; echo 'IMAGE_VERSION=1'; } >"$new/usr/lib/os-release"
echo 'kargs = ["console=ttyS0,115200", "panic=1", "quiet"]' >"$new/usr/lib/bootc/kargs.d/10-site.toml"
echo 'version=1' >"$new/etc/site.conf"
echo 'gone in version 2' >"$new/etc/removed-in-v2.conf"
echo 'a folder in version 1' >"$new/etc/site.d/a"
echo 'hidden by the opaque folder' >"$new/etc/site.d/b"
(
    cd "$new/usr/share/site"
    : >empty
    head -c 64 /dev/zero | tr '\0' i >inline-64
    head -c 65 /dev/zero | tr '\0' o >object-65
    for size in 4095 4096 4097 524288 524289 5000000; do
        yes "$size bytes of cfs-update's test image" | head -c "$size" >"bytes-$size"
    done
    echo 'one file, three names' >hard-a
    ln hard-a hard-b
    mkdir sub && ln hard-a sub/hard-c
    ln -s ../../lib/os-release link
    ln -s "$(head -c 200 /dev/zero | tr '\0' t)/$(head -c 200 /dev/zero | tr '\0' u)" long-link
    mkfifo pipe
    name=$(head -c 200 /dev/zero | tr '\0' n)
    mkdir -p "$name/$name" && echo long >"$name/$name/$name"
    echo odd >"with space" && echo odd >'back\slash' && echo odd >'new
line' && echo odd >"$(printf 'not-utf8-\377\376')" && echo odd >'=equals' && echo odd >'+plus' && echo odd >-dash
    echo suid >suid && chmod 4755 suid && echo sgid >sgid && chmod 2755 sgid && mkdir sticky && chmod 1777 sticky
    echo nobody >unreadable && chmod 0000 unreadable
    echo time >subsecond && touch -d '2001-02-03 04:05:06.789012345 UTC' subsecond
    echo time >epoch && touch -d @0 epoch
    echo time >after-2038 && touch -d '2100-01-01 00:00:00 UTC' after-2038
    echo xattr >xattr
    setfattr -n user.note -v 'only in the layer' xattr 2>/dev/null || :
    chown 1000:2000 subsecond
    mkdir becomes-file && echo in >becomes-file/in
    echo file >becomes-folder
    if real_root; then
        chown 3000000:4000000 epoch
        mknod null c 1 3 && mknod loop b 7 255
    fi
)
cp usr/bin/ping "$new/usr/lib/site/ping" && setcap cap_net_raw+ep "$new/usr/lib/site/ping"
touch -d '2026-01-01 00:00:00.5 UTC' "$new/etc" "$new/usr" "$new/usr/lib" "$new/usr/share" "$new/usr/share/site"
tar --create --file="$out/layers/5-site.tar" --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner \
    --sort=name --xattrs --xattrs-include='*' -C "$new" ./etc ./usr
echo 1-base 2-lib 3-share 4-kernel 5-site >"$out/versions/1"

# --- Version 2: one more layer ---------------------------------------------------------------------------------------
rm -rf "${new:?}"/*
mkdir -p "$new/etc/site.d" "$new/usr/lib/bootc/kargs.d" "$new/usr/share/site/becomes-folder" "$new/usr/share/doc" "$new/usr/bin"
{ cat usr/lib/os-release; echo 'IMAGE_ID=cfs-test'; echo 'IMAGE_VERSION=2'; } >"$new/usr/lib/os-release"
echo 'kargs = ["console=ttyS0,115200", "panic=1", "quiet", "loglevel=5"]' >"$new/usr/lib/bootc/kargs.d/10-site.toml"
echo 'version=2' >"$new/etc/site.conf"
echo 'new in version 2' >"$new/etc/new-in-v2.conf"
: >"$new/etc/.wh.removed-in-v2.conf"                     # one file less
: >"$new/etc/site.d/.wh..wh..opq"                        # a folder anew
echo 'all that is left' >"$new/etc/site.d/c"
: >"$new/usr/share/doc/.wh..wh..opq"
echo 'no documentation' >"$new/usr/share/doc/README"
: >"$new/usr/share/site/.wh.hard-b"                      # one name of three less
echo 'a file now' >"$new/usr/share/site/becomes-file"
echo in >"$new/usr/share/site/becomes-folder/in"
: >"$new/usr/share/site/.wh.never-there"
cp -a usr/bin/true "$new/usr/bin/true" && ln "$new/usr/bin/true" "$new/usr/share/site/across-layers"
yes 'version 2 brings a file' | head -c 3000000 >"$new/usr/share/site/new-in-v2"
tar --create --file="$out/layers/6-changes.tar" --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner \
    --sort=name --xattrs --xattrs-include='*' -C "$new" ./usr/bin/true ./etc ./usr/lib ./usr/share
# The link's target is in a lower layer only.
tar --delete --file="$out/layers/6-changes.tar" ./usr/bin/true
echo 1-base 2-lib 3-share 4-kernel 5-site 6-changes >"$out/versions/2"
