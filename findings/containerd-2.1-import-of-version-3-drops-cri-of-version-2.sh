#!/usr/bin/env bash
# containerd 2.1.9 (Debian containerd 2.1.9+ds1-5), a configuration file of version 2 that imports a file of version 3.
#
# Behaviour: the imported file may be nothing but the line `version = 3`. containerd then ends with status 0 and drops
# everything the main file says about CRI: the runtimes and the pause image. Without the import, or if the imported file
# says `version = 2` or has no version line, nothing is dropped. So a drop-in has to have the version of the main file.
#
# Output seen (the lines of `config dump` with the main file's runtime `mine` and its pause image `my/pause:1`):
#   no import: 2
#   import of an empty file: 2
#   import of "version = 2": 2
#   import of "version = 3": 0
#
# Needs: apt-get of Debian 12 amd64 with a mirror. Leaves nothing behind.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

# unpack VERSION SUITE: prints the containerd of that Debian package, which is only unpacked.
unpack() {
	local private=$place/$2 source
	source=$(apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)' |
		awk '$1 == "Packages" && $2 == "Debian" && $3 == "bookworm" && $4 == "main" && !seen++ { print $5 }')
	mkdir -p "$private"/{lists/partial,cache/archives/partial,root}
	echo "deb $source $2 main" >"$private/sources.list"
	apt=(apt-get -qq -o "Dir::Etc::SourceList=$private/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$private/lists" -o "Dir::Cache=$private/cache" -o APT::Sandbox::User=root)
	"${apt[@]}" update >&2
	(cd "$private" && "${apt[@]}" download "containerd=$1") >&2
	dpkg -x "$private"/containerd_*.deb "$private/root"
	echo "$private/root/usr/bin/containerd"
}

containerd=$(unpack '2.1.9+ds1-5' forky)
file=$place/config.toml

# lines IMPORTS TEXT: how many lines of the dump are of the main file's settings, if the imported file has this text.
lines() {
	printf '%s\n' "$2" >"$place/import.toml"
	cat >"$file" <<-TOML
		version = 2
		imports = [$1]
		[plugins."io.containerd.grpc.v1.cri"]
		sandbox_image = "my/pause:1"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.mine]
		runtime_type = "io.containerd.runc.v2"
	TOML
	"$containerd" --config "$file" config dump 2>/dev/null >"$place/out"
	grep -cE 'runtimes\.mine\]|my/pause:1' "$place/out" || true
}

import="\"$place/import.toml\""
seen=$(
	echo "no import: $(lines '' '')"
	echo "import of an empty file: $(lines "$import" '')"
	echo "import of \"version = 2\": $(lines "$import" 'version = 2')"
	echo "import of \"version = 3\": $(lines "$import" 'version = 3')"
)
echo "$seen"
[ "$seen" = 'no import: 2
import of an empty file: 2
import of "version = 2": 2
import of "version = 3": 0' ] || {
	echo "the behaviour has changed" >&2
	exit 1
}
