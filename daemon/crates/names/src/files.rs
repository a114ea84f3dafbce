//! The pod's files about names.

mod hosts;
pub(crate) mod resolv_conf;

use std::net::IpAddr;

use hosts::Hosts;
use resolv_conf::Configuration;

/// How many problems are kept as text.
const PROBLEMS_MAX: usize = 8;

/// How many addresses the hosts file may give a name: as many as fit into a DNS message.
const ADDRESSES_MAX: usize = 4096;

/// `/etc/hosts` and `/etc/resolv.conf`, parsed.
///
/// Parsing never fails: a line that cannot be read is left out, as glibc does, and noted in [`Files::problems`].
#[derive(Debug, Clone)]
pub struct Files {
    hosts: Hosts,
    pub(crate) configuration: Option<Configuration>,
    problems: Vec<String>,
}

impl Files {
    /// Parses the contents of `/etc/hosts` and `/etc/resolv.conf`; `None` stands for a file that does not exist.
    ///
    /// The part of `host_name` behind its first dot is the search domain if resolv.conf names none.
    pub fn parse(hosts: Option<&[u8]>, resolv_conf: Option<&[u8]>, host_name: Option<&str>) -> Files {
        let mut problems = Problems::default();
        let hosts = Hosts::parse(hosts.unwrap_or_default(), &mut problems);
        let configuration = resolv_conf.map(|text| Configuration::parse(text, host_name, &mut problems));
        Files { hosts, configuration, problems: problems.texts }
    }

    /// The addresses that the hosts file has for a name, of all its lines, in the file's order and without regard to
    /// upper and lower case. Empty if the name is not in the file.
    ///
    /// [`Resolver::known`](crate::Resolver::known) has them in the order of getaddrinfo(3).
    pub fn known(&self, name: &str) -> Vec<IpAddr> {
        self.hosts.addresses(name).take(ADDRESSES_MAX).collect()
    }

    /// The lines and options that were left out, and why: the first few problems, for a debug log.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// The problems of one parse.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    texts: Vec<String>,
}

impl Problems {
    /// Notes a problem with a text of a file.
    pub(crate) fn note(&mut self, what: &str, text: &[u8]) {
        if self.texts.len() < PROBLEMS_MAX {
            let text = &text[..text.len().min(80)];
            self.texts.push(format!("{what}: {:?}", text.escape_ascii().to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence of bytes that is the same in each run, mostly of the letters of real files.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let words: [&[u8]; 16] = [
            b"nameserver ",
            b"search ",
            b"domain\t",
            b"options ",
            b"ndots:",
            b"timeout:",
            b"attempts:",
            b"\n",
            b"#",
            b"127.0.0.1",
            b"fe80::1%",
            b" ",
            b"\0",
            b"99999999999999999999",
            b"-",
            b"\xff\xfe..",
        ];
        let mut state = seed;
        let mut next = move || {
            // The multiplier and the increment of Knuth's MMIX.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut bytes = Vec::new();
        while bytes.len() < length {
            match next() % 4 {
                0 => bytes.push(next() as u8),
                _ => bytes.extend_from_slice(words[next() % words.len()]),
            }
        }
        bytes
    }

    #[test]
    fn any_bytes_are_files() {
        for seed in 0..2_000 {
            let (hosts, resolv_conf) = (noise(seed, 300), noise(seed + 10_000, 300));
            let files = Files::parse(Some(&hosts), Some(&resolv_conf), Some("a.b"));
            files.known("localhost");
            let configuration = files.configuration.as_ref().unwrap();
            assert!((1..=3).contains(&configuration.servers.len()));
            assert!((1..=5).contains(&configuration.attempts) && configuration.ndots <= 15);
            assert!((1..=30).contains(&configuration.timeout_s));
            assert!(files.problems().len() <= PROBLEMS_MAX);
        }
    }

    #[test]
    fn lines_that_are_left_out_are_noted() {
        let files = Files::parse(
            Some(b"10.0.0.300 a\n"),
            Some(b"nameserver nonsense\noptions what ndots:2\n nameserver 10.0.0.1\n"),
            None,
        );
        assert_eq!(files.problems().len(), 4, "{:?}", files.problems());
        assert!(files.configuration.is_some());
        let none = Files::parse(None, None, None);
        assert!(none.configuration.is_none() && none.problems().is_empty());
    }
}
