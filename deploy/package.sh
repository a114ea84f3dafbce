#!/usr/bin/env bash
# Makes, from what `make dist shim` has built, what goes onto a node:
#
#   package.sh deb       target/package/hearth_VERSION_amd64.deb
#   package.sh tarball   target/package/hearth-VERSION-linux-amd64.tar.gz, with install.sh in it
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
out=$target/package
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The build profile whose programs are packaged: `dist` is optimised across crates.
built=$target/${HEARTH_PROFILE:-dist}
hearthd=$built/hearthd
hearthctl=$built/hearthctl
# For an upgrade test: a later revision of the same.
revision=${HEARTH_DEB_REVISION:-}
shim=$target/x86_64-unknown-linux-gnu/shim/containerd-shim-hearth-v1
# The same bytes from the same sources.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 1700000000)}
umask 022

fail() {
    echo "package: $*" >&2
    exit 1
}

shim_manual() {
    cat <<EOF
.TH CONTAINERD\\-SHIM\\-HEARTH\\-V1 8 $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d) "Hearth $version" "System Administration"
.SH NAME
containerd\\-shim\\-hearth\\-v1 \\- tells containerd where hearthd serves
.SH SYNOPSIS
.B containerd\\-shim\\-hearth\\-v1
[\\fIflags\\fR] start|delete
.SH DESCRIPTION
Started by containerd for the runtime io.containerd.hearth.v1; not meant to be run by hand.
It has to be in containerd's PATH, or named by the runtime_path of containerd's configuration.
.SH ENVIRONMENT
.TP
.B HEARTH_CONTROL_SOCKET
The control socket of hearthd, if it is not /run/hearth/control.sock.
.SH SEE ALSO
.BR hearthd (8)
EOF
}

# What both kinds of package have, below a prefix: stage ROOT PREFIX
stage() {
    local root=$1 prefix=$1$2 share=$1$2/share
    [ -x "$hearthd" ] && [ -x "$hearthctl" ] && [ -x "$shim" ] ||
        fail "hearthd, hearthctl or the shim is missing: run \`make dist shim\` first"
    install -D -m 0755 "$hearthd" "$prefix/bin/hearthd"
    install -D -m 0755 "$hearthctl" "$prefix/bin/hearthctl"
    install -D -m 0755 "$shim" "$prefix/bin/containerd-shim-hearth-v1"
    strip --strip-unneeded --remove-section=.comment --remove-section=.note "$prefix/bin/hearthd" "$prefix/bin/hearthctl"
    mkdir -p "$share/hearth" "$share/man/man8"
    cp -r --no-preserve=mode deploy/containerd deploy/kubernetes "$share/hearth/"
    chmod 0755 "$share/hearth/kubernetes/installer/node.sh"
    cp -r --no-preserve=mode dashboards "$share/hearth/"
    "$hearthctl" manual "$share/man/man8"
    gzip -9n "$share"/man/man8/hearth*.8
    mkdir -p "$share/bash-completion/completions" "$share/zsh/vendor-completions" "$share/fish/vendor_completions.d"
    "$hearthctl" completion bash >"$share/bash-completion/completions/hearthctl"
    "$hearthctl" completion zsh >"$share/zsh/vendor-completions/_hearthctl"
    "$hearthctl" completion fish >"$share/fish/vendor_completions.d/hearthctl.fish"
    shim_manual | gzip -9n >"$share/man/man8/containerd-shim-hearth-v1.8.gz"
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

# Pages that a package has beside those of deploy/: for the people who run nodes, and for those who write pods.
pages=(containers docker http interfaces isolation operations spin starts upgrades what-works)

# pages_into DIRECTORY: those of deploy/ in it, as a system has them, the others below docs/, and the links between
# them as they are there. The dashboards are in share/hearth, beside share/doc.
pages_into() {
    local to=$1 page
    mkdir -p "$to/docs"
    for page in deploy/*.md; do
        sed -e 's|](\.\./docs/|](docs/|g' -e 's|](\.\./SECURITY\.md|](SECURITY.md|g' "$page" >"$to/${page##*/}"
    done
    for page in "${pages[@]}"; do
        sed -e 's|](\.\./deploy/config\.toml)|](/etc/hearth/config.toml)|g' -e 's|](\.\./deploy/|](../|g' \
            -e 's|](\.\./dashboards/|](../../../hearth/dashboards/|g' "docs/$page.md" >"$to/docs/$page.md"
    done
    sed 's|](deploy/|](|g' SECURITY.md >"$to/SECURITY.md"
}

deb() {
    local root=$out/deb full=$version$revision size doc
    rm -rf -- "$root"
    stage "$root" /usr
    doc=$root/usr/share/doc/hearth
    install -D -m 0644 -t "$root/lib/systemd/system" deploy/systemd/*
    install -D -m 0644 -t "$root/usr/lib/sysctl.d" deploy/sysctl/90-hearth.conf
    install -D -m 0644 -t "$root/usr/share/lintian/overrides" deploy/debian/overrides
    mv "$root/usr/share/lintian/overrides/overrides" "$root/usr/share/lintian/overrides/hearth"
    mkdir -p "$root/etc/hearth" "$doc"
    "$hearthd" --print-default-config >"$root/etc/hearth/config.toml"
    pages_into "$doc"
    install -m 0644 deploy/debian/copyright "$doc/"
    printf 'hearth (%s) unstable; urgency=medium\n\n  * Release.\n\n -- The Hearth developers <hearth@localhost.localdomain>  %s\n' \
        "$full" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"

    mkdir -p "$root/DEBIAN"
    size=$(du -sk --exclude=DEBIAN "$root" | cut -f 1)
    sed -e "s/@VERSION@/$full/" -e "s/@SIZE@/$size/" deploy/debian/control.in >"$root/DEBIAN/control"
    echo /etc/hearth/config.toml >"$root/DEBIAN/conffiles"
    install -m 0755 -t "$root/DEBIAN" deploy/debian/{postinst,prerm,postrm}
    (cd "$root" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Z"${HEARTH_DEB_COMPRESSION:-xz}" --build "$root" "$out/hearth_${full}_amd64.deb" >&2
    rm -rf -- "$root"
    echo "$out/hearth_${full}_amd64.deb"
}

tarball() {
    local name=hearth-$version-linux-amd64
    local root=$out/$name
    rm -rf -- "$root"
    stage "$root" ""
    install -m 0644 -t "$root/share/hearth" deploy/systemd/* deploy/sysctl/90-hearth.conf deploy/config.toml
    pages_into "$root/share/doc/hearth"
    install -m 0644 LICENSE "$root/share/doc/hearth/"
    install -m 0755 deploy/install.sh "$root/"
    find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    tar -C "$out" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
        gzip -9n >"$out/$name.tar.gz"
    rm -rf -- "$root"
    echo "$out/$name.tar.gz"
}

[ "$(uname -m)" = x86_64 ] || fail "packages are made for amd64 only, and this is $(uname -m)"
mkdir -p "$out"
case ${1:-} in
deb | tarball) "$1" ;;
*) fail "say \`deb\` or \`tarball\`" ;;
esac
