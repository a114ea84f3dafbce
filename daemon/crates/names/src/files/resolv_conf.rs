//! `/etc/resolv.conf`.

use std::net::{IpAddr, Ipv4Addr};

use super::Problems;
use crate::literal::ipv4;

/// How many servers are asked (`MAXNS` of resolver(3)).
const SERVERS_MAX: usize = 3;

/// The largest `ndots`.
const NDOTS_MAX: i64 = 15;

/// The largest `timeout`, in seconds.
const TIMEOUT_MAX_S: i64 = 30;

/// The largest number of `attempts`.
const ATTEMPTS_MAX: i64 = 5;

/// A `nameserver` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) address: IpAddr,
    /// The text behind the `%` of an IPv6 address: an interface's name or number.
    pub(crate) scope: Option<String>,
}

/// The contents of a resolv.conf, within the limits of resolv.conf(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Configuration {
    pub(crate) servers: Vec<Server>,
    /// The domains as text: a file of 1 MiB has room for half a million, and a list of them would take much more memory.
    search: Vec<u8>,
    pub(crate) ndots: usize,
    pub(crate) timeout_s: u64,
    pub(crate) attempts: usize,
    pub(crate) rotate: bool,
    pub(crate) edns0: bool,
    pub(crate) trust_ad: bool,
    pub(crate) single_request: bool,
    pub(crate) single_request_reopen: bool,
    pub(crate) use_vc: bool,
    pub(crate) no_aaaa: bool,
    pub(crate) no_tld_query: bool,
}

impl Configuration {
    /// Reads a file; the defaults are those of resolv.conf(5).
    pub(crate) fn parse(text: &[u8], host_name: Option<&str>, problems: &mut Problems) -> Configuration {
        let mut configuration = Configuration {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout_s: 5,
            attempts: 2,
            rotate: false,
            edns0: false,
            trust_ad: false,
            single_request: false,
            single_request_reopen: false,
            use_vc: false,
            no_aaaa: false,
            no_tld_query: false,
        };
        for line in text.split(|byte| *byte == b'\n') {
            let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
            configuration.read(line.strip_suffix(b"\r").unwrap_or(line), problems);
        }
        if configuration.servers.is_empty() {
            configuration.servers.push(Server { address: Ipv4Addr::LOCALHOST.into(), scope: None });
        }
        let domain = host_name.and_then(|name| name.split_once('.')).map(|(_, domain)| domain.as_bytes());
        if configuration.search.is_empty() {
            configuration.search = domain.unwrap_or_default().to_vec();
        }
        configuration
    }

    /// The search domains in their order; the root is empty.
    pub(crate) fn domains(&self) -> impl Iterator<Item = &[u8]> {
        // ".test" is "test", and "." is the root.
        words(&self.search).map(|domain| domain.strip_prefix(b".").unwrap_or(domain))
    }

    fn read(&mut self, line: &[u8], problems: &mut Problems) {
        if line.trim_ascii().is_empty() || matches!(line.first(), Some(b';' | b'#')) {
            return;
        }
        // A keyword begins its line and ends with a blank.
        let Some(end) = line.iter().position(|byte| is_blank(*byte)) else {
            return problems.note("no value in this line of resolv.conf", line);
        };
        let (keyword, rest) = line.split_at(end);
        let mut words = words(rest);
        match keyword {
            b"nameserver" => match words.next().and_then(server) {
                Some(server) if self.servers.len() < SERVERS_MAX => self.servers.push(server),
                Some(_) => problems.note("more servers than are asked", line),
                None => problems.note("no address of a server", line),
            },
            b"search" => self.set_search(rest, problems),
            b"domain" => self.set_search(words.next().unwrap_or_default(), problems),
            b"options" => self.set_options(rest, problems),
            b"sortlist" => problems.note("getaddrinfo(3) does not sort by this", line),
            _ => problems.note("no line of resolv.conf begins so", line),
        }
    }

    fn set_search(&mut self, domains: &[u8], problems: &mut Problems) {
        if words(domains).next().is_none() {
            return;
        }
        self.search = domains.to_vec();
        for domain in self.domains() {
            let stem = domain.strip_suffix(b".").unwrap_or(domain);
            if !stem.is_empty() && stem.split(|byte| *byte == b'.').any(|label| !(1..=63).contains(&label.len())) {
                problems.note("no name can be in this search domain", domain);
            }
        }
    }

    fn set_options(&mut self, options: &[u8], problems: &mut Problems) {
        let mut rest = options;
        loop {
            while rest.first().is_some_and(|byte| is_blank(*byte)) {
                rest = &rest[1..];
            }
            if rest.is_empty() {
                return;
            }
            let end = rest.iter().position(|byte| is_blank(*byte)).unwrap_or(rest.len());
            if !self.set_option(rest) {
                problems.note("an option that changes nothing", &rest[..end]);
            }
            rest = &rest[end..];
        }
    }

    /// Sets the option that a text begins with. Letters behind the option's name are ignored, as glibc does. False if
    /// the option is unknown.
    fn set_option(&mut self, text: &[u8]) -> bool {
        if let Some(value) = text.strip_prefix(b"ndots:") {
            // A negative number is the largest: glibc keeps four bits of it.
            let ndots = number(value);
            self.ndots = if ndots < 0 { NDOTS_MAX } else { ndots.min(NDOTS_MAX) } as usize;
        } else if let Some(value) = text.strip_prefix(b"timeout:") {
            self.timeout_s = number(value).clamp(1, TIMEOUT_MAX_S).unsigned_abs();
        } else if let Some(value) = text.strip_prefix(b"attempts:") {
            self.attempts = number(value).clamp(1, ATTEMPTS_MAX) as usize;
        } else {
            return self.set_flag(text);
        }
        true
    }

