#!/bin/sh
# What the node installer does, in a privileged container of the host's pid namespace:
#
#   node.sh            install or upgrade, label the node, and wait; at the end see whether to uninstall
#   node.sh uninstall  remove what was installed, and the label
#
# Everything is done in the host's own namespaces, by its own shell: what is needed there is a systemd, and curl or
# kubectl for the label. At its end (SIGTERM) it asks Kubernetes whether its DaemonSet is still there: if it was
# deleted, the node is cleaned; if the pod is only replaced, the node drained or the API out of reach, nothing is
# touched.
#
# Environment: NODE_NAME, POD_NAMESPACE, DAEMONSET; PREFIX (/opt/hearth); RESTART_CONTAINERD (false): whether
# containerd may be restarted when its configuration was changed, which loses no running container;
# CONTAINERD_ARGS: more arguments of `hearthctl install containerd`.
set -eu

prefix=${PREFIX:-/opt/hearth}
# The release's files, on the host: install.sh needs them there.
stage=$prefix/installer
label=hearth-runtime
account=/var/run/secrets/kubernetes.io/serviceaccount
api=${KUBERNETES_API:-https://${KUBERNETES_SERVICE_HOST:-}:${KUBERNETES_SERVICE_PORT:-443}}

say() {
    echo "hearth-installer: $*"
}

fail() {
    say "$*" >&2
    exit 1
}

host() {
    busybox nsenter -t 1 -m -u -i -n -p -- /usr/bin/env \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# request METHOD PATH [BODY]: asks Kubernetes; says the status, the answer is in $answer.
request() {
    token=$(busybox cat "$account/token" 2>/dev/null || true)
    body=${3:-}
    host sh -c '
        ca=$1 token=$2 method=$3 url=$4 body=$5
        set -- --silent --show-error --max-time 10 --request "$method" --write-out "\n%{http_code}"
        [ -z "$token" ] || set -- "$@" --cacert "$ca" --header @-
        [ -z "$body" ] || set -- "$@" --header "Content-Type: application/strategic-merge-patch+json" --data "$body"
        printf "Authorization: Bearer %s\n" "$token" | curl "$@" "$url"
    ' sh "/proc/$$/root$account/ca.crt" "$token" "$1" "$api$2" "$body"
}

# set_label VALUE: a JSON string, or null to remove it.
set_label() {
    if host sh -c 'command -v curl' >/dev/null 2>&1; then
        said=$(request PATCH "/api/v1/nodes/$NODE_NAME" "{\"metadata\":{\"labels\":{\"$label\":$1}}}") || said="$said
000"
        case ${said##*
} in
        200) ;;
        404) say "the node $NODE_NAME is gone" ;;
        *) fail "cannot label the node: $said" ;;
        esac
    elif host sh -c 'command -v kubectl' >/dev/null 2>&1; then
        change=$label=true
        [ "$1" != null ] || change=$label-
        host kubectl --server "$api" --certificate-authority "/proc/$$/root$account/ca.crt" \
            --token "$(busybox cat "$account/token")" label --overwrite node "$NODE_NAME" "$change"
    else
        fail "the node has neither curl nor kubectl: label it yourself, with kubectl label node $NODE_NAME $label=true"
    fi
}

install() {
    host mkdir -p "$stage.new"
    # (By the host's root, so that it does not matter where the image's files are.)
    busybox tar -C /hearth -cf - . | host tar -C "$stage.new" --no-same-owner -xf -
    host rm -rf "$stage"
    host mv "$stage.new" "$stage"
    host "$stage/install.sh" --prefix "$prefix"
    restart=
    [ "${RESTART_CONTAINERD:-false}" != true ] || restart=--restart
    # shellcheck disable=SC2086  # arguments, separated by blanks
    host "$prefix/bin/hearthctl" install containerd --runtime-path "$prefix/bin/containerd-shim-hearth-v1" \
        $restart ${CONTAINERD_ARGS:-}
    set_label '"true"'
    say "the node $NODE_NAME runs pods of the class hearth"
}

uninstall() {
    set_label null || true
    if host test -x "$prefix/bin/hearthctl"; then
        restart=
        [ "${RESTART_CONTAINERD:-false}" != true ] || restart=--restart
        # shellcheck disable=SC2086
        host "$prefix/bin/hearthctl" uninstall containerd --runtime-path "$prefix/bin/containerd-shim-hearth-v1" \
            $restart ${CONTAINERD_ARGS:-}
    fi
    if host test -x "$stage/install.sh"; then
        host "$stage/install.sh" --prefix "$prefix" --uninstall
    fi
    host rm -rf "$stage"
    host rmdir "$prefix" 2>/dev/null || true
    say "the node $NODE_NAME is as before"
}

# Whether the DaemonSet was deleted. What cannot be told is a no.
is_deleted() {
    host sh -c 'command -v curl' >/dev/null 2>&1 || return 1
    said=$(request GET "/apis/apps/v1/namespaces/$POD_NAMESPACE/daemonsets/$DAEMONSET") || return 1
    case ${said##*
} in
    404) return 0 ;;
    200) case $said in *'"deletionTimestamp"'*) return 0 ;; esac ;;
    *) say "cannot ask for the DaemonSet, so nothing is removed: $said" ;;
    esac
    return 1
}

end() {
    trap '' TERM INT
    if is_deleted; then
        uninstall
    else
        say "the DaemonSet is still there: nothing is removed"
    fi
    exit 0
}

: "${NODE_NAME:?the name of the node is missing: see daemonset.yaml}"
case ${1:-} in
uninstall) uninstall ;;
'')
    : "${POD_NAMESPACE:?}" "${DAEMONSET:?}"
    trap end TERM INT
    install
    # A shell runs its traps between commands.
    while :; do
        busybox sleep 3600 &
        wait $! || true
    done
    ;;
*) fail "unknown command $1" ;;
esac
