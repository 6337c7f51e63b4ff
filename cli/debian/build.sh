#!/bin/sh
# Makes the Debian package of what `make install` installs.
#
#   build.sh BUILT OUT              BUILT: folder with the built programs; OUT: folder for the package, whose path is printed
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
built=$(cd "${1:?build.sh BUILT OUT}" && pwd)
mkdir -p "${2:?build.sh BUILT OUT}"
out=$(cd "$2" && pwd)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
# The modes of folders are the package's, not those of who builds it.
umask 022
mkdir -m 755 "$root"
make --no-print-directory -s -C "$repo" install BUILT="$built" DESTDIR="$root"
strip "$root/usr/bin/cfs-update" "$root/usr/lib/cfs-update/cfs-update-root"

# What the programs are linked with, by the packages that have it.
mkdir "$work/debian"
touch "$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O "$root/usr/bin/cfs-update" "$root/usr/lib/cfs-update/cfs-update-root" 2>/dev/null)
depends=${depends#shlibs:Depends=}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml" | head -n 1)
architecture=$(dpkg --print-architecture)

mkdir -m 755 "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$depends/" \
    "$here/control.in" >"$root/DEBIAN/control"
install -m 755 -t "$root/DEBIAN" "$here/postinst" "$here/prerm"
dpkg-deb --build --root-owner-group "$root" "$out/cfs-update_${version}_$architecture.deb" >/dev/null
echo "$out/cfs-update_${version}_$architecture.deb"
