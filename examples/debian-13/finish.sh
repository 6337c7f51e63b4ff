#!/bin/sh
# Makes an image of a Debian root folder in which everything is installed: run by build.sh, and by the Containerfile in
# the container itself.
#
#   finish.sh ROOT
#
# Afterwards kernel and initramfs lie where bootc and cfs-update look first, `/boot` is empty (the machine's own $BOOT is
# mounted there), and nothing is left that belongs to one machine or to the time of the build.
set -eu
cd "${1:?finish.sh ROOT}"

for kernel in boot/vmlinuz-*; do
    version=${kernel#boot/vmlinuz-}
    modules=usr/lib/modules/$version
    [ -s "boot/initrd.img-$version" ] || { echo "finish.sh: dracut made no boot/initrd.img-$version" >&2; exit 1; }
    mv "$kernel" "$modules/vmlinuz"
    mv "boot/initrd.img-$version" "$modules/initramfs.img"
    chmod 644 "$modules/initramfs.img"
    mv "boot/config-$version" "$modules/config"
    mv "boot/System.map-$version" "$modules/System.map"
done
rm -f vmlinuz vmlinuz.old initrd.img initrd.img.old
rm -rf boot efi sysroot
mkdir -p boot efi sysroot

# What people write lies in /var; tmpfiles.d makes the folders (50-image.conf).
rm -rf home root
ln -s var/home home
ln -s var/roothome root

# What is to start is decided here, and once more on the first boot, when systemd fills in the machine's id.
chroot . systemctl --quiet preset-all
echo uninitialized >etc/machine-id
rm -f var/lib/dbus/machine-id etc/.pwd.lock
# A container tool has its own of these mounted while it builds, and leaves them out of the image.
rm -f etc/hostname etc/resolv.conf 2>/dev/null || :
if [ -d var/lib/dpkg ] && [ ! -L var/lib/dpkg ]; then
    mkdir -p usr/lib/sysimage
    mv var/lib/dpkg usr/lib/sysimage/dpkg
    ln -s ../../usr/lib/sysimage/dpkg var/lib/dpkg
fi
rm -rf usr/lib/sysimage/dpkg/*-old var/lib/apt/lists var/lib/apt/extended_states var/cache/* var/log/* var/tmp/* tmp/*
rm -rf run/* 2>/dev/null || :
