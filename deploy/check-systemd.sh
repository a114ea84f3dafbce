#!/usr/bin/env bash
# check-systemd.sh OLD.deb NEW.deb GUESTS [IMAGE]: what "Run it on your nodes" says, on a private machine with a systemd and a
# containerd of its own: from nothing to a container, a restart, an upgrade, a crash, a stop, a removal.
#
# The machine is an overlay over this one's root, or over the unpacked Debian that HEARTH_DEBIAN_ROOT names, in
# namespaces of its own. Nothing of this machine changes. GUESTS is a directory with images: hello.tar, sleep.tar,
# await.tar. With the installer's IMAGE, that is run, too, as its pod would, and a stand-in for Kubernetes' API
# answers it.
set -euo pipefail
old=$(realpath "$1") new=$(realpath "$2") guests=$(realpath "$3") image=${4:+$(realpath "$4")}
below=${HEARTH_DEBIAN_ROOT:-/}
name=hearth-check-$$
work=$(mktemp -d)
runner=

fail() {
    echo "check: $*" >&2
    for log in "$work"/*.log; do
        [ ! -s "$log" ] || { echo "--- the end of ${log##*/}:" && tail -n 40 "$log"; } >&2
    done
    exit 1
}

# A control group of its own for systemd, in each hierarchy that it may look at.
cgroups=()
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [ ! -e "$hierarchy/cgroup.procs" ] || cgroups+=("$hierarchy/$name")
done

