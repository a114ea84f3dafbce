//! The container's environment variables that concern the application. No component sees the container's environment.

use hearth_base::destinations::without_brackets;
use hearth_base::env::last;
use hearth_base::error::Result;

use crate::application::invalid;

/// Where the application listens.
pub const LISTEN_ADDRESS: &str = "SPIN_HTTP_LISTEN_ADDR";

/// Where it listens if the variable is not set.
pub const LISTEN_ADDRESS_DEFAULT: &str = "0.0.0.0:80";

/// The most memory of one instance, in bytes.
pub const INSTANCE_MEMORY: &str = "SPIN_MAX_INSTANCE_MEMORY";

/// The components that the container keeps of its application.
pub const RETAIN: &str = "SPIN_COMPONENTS_TO_RETAIN";

/// The settings of the application in the container's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Host name or address, and port.
    pub listen: (String, u16),
    /// The most memory of one instance, in bytes.
    pub instance_memory: Option<u64>,
    /// The components to keep; none: all.
    pub retain: Option<Vec<String>>,
}

impl Environment {
    /// Reads the variables.
    ///
    /// # Errors
    /// `InvalidArgument` for an address without a port.
    pub fn of(env: &[(String, String)]) -> Result<Environment> {
        let find = |name| last(env, name).map(str::trim);
        let address = find(LISTEN_ADDRESS).filter(|value| !value.is_empty()).unwrap_or(LISTEN_ADDRESS_DEFAULT);
        let retained = find(RETAIN).map(|list| list.split(',').map(str::trim).filter(|id| !id.is_empty()));
        let retain: Option<Vec<_>> = retained.map(|ids| ids.map(str::to_string).collect());
        Ok(Environment {
            listen: listen(address)?,
            // As in Spin's own shim, a value that is no number is no limit.
            instance_memory: find(INSTANCE_MEMORY).and_then(|value| value.parse().ok()),
            retain: retain.filter(|ids| !ids.is_empty()),
        })
    }
}

fn listen(address: &str) -> Result<(String, u16)> {
    let wrong =
        || invalid(format!("{LISTEN_ADDRESS}={address:?} is not an address with a port like {LISTEN_ADDRESS_DEFAULT}"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host = without_brackets(host);
    match port.parse() {
        Ok(port) if port > 0 && !host.is_empty() => Ok((host.into(), port)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Environment> {
        let env: Vec<_> = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Environment::of(&env)
    }

    #[test]
    fn an_application_listens_on_port_80_unless_told_otherwise() {
        let listen = |pairs: &[(&str, &str)]| of(pairs).unwrap().listen;
        assert_eq!(listen(&[]), ("0.0.0.0".into(), 80));
        assert_eq!(listen(&[(LISTEN_ADDRESS, "")]), ("0.0.0.0".into(), 80));
        assert_eq!(listen(&[(LISTEN_ADDRESS, "127.0.0.1:3000")]), ("127.0.0.1".into(), 3000));
        assert_eq!(listen(&[(LISTEN_ADDRESS, "[::]:81")]), ("::".into(), 81));
        assert_eq!(listen(&[(LISTEN_ADDRESS, "localhost:8000")]), ("localhost".into(), 8000));
        for wrong in ["80", "a:b", "0.0.0.0:0", ":80", "0.0.0.0:70000"] {
            let error = of(&[(LISTEN_ADDRESS, wrong)]).unwrap_err().to_string();
            assert_eq!(error, format!("SPIN_HTTP_LISTEN_ADDR={wrong:?} is not an address with a port like 0.0.0.0:80"));
        }
    }

    #[test]
    fn limits_and_components_are_read_as_spins_shim_reads_them() {
        let memory = |value| of(&[(INSTANCE_MEMORY, value)]).unwrap().instance_memory;
        assert_eq!((memory("1048576"), memory("1Gi"), memory("")), (Some(1 << 20), None, None));
        let retain = |value| of(&[(RETAIN, value)]).unwrap().retain;
        assert_eq!(retain("a, b,,"), Some(vec!["a".to_string(), "b".to_string()]));
        assert_eq!((retain(""), retain(" , "), of(&[]).unwrap().retain), (None, None, None));
    }
}
