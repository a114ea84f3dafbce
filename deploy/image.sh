#!/usr/bin/env bash
# Makes, from what `make dist shim` has built, the OCI image of the node installer, without a registry:
#
#   image.sh [REFERENCE]   target/package/hearth-installer-VERSION.oci.tar; default
#                          registry.example/hearth-installer:VERSION
#
# It is an image layout in an archive: `ctr image import`, `skopeo copy oci-archive:…` and `podman load` take it.
# One layer: a static busybox for the script, and the release's tarball, unpacked, below /hearth.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
out=$target/package
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
reference=${1:-registry.example/hearth-installer:$version}
archive=$out/hearth-installer-$version.oci.tar
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1700000000)}
umask 022

fail() {
    echo "image: $*" >&2
    exit 1
}

busybox=$(command -v busybox) || fail "busybox is missing: install the package busybox-static"
! ldd "$busybox" >/dev/null 2>&1 || fail "$busybox is not static: install the package busybox-static"

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
root=$work/root layout=$work/layout
mkdir -p "$root/bin" "$root/hearth" "$root/tmp" "$layout/blobs/sha256"

# tree DIRECTORY: as an archive, the same bytes from the same files.
tree() {
    tar -C "$1" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - .
}

# blob FILE: takes a file into the layout; says its digest.
blob() {
    local digest
    digest=$(sha256sum "$1" | cut -d ' ' -f 1)
    mv "$1" "$layout/blobs/sha256/$digest"
    echo "sha256:$digest"
}

size() {
    stat -c %s "$layout/blobs/sha256/${1#sha256:}"
}

tarball=$(deploy/package.sh tarball)
tar -C "$root/hearth" --strip-components=1 -xzf "$tarball"
install -m 0755 "$busybox" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
install -m 0755 deploy/kubernetes/installer/node.sh "$root/hearth/node.sh"

tree "$root" >"$work/layer.tar"
diff=sha256:$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
gzip -9n "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz")
created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
printf '{"created":"%s","architecture":"amd64","os":"linux","config":{"Entrypoint":["/hearth/node.sh"],"Env":["PATH=/bin"],"Labels":{"org.opencontainers.image.title":"Hearth node installer","org.opencontainers.image.version":"%s","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["%s"]},"history":[{"created":"%s","created_by":"deploy/image.sh"}]}' \
    "$created" "$version" "$diff" "$created" >"$work/config"
config=$(blob "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"%s","size":%s}]}' \
    "$config" "$(size "$config")" "$layer" "$(size "$layer")" >"$work/manifest"
manifest=$(blob "$work/manifest")
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%s,"platform":{"architecture":"amd64","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$manifest" "$(size "$manifest")" "$reference" "${reference##*:}" >"$layout/index.json"
tree "$layout" >"$archive"
echo "$archive"
