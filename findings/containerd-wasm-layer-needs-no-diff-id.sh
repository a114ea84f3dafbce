#!/usr/bin/env bash
# containerd and ctr 1.6.20, 1.7.24 and 2.1.9 (Debian 1.6.20~ds1-1+deb12u3, 1.7.24~ds1-6+deb13u1, 2.1.9+ds1-5), images with one
# layer of type application/wasm.
#
# Behaviour: the image specification asks for a digest in rootfs.diff_ids for each layer. An image that does so cannot be used
# in any of the three: 1.6 looks for a processor of the layer's type, and later ones count the digests against the layers that
# they know, of which there are none. From 1.7 on, an image whose list of digests is empty can be used, though it has a layer.
# 1.6 refuses that one for the mismatch. The config type of Wasm artifacts, application/vnd.wasm.config.v0+json, unpacks from
# 1.7 on, and no container can be made of it by ctr. The import of 2.1 ends with status 0 for all of them.
#
# Output seen:
#   1.6.20, diff_ids for the layer: import fails (no processor for media-type), container fails
#   1.6.20, diff_ids empty: import fails (mismatched image rootfs and manifest layers), container fails
#   1.6.20, Wasm config: import fails (mismatched image rootfs and manifest layers), container fails
#   1.7.24, diff_ids for the layer: import fails (mismatched image rootfs and manifest layers), container fails
#   1.7.24, diff_ids empty: import succeeds, container succeeds
#   1.7.24, Wasm config: import succeeds, container fails
#   2.1.9, diff_ids for the layer: import succeeds, container fails
#   2.1.9, diff_ids empty: import succeeds, container succeeds
#   2.1.9, Wasm config: import succeeds, container fails
#
# Needs: root, python3, apt-get of Debian 12 amd64 with a mirror, a /tmp that overlayfs accepts. Leaves nothing behind.
set -euo pipefail

header=$(realpath "$0")
# unpack VERSION SUITE: unpacks that Debian package of containerd to a directory of the suite's name.
unpack() {
	local private=$place/$2 source
	source=$(apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
		awk '$1 == "Packages" && $2 == "Debian" && $3 == "bookworm" && $4 == "main" && !seen++ { print $5 }')
	mkdir -p "$private"/{lists/partial,cache/archives/partial,root}
	echo "deb $source $2 main" >"$private/sources.list"
	apt=(apt-get -qq -o "Dir::Etc::SourceList=$private/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$private/lists" -o "Dir::Cache=$private/cache" -o APT::Sandbox::User=root)
	"${apt[@]}" update
	(cd "$private" && "${apt[@]}" download "containerd=$1")
	dpkg -x "$private"/containerd_*.deb "$private/root"
}

if [[ ${1:-} != inside ]]; then
	place=$(mktemp -d)
	trap 'rm -rf "$place"' EXIT
	unpack '1.6.20~ds1-1+deb12u3' bookworm
	unpack '1.7.24~ds1-6+deb13u1' trixie
	unpack '2.1.9+ds1-5' forky
	# The daemons and their mounts end with the namespaces.
	unshare --mount --pid --fork --kill-child --mount-proc bash "$header" inside "$place" >"$place/seen"
	cat "$place/seen"
	diff <(sed -n '/^# Output seen/,/^#$/s/^#   //p' "$header") "$place/seen" || {
		echo "containerd does something else now" >&2
		exit 1
	}
	exit
fi

place=$2
cd "$place"
cat >images.py <<'END'
import hashlib, io, json, tarfile

OCI = "application/vnd.oci.image."
# An empty module.
LAYER = b"\0asm\1\0\0\0"


def image(file, config_type, config):
    blobs = {}

    def blob(media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        blobs["blobs/sha256/" + digest] = data
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(data)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI + "manifest.v1+json",
        "config": blob(config_type, json.dumps(config).encode()),
        "layers": [blob("application/wasm", LAYER)],
    }
    named = blob(OCI + "manifest.v1+json", json.dumps(manifest).encode())
    named["annotations"] = {"org.opencontainers.image.ref.name": "image:latest"}
    index = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [named]}
    blobs["index.json"] = json.dumps(index).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    with tarfile.open(file, "w") as archive:
        for name, data in blobs.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


layer = "sha256:" + hashlib.sha256(LAYER).hexdigest()
for file, digests in ("digests.tar", [layer]), ("empty.tar", []):
    platform = {"architecture": "amd64", "os": "linux"}
    image(file, OCI + "config.v1+json", platform | {"rootfs": {"type": "layers", "diff_ids": digests}})
image(
    "config.tar",
    "application/vnd.wasm.config.v0+json",
    {"created": "2024-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip1", "layerDigests": [layer]},
)
END
python3 images.py

# row VERSION SUITE NAME FILE
row() {
	local import=succeeds container=succeeds ctr=("$2/root/usr/bin/ctr" -a "$place/$2/socket" -n "${4%.tar}")
	"${ctr[@]}" images import "$4" >out 2>&1 ||
		import="fails ($(grep -oE 'no processor for media-type|mismatched image rootfs and manifest layers' out | head -n 1))"
	"${ctr[@]}" container create image:latest container >/dev/null 2>&1 || container=fails
	echo "$1, $3: import $import, container $container"
}

for version in 1.6.20/bookworm 1.7.24/trixie 2.1.9/forky; do
	suite=${version#*/}
	cat >"$suite/config.toml" <<-TOML
		version = 2
		root = "$place/$suite/containerd"
		state = "$place/$suite/state"
		disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
			"io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
		[grpc]
		address = "$place/$suite/socket"
	TOML
	"$suite/root/usr/bin/containerd" --config "$suite/config.toml" 2>"$suite/log" &
	until grep -q 'successfully booted' "$suite/log"; do
		kill -0 $! || { cat "$suite/log" >&2; exit 1; }
		sleep 0.1
	done
	row "${version%/*}" "$suite" 'diff_ids for the layer' digests.tar
	row "${version%/*}" "$suite" 'diff_ids empty' empty.tar
	row "${version%/*}" "$suite" 'Wasm config' config.tar
	kill $!
	wait $! || true
done
