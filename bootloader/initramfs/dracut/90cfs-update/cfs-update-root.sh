#!/bin/sh
# Hook of an initramfs without systemd, sourced by dracut's init when the physical root is mounted at $NEWROOT.

cfs_update_code=0
# shellcheck disable=SC2154
/usr/lib/cfs-update/cfs-update-root --sysroot "$NEWROOT" --on-failure reboot || cfs_update_code=$?
case "$cfs_update_code" in
    # 77: the kernel command line names no deployment; another kind of boot.
    0 | 77) ;;
    *) die "cfs-update-root: the deployment was refused, see above" ;;
esac
