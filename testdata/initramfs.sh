#!/bin/sh
# Makes a Debian 13 with kernel, dracut and initramfs-tools (once), installs PROGRAM and the glue of bootloader/initramfs
# there, lets both make an initramfs, and lists what is in them. Lines `=== initramfs-tools` and `=== order` (of its
# scripts that run when the root is mounted) separate the lists.
#
#   testdata/initramfs.sh PROGRAM DIR         as root
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
exec 9>"$out/.lock"
flock 9

# What `make install` takes from a build; the program itself has no place in an initramfs.
mkdir -p "$out/built"
cp "$1" "$out/built/cfs-update-root"
: >"$out/built/cfs-update"

key=$(sha256sum <"$here/initramfs.sh" | cut -d' ' -f1)
root=$out/root.tar
if [ ! -f "$out/key" ] || [ "$(cat "$out/key")" != "$key" ]; then
    rm -rf "$out/key" "$out/keyring"
    mkdir -p "$out/keyring"
    for ring in /usr/share/keyrings/debian-archive-trixie-*.?pg /usr/share/keyrings/debian-archive-keyring.?pg; do
        [ ! -f "$ring" ] || cp "$ring" "$out/keyring/$(basename "${ring%.?pg}").gpg"
    done
    mirror=$(apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        sed -n 's/^Debian //p' | sort -u | head -n 1)
    mmdebstrap --quiet --mode=root --variant=essential --keyring="$out/keyring" \
        --include="linux-image-cloud-$(dpkg --print-architecture),systemd,systemd-sysv,udev,kmod,zstd,cpio,dracut-core,initramfs-tools-core" \
        --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' trixie "$root" ${mirror:+"$mirror"} >"$out/log" 2>&1 ||
        { tail -n 30 "$out/log" >&2; exit 1; }
    echo "$key" >"$out/key"
fi

# What is installed below $1, as the packages of an image would have it.
install_into() {
    make --no-print-directory -C "$here/.." install DESTDIR="$1" BUILT="$out/built" >/dev/null
    mkdir -p "$1/usr/lib/composefs" "$1/etc/cfs-update/keys/trusted.d" "$1/etc/cfs-update/keys/revoked.d"
    echo '[etc]' >"$1/usr/lib/composefs/setup-root-conf.toml"
    echo '# a key' >"$1/etc/cfs-update/keys/trusted.d/vendor.pub"
    echo '# a key' >"$1/etc/cfs-update/keys/revoked.d/old.pub"
}

inside='set -e
kernel=$(ls /usr/lib/modules)
dracut --quiet --force --kver "$kernel" /tmp/dracut.img 2>/tmp/dracut.log || { cat /tmp/dracut.log >&2; exit 1; }
lsinitrd /tmp/dracut.img 2>/dev/null
echo "=== initramfs-tools"
echo MODULES=most >/etc/initramfs-tools/conf.d/test
mkinitramfs -o /tmp/tools.img "$kernel"
lsinitramfs /tmp/tools.img
echo "=== order"
mkdir /tmp/unpacked
unmkinitramfs /tmp/tools.img /tmp/unpacked
cat /tmp/unpacked/scripts/local-bottom/ORDER /tmp/unpacked/main/scripts/local-bottom/ORDER 2>/dev/null || :'

rm -rf "$out/root"
mkdir "$out/root"
trap 'rm -rf "$out/root"' EXIT
tar -C "$out/root" -xf "$root"
install_into "$out/root"
mkdir -p "$out/root/etc/initramfs-tools/conf.d"
chroot "$out/root" /bin/bash -c "$inside"
