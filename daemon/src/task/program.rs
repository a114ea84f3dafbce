//! The checks of a program that Create and Exec share: which file to look for, the pod for which its module is compiled,
//! whether the memory it starts with is within the limit, how many files it may have open.

use hearth_base::bundle::ProcessSpec;
use hearth_base::error::Result;
use hearth_base::wanted::Wanted;
use hearth_observe::starts::About;
use hearth_wasm::command::over_memory;
use hearth_wasm::engine::Program;
use hearth_wasm::modules::turns::Owner;

/// The file to look for; `None` if the spec names no program.
pub(super) fn wanted(spec: &ProcessSpec) -> Option<Wanted> {
    let program = spec.args.first()?.clone();
    Some(Wanted { program, path: spec.path().map(str::to_string), cwd: spec.cwd.clone() })
}

/// The pod for which a container's modules are compiled; the container itself if it has none.
pub(super) fn owner(about: &About) -> Owner {
    match &about.pod {
        Some(pod) => Owner::new(&pod.namespace, &pod.name),
        None => Owner::new(&about.namespace, &about.id),
    }
}

/// Checks the memory that a program starts with against `limit`, in bytes.
///
/// # Errors
/// `ResourceExhausted` or `InvalidArgument`, as [`over_memory`] has it, if the program starts with more.
pub(super) fn check_memory(program: &Program, limit: u64) -> Result<()> {
    match program.initial_memory().map(|memory| memory.at_least) {
        Some(initial) if initial > limit => Err(over_memory(limit, &format!("it starts with {initial} bytes"))),
        _ => Ok(()),
    }
}

/// How many files the process may have open: the spec's soft limit. Its container has a limit of its own.
pub(super) fn open_files_max(spec: &ProcessSpec) -> u32 {
    spec.open_files.and_then(|soft| u32::try_from(soft).ok()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: &str) -> ProcessSpec {
        ProcessSpec::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn the_first_argument_is_looked_for_along_the_path_of_the_environment() {
        let spec = process(r#"{"args":["app.wasm","x"],"env":["PATH=/a","PATH=/b:/c"],"cwd":"/w"}"#);
        let wanted = wanted(&spec).unwrap();
        assert_eq!((wanted.program.as_str(), wanted.path.as_deref(), &*wanted.cwd), ("app.wasm", Some("/b:/c"), "/w"));
        assert!(super::wanted(&process(r#"{"cwd":"/"}"#)).is_none());
    }

    #[test]
    fn the_soft_limit_of_open_files_holds() {
        let limit =
            |soft: &str| process(&format!(r#"{{"rlimits":[{{"type":"RLIMIT_NOFILE","soft":{soft},"hard":1}}]}}"#));
        assert_eq!(open_files_max(&limit("7")), 7);
        assert_eq!(open_files_max(&limit("18446744073709551615")), u32::MAX, "RLIM_INFINITY");
        assert_eq!(open_files_max(&process("{}")), u32::MAX);
    }
}
