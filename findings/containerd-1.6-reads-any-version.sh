#!/usr/bin/env bash
# containerd 1.6.20 (Debian containerd 1.6.20~ds1-1+deb12u3), the `version` line of a configuration and relative imports.
#
# Behaviour: containerd 1.6 has no upper limit for the version. It reads a file of version 3, or 99, as version 2, ends
# with status 0 and prints no warning: tables that version 3 has under new names are ignored, those with the old names are
# used. A pattern with a relative path among the imports ("*.import") matches nothing and is no error, while a relative path
# without a pattern is read. containerd 1.7.24 refuses version 3 and reads the pattern.
#
# Output seen (whether `config dump` has the handler `mine`):
#   1.6.20: version 3, table of 2: mine; version 99, table of 2: mine; version 3, table of 3: none; import: mine; pattern: none
#   1.7.24: version 3, table of 2: refused; version 99, table of 2: refused; version 3, table of 3: refused; import: mine; pattern: mine
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

table() {
	printf '[plugins."%s".containerd.runtimes.mine]\nruntime_type = "io.containerd.runc.v2"\n' "$1"
}

# handler PROGRAM TEXT: whether the dump has the handler `mine`.
handler() {
	printf '%s\n' "$2" >"$place/config.toml"
	if ! "$1" --config "$place/config.toml" config dump >"$place/out" 2>/dev/null; then
		echo refused
	elif grep -q 'runtimes\.mine\]' "$place/out"; then
		echo mine
	else
		echo none
	fi
}

of_2=$(table io.containerd.grpc.v1.cri)
of_3=$(table io.containerd.cri.v1.runtime)
printf 'version = 2\n%s\n' "$of_2" >"$place/one.import"

# row NAME PROGRAM
row() {
	echo "$1: version 3, table of 2: $(handler "$2" "version = 3
$of_2"); version 99, table of 2: $(handler "$2" "version = 99
$of_2"); version 3, table of 3: $(handler "$2" "version = 3
$of_3"); import: $(handler "$2" "version = 2
imports = ['one.import']"); pattern: $(handler "$2" "version = 2
imports = ['*.import']")"
}

bookworm=$(unpack '1.6.20~ds1-1+deb12u3' bookworm)
trixie=$(unpack '1.7.24~ds1-6+deb13u1' trixie)
seen=$(row 1.6.20 "$bookworm" && row 1.7.24 "$trixie")
echo "$seen"
[ "$seen" = '1.6.20: version 3, table of 2: mine; version 99, table of 2: mine; version 3, table of 3: none; import: mine; pattern: none
1.7.24: version 3, table of 2: refused; version 99, table of 2: refused; version 3, table of 3: refused; import: mine; pattern: mine' ] || {
	echo "the behaviour has changed" >&2
	exit 1
}
