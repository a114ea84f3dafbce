//! `/etc/hosts`.

use std::net::IpAddr;

use super::Problems;

/// The text of a hosts file: one look-up reads it once, so an index would cost more than it saves.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    text: Vec<u8>,
}

impl Hosts {
    pub(crate) fn parse(text: &[u8], problems: &mut Problems) -> Hosts {
        for line in lines(text) {
            if address(line).is_none() {
                problems.note("no address begins this line of the hosts file", line);
            }
        }
        Hosts { text: text.to_vec() }
    }

    /// The addresses of all lines with a name.
    pub(crate) fn addresses(&self, name: &str) -> impl Iterator<Item = IpAddr> {
        // The dot ends a complete name, and all names of the file are complete.
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        lines(&self.text)
            .filter(move |line| words(line).skip(1).any(|word| word.eq_ignore_ascii_case(name)))
            .filter_map(|line| address(line).map(|address| address.to_canonical()))
    }
}

/// The lines that are not empty, without their comments.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let content = |line: &'_ [u8]| line.iter().position(|byte| matches!(byte, b'#' | b'\0')).unwrap_or(line.len());
    text.split(|byte| *byte == b'\n')
        .map(move |line| line[..content(line)].trim_ascii())
        .filter(|line| !line.is_empty())
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    // Vertical tabs separate words too, as isspace(3) has it.
    line.split(|byte| byte.is_ascii_whitespace() || *byte == 0x0b).filter(|word| !word.is_empty())
}

fn address(line: &[u8]) -> Option<IpAddr> {
    std::str::from_utf8(words(line).next()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str, name: &str) -> Vec<String> {
        let hosts = Hosts::parse(text.as_bytes(), &mut Problems::default());
        hosts.addresses(name).map(|address| address.to_string()).collect()
    }

    #[test]
    fn each_line_of_a_name_gives_an_address() {
        let text = "10.1.2.3 peer Peer.pod\r\n\t::1\tboth # peer\n127.0.0.1 both\n::ffff:10.0.0.9 mapped";
        for name in ["peer", "PEER", "peer.pod", "peer.pod."] {
            assert_eq!(addresses(text, name), ["10.1.2.3"], "{name}");
        }
        assert_eq!(addresses(text, "both"), ["::1", "127.0.0.1"]);
        assert_eq!(addresses(text, "mapped"), ["10.0.0.9"]);
        assert!(addresses(text, "other").is_empty());
    }

    #[test]
    fn lines_without_an_address_are_left_out() {
        let text = "::: x\n127.1 x\nfe80::1%lo x\nx x\n#10.0.0.1 x\n10.0.0.2\n10.0.0.3 y\0 x\n10.0.0.4 x";
        assert_eq!(addresses(text, "x"), ["10.0.0.4"]);
        assert!(addresses(text, "").is_empty());
        assert!(addresses(text, "10.0.0.2").is_empty());
    }
}
