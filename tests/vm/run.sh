#!/usr/bin/env bash
# Makes the disk, the package and one of a later version, and runs the stories on a virtual machine (root).
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
image=$(tests/vm/image.sh)
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
# The programs of the other tests.
package=$(HEARTH_PROFILE=release deploy/package.sh deb)
cp "$package" "$work/hearth.deb"
# An upgrade needs a higher version.
dpkg-deb --raw-extract "$package" "$work/newer"
sed -i 's/^Version: .*/&+1/' "$work/newer/DEBIAN/control"
dpkg-deb --root-owner-group -Znone --build "$work/newer" "$work/newer.deb" >/dev/null
"$target/release/vm" "$image" "$work/hearth.deb" "$work/newer.deb"
