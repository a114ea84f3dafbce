//! The resources of an Update call: new limits of memory and CPU time for a running task.

use super::parse::positive;
use super::spec::Cpu;
use crate::error::{Error, Result};

/// The changes of an Update call. A limit that the call does not name stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResourceUpdate {
    /// `memory.limit` in bytes; `Some(None)` removes the limit.
    pub memory_limit: Option<Option<u64>>,
    shares: Option<u64>,
    quota: Option<Option<u64>>,
    period: Option<u64>,
}

impl ResourceUpdate {
    /// Parses an OCI `LinuxResources`. As for runc, 0 changes nothing and -1 removes a limit.
    ///
    /// # Errors
    /// `InvalidArgument` naming the field that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<ResourceUpdate> {
        let all: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| Error::InvalidArgument(format!("resources: are not an OCI LinuxResources: {e}")))?;
        let wrong = |field: &str, value: &dyn std::fmt::Display, what: &str| {
            Error::InvalidArgument(format!("linux.resources.{field}: {value} is {what}"))
        };
        let number = |group: &str, name: &str| {
            let field = format!("{group}.{name}");
            let value = match all.get(group) {
                None | Some(serde_json::Value::Null) => return Ok(None),
                Some(serde_json::Value::Object(group)) => group.get(name),
                Some(other) => return Err(wrong(group, other, "not an object")),
            };
            match value {
                None | Some(serde_json::Value::Null) => Ok(None),
                Some(value) => match value.as_i64() {
                    Some(0) => Ok(None),
                    Some(number) if number >= -1 => Ok(Some(number)),
                    Some(number) => Err(wrong(&field, &number, "negative; -1 is no limit")),
                    None => Err(wrong(&field, value, "not a whole number of 64 bits")),
                },
            }
        };
        let at_least_0 = |name: &str| -> Result<Option<u64>> {
            let number = number("cpu", name)?;
            number.map(|n| u64::try_from(n).map_err(|_| wrong(&format!("cpu.{name}"), &n, "negative"))).transpose()
        };
        if !all.is_object() {
            return Err(Error::InvalidArgument("resources: are not an object".into()));
        }
        Ok(ResourceUpdate {
            memory_limit: number("memory", "limit")?.map(positive),
            shares: at_least_0("shares")?,
            quota: number("cpu", "quota")?.map(positive),
            period: at_least_0("period")?,
        })
    }

    /// The CPU limits after the changes to `now`.
    pub fn cpu(&self, now: Cpu) -> Cpu {
        Cpu {
            shares: self.shares.or(now.shares),
            quota: self.quota.unwrap_or(now.quota),
            period: self.period.or(now.period),
        }
    }
}
