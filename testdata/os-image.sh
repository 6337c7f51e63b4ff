#!/bin/sh
# Makes the operating system image that the tests run on: a real Debian, with kernel, initrd and systemd, from the mirror
# that this machine's apt uses, cut into several layers, in two versions, compressed with gzip and with zstd, and pushes
# both to a real registry's storage on the loopback interface.
#
#   testdata/os-image.sh [DIR]            DIR: target/os-image
#
# Leaves in DIR:
#   layers/*.tar   the layers as tar files, and versions/{1,2}: the names of each version's layers, lowest first
#   oci/           an OCI layout with the tags 1-gzip, 1-zstd, 2-gzip, 2-zstd
#   registry/      storage of docker-registry with the repository os and these tags (and 1, 2: gzip's)
#   key            what it was made from; while that is the same, another run does nothing
#
# As root it takes mmdebstrap's root mode, otherwise user namespaces (then without device nodes and ids above 65535).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../target/os-image}
suite=trixie
mkdir -p "$out"
out=$(cd "$out" && pwd)
. "$here/oci.sh"
. "$here/registry.sh"

exec 9>"$out/.lock"
flock 9

key=$(cat "$here/os-image.sh" "$here/os-layers.sh" "$here/oci.sh" | sha256sum | cut -d' ' -f1)-$suite-$(id -u)
if [ -f "$out/key" ] && [ "$(cat "$out/key")" = "$key" ]; then
    exit 0
fi
rm -rf "$out/key" "$out/layers" "$out/versions" "$out/oci" "$out/registry" "$out/keyring"
mkdir -p "$out/layers" "$out/versions" "$out/keyring"

for tool in mmdebstrap docker-registry skopeo zstd setfattr; do
    command -v "$tool" >/dev/null || { echo "os-image.sh: $tool is not installed; run 'make install-deps'" >&2; exit 1; }
done

# The mirror is the one that this machine's apt was given; mmdebstrap's own default where apt knows none of Debian's.
mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    sed -n 's/^Debian //p' | sort -u | head -n 1)
for ring in /usr/share/keyrings/debian-archive-"$suite"-*.gpg /usr/share/keyrings/debian-archive-"$suite"-*.pgp \
    /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    [ -f "$ring" ] && cp "$ring" "$out/keyring/"
done
for ring in "$out"/keyring/*.pgp; do [ -f "$ring" ] && mv "$ring" "${ring%.pgp}.gpg"; done

case "$(dpkg --print-architecture)" in
    amd64 | arm64) kernel=linux-image-cloud-$(dpkg --print-architecture) ;;
    *) kernel=linux-image-$(dpkg --print-architecture) ;;
esac
mode=unshare
[ "$(id -u)" = 0 ] && mode=root

echo "os-image.sh: Debian $suite with $kernel, mode $mode" >&2
mmdebstrap --quiet --mode="$mode" --variant=essential --keyring="$out/keyring" --format=null \
    --include="$kernel,systemd,systemd-sysv,dbus,initramfs-tools,zstd,iputils-ping,libcap2-bin,e2fsprogs" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/test"' \
    --customize-hook="sh '$here/os-layers.sh' \"\$1\" '$out'" \
    "$suite" - ${mirror:+"$mirror"} >/dev/null

oci_init "$out/oci"
for version in 1 2; do
    for how in gzip zstd; do
        set --
        for layer in $(cat "$out/versions/$version"); do set -- "$@" "$out/layers/$layer.tar"; done
        oci_image "$out/oci" "$version-$how" "$how" "2026-01-0${version}T00:00:00Z" "$version" "$@"
    done
done

registry_start "$out/registry" "$out/registry.log"
trap registry_stop EXIT
for tag in 1-gzip 2-gzip 1-zstd 2-zstd; do
    registry_push "$out/oci" "$tag" "os:$tag"
done
registry_push "$out/oci" 1-gzip os:1
registry_push "$out/oci" 2-gzip os:2
registry_stop
trap - EXIT
echo "$key" >"$out/key"
