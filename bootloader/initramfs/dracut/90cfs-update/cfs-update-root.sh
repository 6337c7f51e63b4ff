#!/bin/sh
# Hook of an initramfs without systemd, sourced by dracut's init when the physical root is mounted at $NEWROOT.

if getarg composefs.digest > /dev/null || getarg composefs > /dev/null; then
    # shellcheck disable=SC2154
    /usr/lib/cfs-update/cfs-update-root --sysroot "$NEWROOT" --on-failure reboot \
        || die "cfs-update-root: the deployment was refused, see above"
fi
