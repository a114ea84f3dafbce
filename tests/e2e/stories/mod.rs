//! The stories, in the order of a run: the simple ones first, and last the stories that break or fill the node.
//!
//! Files:
//!
//! * `mod.rs`: this page, and the list of the stories.
//! * `jobs.rs`: programs that end.
//! * `web.rs`: HTTP components behind a service.
//! * `hands.rs`: a user's commands: logs, exec, attach, cp.
//! * `parts.rs`: parts of a pod: configuration, native containers, the node's network.
//! * `limits.rs`: limits, resource usage, crashes, and the ends of pods.
//! * `pages.rs`: the manifests of `deploy/`, unchanged.
//! * `wrong.rs`: daemons that stop, are replaced and die under 50 pods.
//! * `crowd.rs`: a hundred pods at once, on Hearth and on runc.

pub mod crowd;
pub mod hands;
pub mod jobs;
pub mod limits;
pub mod pages;
pub mod parts;
pub mod web;
pub mod wrong;

use crate::story::Story;

/// A story: panics if it does not go as it says.
pub type StoryFn = fn(&mut Story<'_>);

macro_rules! stories {
    ($($module:ident::$name:ident,)*) => {
        /// All stories, with their names.
        pub const STORIES: &[(&str, StoryFn)] = &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name),)*];
    };
}

stories! {
    jobs::a_job_succeeds,
    jobs::a_job_fails_and_describe_says_why,
    web::a_service_of_http_components_answers,
    web::probes_take_a_pod_out_of_its_service_and_restart_it,
    web::a_rollout_and_a_rollback_fail_no_request,
    web::a_port_is_forwarded,
    web::a_deleted_pod_answers_what_it_was_asked,
    hands::logs_are_followed_and_the_logs_of_a_crash_are_kept,
    hands::exec_runs_a_program_of_the_image,
    hands::attach_reaches_stdin_and_stdout,
    hands::cp_needs_a_tar_that_is_wasm,
    parts::an_update_of_a_config_map_and_a_secret_is_seen,
    parts::a_native_init_container_and_sidecar_are_beside_wasm,
    parts::an_ephemeral_container_looks_at_a_wasm_pod,
    parts::a_pod_on_the_nodes_network_has_the_nodes_address,
    parts::a_plain_linux_pod_runs_beside_them,
    parts::aliases_users_and_deadlines_of_a_pod_hold,
    limits::a_guest_beyond_its_memory_is_oom_killed,
    limits::the_summary_tells_what_a_guest_uses,
    limits::a_crash_loop_backs_off_and_comes_back,
    limits::a_pod_is_deleted_within_its_grace,
    limits::a_drain_evicts_and_an_uncordon_brings_back,
    pages::the_examples_run,
    pages::the_page_about_writing_a_pod_holds,
    pages::the_page_about_moving_holds,
    wrong::a_restart_of_containerd_fails_no_request_of_50_pods,
    wrong::an_upgrade_of_the_daemon_fails_no_request_of_50_pods,
    wrong::a_killed_daemon_is_replaced_and_50_pods_heal,
    crowd::a_hundred_pods_come_and_go,
}
