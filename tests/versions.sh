#!/usr/bin/env bash
# The stories on other versions of containerd than the machine's own: 1.7 of Debian 13 (trixie) and 2.x of
# its next release (forky). runc is always the machine's.
#
# versions.sh smoke   a few stories on the other versions; a version that cannot be fetched is reported versions.sh all
# every story on every version, services in all languages among them (compiling one takes
#                       long); a version that cannot be fetched is a failure
#
# On 2.x the stories about pods run a second time, with pods that hearthd's sandbox controller makes.
set -euo pipefail
cd "$(dirname "$0")/.."

suites=(trixie forky)
# A life, its events, both ends of a restart; then the same of a pod.
smoke=(
    programs::the_exit_code_is_the_programs
    lifecycle::events_come_in_the_order_of_a_life
    lifecycle::a_detached_task_is_listed_killed_and_removed
    restarts::a_restart_of_containerd_loses_no_task
    restarts::a_killed_daemon_is_replaced_and_nothing_stale_remains
    stdio::ten_megabytes_pass_through_unchanged
    pods::a_pod_prints_to_its_log_and_exits
    pods::a_container_is_stopped_within_its_grace
    pods::two_containers_of_one_pod_live_and_end_apart
    pods::a_restart_of_containerd_loses_no_pod
    pods::the_memory_a_container_uses_is_told_within_five_per_cent
    pods::typed_input_reaches_a_containers_stdin
    deploy::the_runtime_is_added_to_a_configuration_of_containerd_1
    deploy::the_runtime_is_imported_by_containerd_2
    deploy::hearthctl_puts_the_runtime_into_a_configuration_and_takes_it_out
    deploy::a_pod_runs_by_each_version_of_the_configuration_that_hearthctl_writes
    service::a_passed_socket_outlives_the_daemon_and_a_start_waits_for_the_next
)

# The same with the sandbox controller.
sandboxer_smoke=(
    sandboxer::a_pod_costs_no_process_of_containerds
    sandboxer::a_daemon_that_stops_ends_its_pods
    sandboxer::only_root_may_ask
    sandboxer::pods_of_a_daemon_that_is_gone_are_not_ready_and_can_be_removed
    sandboxer::pods_outlive_restarts_of_containerd
    sandboxer::upgrades_under_load_fail_no_pod_and_the_old_daemon_answers_for_its_own
    sandboxer::wrong_requests_are_refused_and_harm_no_pod
    upgrade::a_pod_gets_new_containers_from_the_daemon_that_has_its_sandbox
    deploy::a_pod_runs_by_each_version_of_the_configuration_that_hearthctl_writes
    native::a_sidecar_shares_the_network_and_the_name_of_its_pod
    native::native_containers_end_with_the_daemon
    pod_network::names_are_looked_up_as_the_pod_says
    pods::a_pod_prints_to_its_log_and_exits
    pods::a_restart_of_containerd_loses_no_pod
    pods::single_files_are_bound_into_a_container
    pods::two_containers_of_one_pod_live_and_end_apart
)
# The modules of stories about pods.
pods=(pods:: pod_network:: native:: http:: sandboxer:: upgrade::)

results=()
failed=0

# stories NAME [STORY...]
stories() {
    local name=$1
    shift
    echo "=== $name: $("${HEARTH_TEST_CONTAINERD:+$HEARTH_TEST_CONTAINERD/}containerd" --version)"
    if "${CARGO:-cargo}" test --release --workspace --locked --test it -- "$@"; then
        results+=("$name: passed")
    else
        results+=("$name: FAILED")
        failed=1
    fi
}

case ${1:-} in
smoke)
    filter=(--exact "${smoke[@]}")
    sandboxer_filter=(--exact "${sandboxer_smoke[@]}")
    missing_fails=0
    ;;
all)
    filter=()
    sandboxer_filter=("${pods[@]}")
    missing_fails=1
    export HEARTH_TEST_PROGRAMS=all
    stories "the machine's own"
    ;;
*)
    echo "versions.sh: say \`smoke\` or \`all\`" >&2
    exit 2
    ;;
esac
for suite in "${suites[@]}"; do
    if directory=$(deploy/fetch-containerd.sh "$suite"); then
        HEARTH_TEST_CONTAINERD=$directory stories "$suite" "${filter[@]}"
        [ "$suite" != forky ] || HEARTH_TEST_SANDBOXER=1 HEARTH_TEST_CONTAINERD=$directory \
            stories "$suite, with the sandbox controller" "${sandboxer_filter[@]}"
    else
        results+=("$suite: NOT TESTED, its containerd could not be fetched (see above)")
        failed=$((failed | missing_fails))
    fi
done
echo "=== ${1} on other versions of containerd"
printf '%s\n' "${results[@]}"
exit "$failed"