clean() {
    trap - EXIT INT TERM
    [ -z "$runner" ] || { kill -KILL "$runner" 2>/dev/null && wait "$runner" 2>/dev/null; } || true
    for cgroup in "${cgroups[@]}"; do
        for _ in $(seq 100); do
            find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$cgroup" ] || break
            sleep 0.05
        done
    done
    rm -rf -- "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

# In all namespaces: makes the root, and becomes its systemd.
cat >"$work/boot" <<'EOS'
set -euo pipefail
below=$1 shared=$2
root=/mnt/root
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/{upper,work,root}
mount -t overlay -o "lowerdir=$below,upperdir=/mnt/upper,workdir=/mnt/work" overlay $root
mkdir -p $root/{proc,run,dev,sys,tmp,check,upper}
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
# (An overlay cannot have its upper directory on another, which is where containerd would put it.)
mkdir -p $root/var/lib/containerd
mount -t tmpfs tmpfs $root/var/lib/containerd
mount --bind "$shared" $root/check
mount --bind /mnt/upper $root/upper
mount -t tmpfs -o mode=755 tmpfs $root/dev
while read -r node major minor; do
    mknod -m 666 "$root/dev/$node" c "$major" "$minor"
done <<'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
mkdir $root/dev/{shm,pts}
mount -t devpts -o newinstance,ptmxmode=0666 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
# Nothing of this machine is started but what the check starts.
rm -rf $root/etc/systemd/system
mkdir -p $root/etc/systemd/system
ln -s /dev/null $root/etc/systemd/system/systemd-journald.service
printf '[Unit]\nDescription=Check\n' >$root/etc/systemd/system/check.target
for unit in hearthd containerd; do
    mkdir -p $root/run/systemd/system/$unit.service.d
    printf '[Service]\nStandardOutput=append:/check/%s.log\nStandardError=append:/check/%s.log\n' $unit $unit \
        >$root/run/systemd/system/$unit.service.d/log.conf
done
# What keeps packages from starting anything in a container.
rm -f $root/usr/sbin/policy-rc.d
rm -f $root/usr/bin/hearth* $root/usr/bin/containerd-shim-hearth-v1
cd $root
mkdir -p outside
pivot_root . outside
umount -l /outside
export container=hearth-check PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec /lib/systemd/systemd --system --unit=check.target --log-target=console --show-status=no
EOS

for cgroup in "${cgroups[@]}"; do mkdir "$cgroup"; done
(
    for cgroup in "${cgroups[@]}"; do echo "$BASHPID" >"$cgroup/cgroup.procs"; done
    exec unshare --pid --mount --cgroup --uts --ipc --net --fork --kill-child=KILL \
        bash "$work/boot" "$below" "$work" </dev/null >"$work/systemd.log" 2>&1
) &
runner=$!

# until_ WHAT CONDITION...: waits for it.
until_() {
    local what=$1
    shift
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "not within a minute: $what"
}
systemd_pid() {
    init=$(pgrep -P "$runner" -x systemd)
}
until_ "systemd starts" systemd_pid
on() {
    nsenter --target "$init" --all -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        DEBIAN_FRONTEND=noninteractive HOME=/root "$@"
}
is_running() {
    [ "$(on systemctl is-system-running 2>/dev/null)" = running ]
}
until_ "systemd is up" is_running
# step COMMAND: of the documentation.
step() {
    echo "check: # $*"
    on "$@" >>"$work/steps.log" 2>&1 || fail "$* ($?)"
}
# shell COMMAND: of the documentation, with redirections or pipes.
shell() {
    echo "check: # $1"
    on sh -c "$1" >"$work/said" 2>&1 || fail "$1: $(cat "$work/said")"
}
# That of the hearthd that takes new pods.
main_pid() {
    on hearthctl generations | awk '$4 == "yes" { print $2 }'
}
status_of() {
    on ctr tasks ls | awk -v id="$1" '$1 == id { print $3 }'
}
is_status() {
    [ "$(status_of "$1")" = "$2" ]
}
generations() {
    on hearthctl generations | tail -n +2 | wc -l
}
are_generations() {
    [ "$(generations)" = "$1" ]
}
hello() {
    on ctr run --rm --runtime io.containerd.hearth.v1 hearth.test/hello:1 "$1" >>"$work/steps.log" 2>&1 ||
        fail "cannot run $1"
}
# awaiting ID CODE: a container that ends with the code once /check/ID/go is there; its client is told.
awaiting() {
    mkdir "$work/$1"
    on ctr run --detach --null-io --runtime io.containerd.hearth.v1 \
        --mount "type=bind,src=/check/$1,dst=/signals,options=rbind:ro" hearth.test/await:1 "$1" \
        /await.wasm /signals/go "$2" >>"$work/steps.log" 2>&1 || fail "cannot start $1"
}
# ended ID CODE: it comes to its end, and containerd is told how.
ended() {
    until_ "containerd knows of the end of $1" is_status "$1" STOPPED
    on ctr tasks rm "$1" >"$work/said" 2>&1 || fail "cannot remove $1: $(cat "$work/said")"
    # (It says nothing of a 0.)
    [ "$2" = 0 ] && [ ! -s "$work/said" ] || grep -q "exit code $2\"" "$work/said" ||
        fail "$1 did not end with $2: $(cat "$work/said")"
    on ctr containers rm "$1" >>"$work/steps.log" 2>&1 || fail "cannot remove $1"
}
# told_of ID CODE: containerd has passed the end on. (It forgets a task whose hearthd has gone.)
told_of() {
    grep -q "/tasks/exit.*\"container_id\":\"$1\".*\"exit_status\":$2[,}]" "$work/events.log"
}
# unit_with LINE...: a drop-in of this machine's own; without lines it goes.
unit_with() {
    local drop_in=/etc/systemd/system/hearthd.service.d/check.conf
    if [ $# -gt 0 ]; then
        printf '%s\n' '[Service]' "$@" >"$work/check.conf"
        on install -D -m 0644 /check/check.conf "$drop_in"
    else
        on rm -r "${drop_in%/*}"
    fi
    on systemctl daemon-reload
}
sleeper() {
    on ctr run --detach --null-io --runtime io.containerd.hearth.v1 hearth.test/sleep:1 "$1" /sleep.wasm 3600 \
        >>"$work/steps.log" 2>&1 || fail "cannot start $1"
}
cp "$old" "$work/hearth_old.deb"
cp "$new" "$work/hearth_new.deb"
cp "$guests"/*.tar "$work/"

# --- from nothing to a container
on systemctl start containerd >>"$work/steps.log" 2>&1 || fail "containerd does not start"
step apt-get install --yes --no-install-recommends /check/hearth_old.deb
step hearthctl install containerd --dry-run
step hearthctl install containerd
step systemctl restart containerd
[ "$(on systemctl is-active hearthd.service hearthd.socket | sort -u)" = active ] || fail "hearthd is not active"
for guest in hello sleep await; do
    on ctr images import "/check/$guest.tar" >>"$work/steps.log" 2>&1 || fail "cannot import $guest.tar"
done
step ctr run --rm --runtime io.containerd.hearth.v1 hearth.test/hello:1 hello
on ctr events >"$work/events.log" 2>&1 &
events=$!
sleeper before
awaiting told 7

# --- a restart, and reloads
pid=$(main_pid)
step systemctl restart hearthd
[ "$(main_pid)" != "$pid" ] || fail "a restart left the old hearthd in charge"
is_status before RUNNING || fail "a restart lost a container"
sleeper between
are_generations 2 || fail "$(on hearthctl generations)"
on sed -i 's/^# tasks_max = .*/tasks_max = 77/' /etc/hearth/config.toml
step hearthd --check-config
step systemctl reload hearthd
on sed -i 's/^# pool_slots = .*/pool_slots = 77/' /etc/hearth/config.toml
! on systemctl reload hearthd 2>/dev/null || fail "a reload took what needs a restart"
grep -q "engine.pool_slots" "$work/hearthd.log" || fail "a reload does not say what needs a restart"
on sed -i 's/^pool_slots = .*/# pool_slots = 1_000/' /etc/hearth/config.toml

# --- restarts under load
cat >"$work/load" <<'EOS'
n=0
while [ ! -e /check/over ]; do
    n=$((n + 1))
    ctr run --rm --null-io --runtime io.containerd.hearth.v1 hearth.test/hello:1 "load-$1-$n" >>/check/load.log 2>&1 ||
        echo "load-$1-$n" >>/check/load.failed
    echo >>"/check/load.$1"
done
EOS
for starter in 1 2; do on sh /check/load $starter & done
started() {
    cat "$work"/load.[12] 2>/dev/null | wc -l
}
has_started() {
    [ "$(started)" -ge "$1" ]
}
for _ in $(seq 10); do
    until_ "the load goes on" has_started $(($(started) + 6))
    step systemctl restart hearthd
done
touch "$work/over"
wait $(jobs -p | grep -vx -e "$runner" -e "$events")
[ ! -e "$work/load.failed" ] || fail "starts failed amid restarts: $(cat "$work/load.failed")"
for id in before between told; do is_status $id RUNNING || fail "restarts lost $id"; done

# --- new versions that are wrong, and one that is right
on sed -i 's/^tasks_max = .*/task_max = 77/' /etc/hearth/config.toml
! on systemctl restart hearthd 2>/dev/null || fail "a hearthd with a wrong configuration is taken for one that serves"
grep -q "did you mean tasks_max" "$work/hearthd.log" || fail "a wrong configuration is not named"
sleeper meanwhile
# More than a socket unit's usual limit of activations: each start has systemd try again.
for n in $(seq 30); do hello "wrong-$n"; done
on sed -i 's/^task_max = .*/tasks_max = 77/' /etc/hearth/config.toml
step systemctl restart hearthd
unit_with ExecStart= ExecStart=/bin/false
! on systemctl restart hearthd 2>/dev/null || fail "a hearthd that ends at once is taken for one that serves"
for n in $(seq 10); do hello "false-$n"; done
unit_with
step systemctl restart hearthd
step apt-get install --yes --no-install-recommends /check/hearth_new.deb
[ "$(on systemctl is-active hearthd.service)" = active ] || fail "hearthd is not active after an upgrade"
step hearthctl generations
for id in before between meanwhile told; do is_status $id RUNNING || fail "an upgrade lost $id"; done
touch "$work/told/go"
ended told 7
sleeper after
on grep -q '^tasks_max = 77' /etc/hearth/config.toml || fail "an upgrade lost the configuration"
# Those whose tasks have ended leave.
for id in before between meanwhile; do on ctr tasks rm --force $id >>"$work/steps.log" 2>&1 || fail "cannot remove $id"; done
until_ "the old hearthds leave" are_generations 1
is_status after RUNNING || fail "the end of the old hearthds lost a container"

# --- a crash of what stands for hearthd, which is no crash of hearthd
stands() {
    on systemctl show --property MainPID --value hearthd.service
}
pid=$(stands)
on kill -KILL "$pid"
stands_again() {
    [ "$(on systemctl is-active hearthd.service)" = active ] && [ "$(stands)" != "$pid" ]
}
until_ "systemd starts it again" stands_again
is_status after RUNNING || fail "the end of the unit's main process lost a container"

# --- a crash
crashes() {
    grep -c "did not stop cleanly" "$work/hearthd.log" || true
}
before=$(crashes)
# (With the one that has handed over, should it still be there.)
on kill -KILL $(on hearthctl generations | awk 'NR > 1 { print $2 }')
has_restarted() {
    [ "$(on systemctl is-active hearthd.service)" = active ] && [ -n "$(main_pid)" ]
}
until_ "hearthd is started again" has_restarted
[ "$(crashes)" = $((before + 1)) ] || fail "there is not one line about the crash"
until_ "containerd lets go of the container of the crash" on ctr containers rm after
[ "$(on find /run/hearth/s -mindepth 1 -maxdepth 1 | wc -l)" = 1 ] || fail "left: $(on find /run/hearth/s)"

# --- one that hangs
unit_with WatchdogSec=2
step systemctl restart hearthd
sleeper hung
pid=$(main_pid)
on kill -STOP "$pid"
is_another() {
    [ "$(on systemctl is-active hearthd.service)" = active ] && [ ! -e "/proc/$init/root/proc/$pid" ]
}
until_ "the watchdog has it started again" is_another
until_ "containerd lets go of the container that hung" on ctr containers rm hung
unit_with
step systemctl restart hearthd

# --- a stop: of the service, whose socket starts it again; and one that lets containers come to their end
sleeper last
step systemctl stop hearthd.service
until_ "containerd knows how it ended" told_of last 137
until_ "containerd lets go of it" on ctr containers rm last
[ "$(on systemctl is-active hearthd.service)" = inactive ] || fail "a stop did not stop it"
hello activated
[ "$(on systemctl is-active hearthd.service)" = active ] || fail "a start did not start hearthd by its socket"
on sed -i 's/^# stop_drain_seconds = .*/stop_drain_seconds = 3600/' /etc/hearth/config.toml
unit_with TimeoutStopSec=1
step systemctl reload hearthd
awaiting slow 9
on systemctl stop --no-block hearthd.service hearthd.socket
is_waiting() {
    grep -q "waits for the tasks to end" "$work/hearthd.log"
}
until_ "a stop waits" is_waiting
# Beyond the time that the unit gives it.
is_late() {
    [ "$(($(on date +%s) - $(stat -c %Y "$work/stopping")))" -ge 3 ]
}
touch "$work/stopping"
until_ "the unit's time is over" is_late
is_status slow RUNNING || fail "a stop that is to wait has not waited"
touch "$work/slow/go"
ended slow 9
is_stopped() {
    [ "$(on systemctl is-active hearthd.service)" = inactive ]
}
until_ "the stop comes to its end" is_stopped
unit_with
on sed -i 's/^stop_drain_seconds = .*/# stop_drain_seconds = 0/' /etc/hearth/config.toml
step systemctl start hearthd.socket hearthd.service
sleeper last
step systemctl restart hearthd
sleeper younger

# --- a removal: the tasks of all generations end
step hearthctl uninstall containerd
step systemctl restart containerd
# Once more by hand; this file names no runtime of its own.
step cp -a /etc/containerd/config.toml /etc/containerd/config.toml.before-hearth
shell "cat /usr/share/hearth/containerd/append-v2-runc.toml >> /etc/containerd/config.toml"
shell "cat /usr/share/hearth/containerd/append-v2.toml >> /etc/containerd/config.toml"
shell "containerd config dump | grep -A 1 'runtimes\.'"
[ "$(grep -c 'runtimes\.\(hearth\|runc\)\]' "$work/said")" = 2 ] || fail "not both runtimes: $(cat "$work/said")"
on mv /etc/containerd/config.toml.before-hearth /etc/containerd/config.toml
step systemctl restart containerd
step apt-get purge --yes hearth
until_ "containerd knows of the end" is_status last ""
[ -z "$(on pgrep hearthd || true)" ] || fail "left running: $(on pgrep -a hearthd)"
left=$(on find /upper -not -type d -printf '/%P\n' | grep -E 'hearth' | grep -vE '^/var/(lib/(dpkg|apt|systemd)|log|cache)/' || true)
[ -z "$left" ] || fail "left after a purge:"$'\n'"$left"
! on grep -q hearth /etc/containerd/config.toml || fail "containerd's configuration still has hearth in it"
echo "check: installed, restarted, upgraded, crashed, stopped and removed under a systemd of its own; no container was lost but to a crash or a stop"

[ -n "$image" ] || exit 0
# --- the installer: what its pod does on a node
if ! on sh -c 'command -v python3 && command -v curl' >/dev/null 2>&1; then
    echo "check: NOT CHECKED: the installer (python3 and curl are missing)" >&2
    exit 0
fi
# It writes down what it is asked, and knows of a DaemonSet until /check/deleted is there.
cat >"$work/api.py" <<'EOS'
import http.server, os
class Api(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        with open("/check/api.asked", "a") as log:
            log.write(f"{self.command} {self.path} {body}\n")
        gone = "daemonsets" in self.path and os.path.exists("/check/deleted")
        self.send_response(404 if gone else 200)
        self.end_headers()
        self.wfile.write(b'{"metadata":{}}')
    do_GET = do_PATCH = answer
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", 8099), Api).serve_forever()
EOS
on ip link set lo up
on setsid python3 /check/api.py >>"$work/steps.log" 2>&1 &
until_ "the stand-in for the API answers" on curl --silent http://127.0.0.1:8099/
cp "$image" "$work/installer.tar"
on ctr images import /check/installer.tar >>"$work/steps.log" 2>&1 || fail "cannot import the installer's image"
reference=$(on ctr images ls --quiet | grep hearth-installer)
# Privileged, in the host's network and pids, with the environment that the manifest gives it. It has containerd
# restarted, which does not end it. (Without a share of the processors: the controller may be missing.)
installer() {
    : >"$work/installer.log"
    on ctr run --detach --privileged --cpu-shares 0 --net-host --with-ns pid:/proc/1/ns/pid --log-uri file:///check/installer.log \
        --env NODE_NAME=check --env POD_NAMESPACE=hearth-system --env DAEMONSET=hearth-installer \
        --env PREFIX=/opt/hearth --env RESTART_CONTAINERD=true --env KUBERNETES_API=http://127.0.0.1:8099 \
        "$reference" installer >>"$work/steps.log" 2>&1 || fail "the installer's container does not start"
    until_ "the installer is done" grep -q "runs pods of the class hearth" "$work/installer.log"
}
end_installer() {
    on ctr tasks kill --signal SIGTERM installer >>"$work/steps.log" 2>&1 || fail "the installer takes no signal"
    ended installer 0
}
installer
grep -qF 'PATCH /api/v1/nodes/check {"metadata":{"labels":{"hearth-runtime":"true"}}}' "$work/api.asked" ||
    fail "the installer did not label the node: $(cat "$work/api.asked")"
on ctr run --rm --runtime /opt/hearth/bin/containerd-shim-hearth-v1 hearth.test/hello:1 hello >>"$work/steps.log" 2>&1 ||
    fail "no container runs after the installer"
end_installer
on test -x /opt/hearth/bin/hearthd || fail "an installer that was only replaced has uninstalled"
installer
touch "$work/deleted"
end_installer
grep -qF '{"metadata":{"labels":{"hearth-runtime":null}}}' "$work/api.asked" || fail "the installer left its label"
! on test -e /opt/hearth || fail "the installer left $(on find /opt/hearth)"
! on grep -q hearth /etc/containerd/config.toml || fail "the installer left containerd's configuration changed"
on ctr images rm --sync "$reference" >>"$work/steps.log" 2>&1 || fail "the installer's image cannot be removed"
left=$(on find /upper -not -type d -printf '/%P\n' | grep -E 'hearth' | grep -vE '^/var/(lib/(dpkg|apt|systemd)|log|cache)/' || true)
[ -z "$left" ] || fail "the installer left:"$'\n'"$left"
echo "check: the installer's image installed, labelled, and uninstalled when its DaemonSet was deleted, and only then"
