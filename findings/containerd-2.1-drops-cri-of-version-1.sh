#!/usr/bin/env bash
# containerd 2.1.9 (Debian containerd 2.1.9+ds1-5), a configuration file of version 1.
#
# Behaviour: a file without a `version` line is of version 1. containerd 1.7 warns that such a file "will be converted on
# each startup in containerd v2.0". containerd 2.1.9 reads it, ends with status 0 and drops everything the file says about
# CRI: the runtimes and the pause image. `config migrate` drops it too. An import of a file that has nothing but the line
# `version = 2` brings all of it back.
#
# Output seen (the lines of `config dump` with the file's runtime `mine` and its pause image `my/pause:1`):
#   1.7.24, the file:                          2
#   2.1.9, the file:                           0
#   2.1.9, config migrate of the file:         0
#   2.1.9, the file with an import, version 2: 2
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

old=$(unpack '1.7.24~ds1-6+deb13u1' trixie)
new=$(unpack '2.1.9+ds1-5' forky)
file=$place/config.toml
body='[plugins.cri]
sandbox_image = "my/pause:1"
[plugins.cri.containerd.runtimes.mine]
runtime_type = "io.containerd.runc.v2"'

# lines PROGRAM COMMAND TEXT: how many lines of the output are of the file's settings.
lines() {
	printf '%s\n' "$3" >"$file"
	"$1" --config "$file" config "$2" 2>/dev/null >"$place/out"
	grep -cE 'runtimes\.mine\]|my/pause:1' "$place/out" || true
}

echo 'version = 2' >"$place/import.toml"
seen=$(
	echo "1.7.24, the file: $(lines "$old" dump "$body")"
	echo "2.1.9, the file: $(lines "$new" dump "$body")"
	echo "2.1.9, config migrate of the file: $(lines "$new" migrate "$body")"
	echo "2.1.9, the file with an import, version 2: $(lines "$new" dump "imports = [\"$place/import.toml\"]
$body")"
)
echo "$seen"
[ "$seen" = "1.7.24, the file: 2
2.1.9, the file: 0
2.1.9, config migrate of the file: 0
2.1.9, the file with an import, version 2: 2" ] || {
	echo "the behaviour has changed" >&2
	exit 1
}
