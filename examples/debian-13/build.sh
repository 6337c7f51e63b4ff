#!/bin/sh
# Makes a bootable Debian 13 as an OCI image layout, with mmdebstrap:
#
#   examples/debian-13/build.sh OUT              OUT: the layout; the image's tag is "13"
#   skopeo copy oci:OUT:13 docker://REGISTRY/os:13
#
# As root, or without rights where user namespaces may be made (then without ids above 65535). Environment:
#
#   CFS_PROGRAM       the built program (target/release/cfs-update); cfs-update-root is taken from beside it
#   EXTRA_PACKAGES    further Debian packages, separated by spaces
#   EXTRA_ROOT        folder with further files, copied over the root before the initramfs is made
#   MIRROR            Debian mirror; otherwise the one that this machine's apt uses, or mmdebstrap's default
#   VERSION, CREATED  of the image ("13", now)
#
# Layers, lowest first, so that what changes often comes last: Debian; kernel and modules; cfs-update, initramfs and the
# image's own settings.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
out=${1:?build.sh OUT}
. "$repo/testdata/oci.sh"

program=$(realpath -m "${CFS_PROGRAM:-$repo/target/release/cfs-update}")
[ -x "$program" ] || { echo "build.sh: there is no $program; 'make release', or set CFS_PROGRAM" >&2; exit 1; }
for tool in mmdebstrap zstd tar make; do
    command -v "$tool" >/dev/null || { echo "build.sh: $tool is not installed" >&2; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/keyring" "$work/files" "$work/layers"

# --- What goes into the image beside Debian's packages ----------------------------------------------------------------
"$here/files.sh" "$program" "$work/files"
if [ -n "${EXTRA_ROOT:-}" ]; then cp -a "$EXTRA_ROOT/." "$work/files/"; fi
chmod -R go+rX,go-w "$work/files"

for ring in /usr/share/keyrings/debian-archive-trixie-*.gpg /usr/share/keyrings/debian-archive-trixie-*.pgp \
    /usr/share/keyrings/debian-archive-keyring.gpg /usr/share/keyrings/debian-archive-keyring.pgp; do
    [ ! -f "$ring" ] || cp "$ring" "$work/keyring/$(basename "${ring%.?pg}").gpg"
done
mirror=${MIRROR:-$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    sed -n 's/^Debian //p' | sort -u | head -n 1)}
packages=$(sed -e '/^#/d' "$here/packages.txt" | tr '\n' ',')$(echo "${EXTRA_PACKAGES:-}" | tr -s ' ' ',')
mode=unshare
[ "$(id -u)" != 0 ] || mode=root

# --- The root folder: our files first, so that dracut finds its module when the kernel is installed --------------------
echo "build.sh: Debian 13 with mmdebstrap, mode $mode" >&2
mmdebstrap --quiet --mode="$mode" --variant=essential --keyring="$work/keyring" --format=null \
    --include="${packages%,}" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --essential-hook="tar -C '$work/files' --owner=0 --group=0 -cf - . | tar -C \"\$1\" -xf - --keep-directory-symlink" \
    --customize-hook="sh '$here/finish.sh' \"\$1\"" \
    --customize-hook="sh '$here/layers.sh' \"\$1\" '$work/files' '$work/layers'" \
    trixie - ${mirror:+"$mirror"} >"$work/mmdebstrap.log" 2>&1 ||
    { tail -n 40 "$work/mmdebstrap.log" >&2; echo 'build.sh: mmdebstrap failed' >&2; exit 1; }

oci_init "$out"
created=${CREATED:-$(date -u +%Y-%m-%dT%H:%M:%SZ)}
oci_image "$out" 13 zstd "$created" "${VERSION:-13}" \
    "$work/layers/1-debian.tar" "$work/layers/2-kernel.tar" "$work/layers/3-host.tar"
echo "build.sh: made oci:$out:13, $(du -sm "$out" | cut -f1) MB" >&2