    fn set_flag(&mut self, text: &[u8]) -> bool {
        // The longer of two that begin alike is first.
        let flag = match text {
            _ if text.starts_with(b"rotate") => &mut self.rotate,
            _ if text.starts_with(b"edns0") => &mut self.edns0,
            _ if text.starts_with(b"single-request-reopen") => &mut self.single_request_reopen,
            _ if text.starts_with(b"single-request") => &mut self.single_request,
            _ if text.starts_with(b"no_tld_query") => &mut self.no_tld_query,
            _ if text.starts_with(b"no-tld-query") => &mut self.no_tld_query,
            _ if text.starts_with(b"use-vc") => &mut self.use_vc,
            _ if text.starts_with(b"trust-ad") => &mut self.trust_ad,
            _ if text.starts_with(b"no-aaaa") => &mut self.no_aaaa,
            // The files are read for each look-up.
            _ => return text.starts_with(b"no-reload"),
        };
        *flag = true;
        true
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty())
}

/// A number as atoi(3) reads it: blanks, a sign, digits, any text. A number that is too large is the largest one.
fn number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text.first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits.fold(0_i64, |number, digit| number.saturating_mul(10).saturating_add((digit - b'0').into()));
    if negative { -number } else { number }
}

fn server(text: &[u8]) -> Option<Server> {
    if let Some(address) = ipv4(text) {
        return Some(Server { address: address.into(), scope: None });
    }
    let text = std::str::from_utf8(text).ok()?;
    let (address, scope) = match text.split_once('%') {
        Some((address, scope)) => (address, Some(scope.to_owned())),
        None => (text, None),
    };
    Some(Server { address: IpAddr::V6(address.parse().ok()?), scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Configuration {
        Configuration::parse(text.as_bytes(), Some("web.ns.test"), &mut Problems::default())
    }

    fn servers(text: &str) -> Vec<String> {
        parse(text).servers.iter().map(|server| server.address.to_string()).collect()
    }

    fn search(text: &str) -> Vec<String> {
        parse(text).domains().map(|domain| domain.escape_ascii().to_string()).collect()
    }

    #[test]
    fn at_most_three_servers_are_asked_and_one_at_least() {
        let text = "nameserver 10.0.0.1\nnameserver ::1 rest\nnameserver 10.2\nnameserver 10.0.0.4\n";
        assert_eq!(servers(text), ["10.0.0.1", "::1", "10.0.0.2"]);
        assert_eq!(servers("nameserver nonsense\nnameserver\nnameserver10.0.0.1\n nameserver 10.0.0.1"), ["127.0.0.1"]);
        assert_eq!(servers(""), ["127.0.0.1"]);
        assert_eq!(servers("nameserver 10.0.0.1\r\n"), ["10.0.0.1"]);
        let scoped = parse("nameserver fe80::53%eth0");
        assert_eq!(scoped.servers[0].scope.as_deref(), Some("eth0"));
    }

    #[test]
    fn the_last_line_of_search_or_domain_counts() {
        assert_eq!(search("search a b\nsearch c\td \ndomain e f"), ["e"]);
        assert_eq!(
            search("domain e\nsearch a b c d e f g h\nsearch \nsearch"),
            ["a", "b", "c", "d", "e", "f", "g", "h"]
        );
        assert_eq!(search("search -x.d .ok ."), ["-x.d", "ok", ""]);
        assert_eq!(search("; search x\n# search y"), ["ns.test"]);
        let short = Configuration::parse(b"", Some("web"), &mut Problems::default());
        assert_eq!(short.domains().count(), 0);
    }

    #[test]
    fn options_have_limits() {
        let limits = |text: &str| {
            let read = parse(&format!("options {text}\n"));
            (read.ndots, read.timeout_s, read.attempts)
        };
        assert_eq!(limits(""), (1, 5, 2));
        assert_eq!(limits("ndots:5 timeout:3\tattempts:4"), (5, 3, 4));
        assert_eq!(limits("ndots:16 timeout:31 attempts:6"), (15, 30, 5));
        assert_eq!(limits("ndots:0 timeout:0 attempts:0"), (0, 1, 1));
        assert_eq!(limits("ndots:-1 timeout:-1 attempts:-1"), (15, 1, 1));
        assert_eq!(limits("ndots:x timeout:2s attempts: 3"), (0, 2, 3));
        assert_eq!(limits("ndots:99999999999999999999 what #timeout:9"), (15, 5, 2));
        assert_eq!(limits("ndots:2\noptions timeout:4"), (2, 4, 2));
    }

    #[test]
    fn flags_are_read_by_their_beginning() {
        let read = parse("options rotate edns0 single-request use-vc trust-ad no-aaaa no-tld-query no-reload\n");
        assert!(read.rotate && read.edns0 && read.single_request && !read.single_request_reopen && read.use_vc);
        assert!(read.trust_ad && read.no_aaaa && read.no_tld_query);
        let reopen = parse("options single-request-reopen rotated\n");
        assert!(reopen.single_request_reopen && !reopen.single_request && reopen.rotate);
    }
}
