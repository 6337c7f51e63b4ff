#!/bin/bash
# dracut module: boots the root of a cfs-update deployment.
#
# Installed as /usr/lib/dracut/modules.d/90cfs-update. The initramfs gets the program, its configuration, the keys that
# signatures are checked with, the drivers, and the unit (with systemd) or a hook (without).

# Called by dracut.
check() {
    require_binaries /usr/lib/cfs-update/cfs-update-root || return 1
    return 0
}

# Called by dracut.
depends() {
    return 0
}

# Called by dracut.
installkernel() {
    # loop: kernels before 6.12 mount EROFS from a block device only. sha512: repositories with SHA-512 digests. Whatever
    # is built in, or is no module of this kernel, is left out silently.
    hostonly='' instmods erofs overlay loop sha256 sha256_generic sha512 sha512_generic
}

# Called by dracut.
# shellcheck disable=SC2154
install() {
    local file
    inst_binary /usr/lib/cfs-update/cfs-update-root
    for file in /usr/lib/composefs/setup-root-conf.toml \
        {/etc,/usr/lib}/cfs-update/keys/{trusted.d,revoked.d}/*.pub; do
        [[ -e ${dracutsysrootdir-}$file ]] && inst_simple "$file"
    done
    if dracut_module_included "systemd"; then
        inst_simple "$systemdsystemunitdir/cfs-update-root.service"
        $SYSTEMCTL -q --root "$initdir" add-requires initrd-root-fs.target cfs-update-root.service
        # What fails before that program comes to it: no root, a file system that cannot be mounted.
        inst_simple "$systemdsystemunitdir/cfs-update-boot-failed.service"
        $SYSTEMCTL -q --root "$initdir" add-wants emergency.target cfs-update-boot-failed.service
        $SYSTEMCTL -q --root "$initdir" add-wants dracut-emergency.service cfs-update-boot-failed.service
        inst_simple "$systemdsystemunitdir/cfs-update-root-missing.service"
        inst_simple "$systemdsystemunitdir/cfs-update-root-missing.timer"
        $SYSTEMCTL -q --root "$initdir" add-wants initrd.target cfs-update-root-missing.timer
    else
        inst_hook pre-pivot 05 "$moddir/cfs-update-root.sh"
    fi
    return 0
}
