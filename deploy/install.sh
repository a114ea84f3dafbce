#!/bin/sh
# Puts Hearth onto a node that has no dpkg (k3s, kind, a read-only /usr), from the unpacked tarball:
#
#   install.sh [--prefix DIR]               install or upgrade; default /usr/local
#   install.sh [--prefix DIR] --uninstall   remove what was installed, and the module store
#
# --root DIR puts everything below DIR (an image under construction) and tells systemd nothing.
# Programs go to PREFIX/bin, the rest to PREFIX/share; only units (/etc/systemd/system), the sysctl drop-in
# (/etc/sysctl.d) and the configuration (/etc/hearth) go where the system looks for them. A hearthd that runs is
# replaced: it serves the pods it has, and leaves with the last of them. containerd is never restarted.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
prefix=/usr/local
root=
action=install

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --root)
        [ $# -ge 2 ] || fail "$1 needs a directory"
        case $2 in /*) ;; *) fail "$1 needs an absolute path, not $2" ;; esac
        [ "$1" = --prefix ] && prefix=${2%/} || root=${2%/}
        shift
        ;;
    --uninstall) action=uninstall ;;
    -h | --help)
        sed -n 's/^# \{0,1\}//p' "$0" | sed -n '2,11p'
        exit 0
        ;;
    *) fail "unknown option $1; see --help" ;;
    esac
    shift
done
[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || fail "not root"

# What was installed, a path a line; the uninstallation goes by it.
list=$prefix/share/hearth/installed-files
live() {
    [ -z "$root" ] && [ -d /run/systemd/system ]
}

# put MODE SOURCE DESTINATION: in one step, so that a running program is replaced and not written to.
put() {
    mkdir -p "$root$(dirname "$3")"
    cp "$2" "$root$3.new"
    chmod "$1" "$root$3.new"
    mv -f "$root$3.new" "$root$3"
    echo "$3" >>"$root$list.new"
}

do_install() {
    [ -x "$here/bin/hearthd" ] || fail "$here has no bin/hearthd: run this from the unpacked tarball"
    mkdir -p "$root$prefix/share/hearth"
    : >"$root$list.new"
    for program in hearthd hearthctl containerd-shim-hearth-v1; do
        put 0755 "$here/bin/$program" "$prefix/bin/$program"
    done
    (cd "$here/share" && find . -type f) | while read -r file; do
        case $file in
        ./hearth/*.service | ./hearth/*.socket | ./hearth/90-hearth.conf | ./hearth/config.toml) ;;
        *) put 0644 "$here/share/$file" "$prefix/share/${file#./}" ;;
        esac
    done
    put 0644 "$here/share/hearth/hearthd.socket" /etc/systemd/system/hearthd.socket
    sed "s|/usr/bin/hearth|$prefix/bin/hearth|" "$here/share/hearth/hearthd.service" >"$root$prefix/share/hearth/unit"
    put 0644 "$root$prefix/share/hearth/unit" /etc/systemd/system/hearthd.service
    rm "$root$prefix/share/hearth/unit"
    put 0644 "$here/share/hearth/90-hearth.conf" /etc/sysctl.d/90-hearth.conf
    # The configuration belongs to whoever edits it.
    [ -e "$root/etc/hearth/config.toml" ] || {
        mkdir -p "$root/etc/hearth"
        cp "$here/share/hearth/config.toml" "$root/etc/hearth/config.toml"
    }
    cp "$here/share/hearth/config.toml" "$root$prefix/share/hearth/config.toml"
    echo "$prefix/share/hearth/config.toml" >>"$root$list.new"
    # What an older release had and this one has not.
    if [ -e "$root$list" ]; then
        sort "$root$list.new" >"$root$list.sorted"
        sort "$root$list" | comm -23 - "$root$list.sorted" | while read -r file; do rm -f "$root$file"; done
        rm "$root$list.sorted"
    fi
    mv "$root$list.new" "$root$list"
    if live; then
        running=no
        if systemctl --quiet is-active hearthd.service || systemctl --quiet is-failed hearthd.service; then
            running=yes
        fi
        sysctl --quiet --load /etc/sysctl.d/90-hearth.conf || true
        systemctl daemon-reload
        systemctl --quiet enable hearthd.socket hearthd.service
        if [ "$running" = yes ]; then
            systemctl restart hearthd.service ||
                echo "the new hearthd does not start, and the old one goes on; see journalctl -u hearthd" >&2
        else
            systemctl start hearthd.socket hearthd.service
        fi
    fi
    case :/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin: in
    *:$prefix/bin:*) shim= ;;
    *) shim=" --runtime-path $prefix/bin/containerd-shim-hearth-v1" ;;
    esac
    echo "installed below $prefix; then: $prefix/bin/hearthctl install containerd$shim"
}

do_uninstall() {
    [ -e "$root$list" ] || fail "nothing is installed below $prefix: $root$list is missing"
    if live; then
        systemctl --quiet disable --now hearthd.socket hearthd.service || true
    fi
    if [ -z "$root" ]; then
        # One that was started by hand, or that went on because a newer one did not start.
        "$prefix/bin/hearthctl" stop || true
    fi
    ! cmp -s "$root$prefix/share/hearth/config.toml" "$root/etc/hearth/config.toml" || rm "$root/etc/hearth/config.toml"
    while read -r file; do rm -f "$root$file"; done <"$root$list"
    rm -f "$root$list"
    rm -rf "$root/var/lib/hearth" "$root/run/hearth"
    # Directories of ours, then those that are left empty.
    find "$root$prefix/share/hearth" "$root$prefix/share/doc/hearth" -depth -type d -exec rmdir {} + 2>/dev/null || true
    for directory in /etc/hearth "$prefix/share/bash-completion/completions" "$prefix/share/bash-completion" \
        "$prefix/share/zsh/vendor-completions" "$prefix/share/zsh" "$prefix/share/fish/vendor_completions.d" \
        "$prefix/share/fish" "$prefix/share/man/man8" "$prefix/share/man" "$prefix/share/doc" \
        "$prefix/share" "$prefix/bin" "$prefix"; do
        rmdir "$root$directory" 2>/dev/null || true
    done
    if live; then
        systemctl daemon-reload
    fi
    if [ -e "$root/etc/hearth/config.toml" ]; then
        echo "kept /etc/hearth/config.toml, which was changed"
    fi
}

"do_$action"
