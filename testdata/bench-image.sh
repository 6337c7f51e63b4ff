#!/bin/sh
# Makes the image that `make bench` measures: a Debian of more than 40,000 files and 1 GB in eight layers, as an OCI layout
# in gzip and in zstd, in the storage of a real registry; and a Debian 13 root with skopeo, podman and OSTree, since
# the peers want newer ones than an older host has. Root only.
#
#   testdata/bench-image.sh DIR
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
suite=trixie
. "$here/oci.sh"
. "$here/registry.sh"
[ "$(id -u)" = 0 ] || { echo 'bench-image.sh: needs root' >&2; exit 1; }

mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | sed -n 's/^Debian //p' | sort -u | head -n 1)
mkdir -p "$out/keyring"
cp /usr/share/keyrings/debian-archive-*.gpg "$out/keyring/"

if [ ! -f "$out/peers.done" ] || [ ! -x "$out/peers/usr/bin/ostree" ]; then
    rm -rf "$out/peers"
    mmdebstrap --quiet --mode=root --variant=essential --keyring="$out/keyring" --format=directory \
        --include=skopeo,podman,crun,ostree,ca-certificates,zstd,netavark,uidmap \
        --aptopt='Apt::Install-Recommends "false"' "$suite" "$out/peers" ${mirror:+"$mirror"}
    # 127.0.0.1 speaks plain HTTP, and nothing is signed there.
    mkdir -p "$out/peers/etc/containers" "$out/peers/bench"
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$out/peers/etc/containers/policy.json"
    : >"$out/peers.done"
fi

if [ ! -f "$out/image.done" ]; then
    rm -rf "$out/layers" "$out/oci" "$out/registry"
    mkdir -p "$out/layers"
    cat >"$out/split.sh" <<'SPLIT'
set -eu
cd "$1"
out=$2
pack() {
    _name=$1
    shift
    tar --create --file="$out/layers/$_name.tar" --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner \
        --sort=name --xattrs --xattrs-include='*' --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./run \
        --exclude=./tmp --exclude='./var/lib/apt/lists/*' --exclude='./var/cache/apt/*' "$@"
}
mkdir -p sysroot boot
rm -f etc/machine-id etc/resolv.conf
pack 1-base --exclude=./usr/lib --exclude=./usr/share --exclude=./usr/src --exclude=./usr/include --exclude='./boot/*' .
pack 2-lib --exclude=./usr/lib/modules --exclude=./usr/lib/llvm-19 --exclude=./usr/lib/go-1.24 --exclude=./usr/lib/jvm \
    --exclude=./usr/lib/gcc --exclude=./usr/lib/python3.13 --exclude=./usr/lib/python3 ./usr/lib
pack 3-python ./usr/lib/python3 ./usr/lib/python3.13
pack 4-compilers ./usr/lib/gcc ./usr/lib/llvm-19 ./usr/include
pack 5-share --exclude=./usr/share/go-1.24 --exclude=./usr/share/doc ./usr/share
pack 6-doc ./usr/share/doc
pack 7-go ./usr/lib/go-1.24 ./usr/share/go-1.24
pack 8-kernel ./boot ./usr/lib/modules
SPLIT
    mmdebstrap --quiet --mode=root --variant=important --keyring="$out/keyring" --format=null \
        --include=linux-image-amd64,systemd,systemd-sysv,initramfs-tools,build-essential,git \
        --include=python3-full,python3-numpy,python3-sympy,golang-1.24,clang-19,vim \
        --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/bench"' \
        --customize-hook="sh '$out/split.sh' \"\$1\" '$out'" "$suite" - ${mirror:+"$mirror"} >/dev/null
    oci_init "$out/oci"
    for how in gzip zstd; do
        oci_image "$out/oci" "$how" "$how" 2026-01-01T00:00:00Z 1 "$out"/layers/*.tar
    done
    registry_start "$out/registry" "$out/registry.log"
    trap registry_stop EXIT
    registry_push "$out/oci" gzip os:gzip
    registry_push "$out/oci" zstd os:zstd
    registry_stop
    trap - EXIT
    : >"$out/image.done"
fi
