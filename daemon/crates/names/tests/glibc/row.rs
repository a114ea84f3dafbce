//! One row of the table.

use std::net::SocketAddr;

/// A look-up, and the files, servers and network that it has.
pub struct Row {
    /// The story in one sentence.
    pub story: &'static str,
    /// The name.
    pub asks: &'static str,
    /// Rules of the servers at 127.0.0.51, 127.0.0.52 and so on, which resolv.conf names first. Without rules a
    /// server does not run.
    rules: &'static [&'static str],
    /// Servers at other addresses, which resolv.conf has to name by itself.
    elsewhere: &'static [(&'static str, &'static str)],
    /// The rest of resolv.conf.
    conf: &'static str,
    has_conf: bool,
    pub hosts: &'static str,
    pub host_conf: &'static str,
    pub host_name: &'static str,
    /// Arguments of ip(8).
    pub links: &'static [&'static str],
    /// The addresses with blanks between them, or `!` and the error.
    pub found: &'static str,
    /// Why glibc finds or asks something else.
    pub differs: Option<&'static str>,
    /// Whether the first server is any of them.
    pub rotates: bool,
}

impl Row {
    pub const fn new(
        story: &'static str,
        asks: &'static str,
        conf: &'static str,
        rules: &'static [&'static str],
        found: &'static str,
    ) -> Row {
        Row {
            story,
            asks,
            rules,
            elsewhere: &[],
            conf,
            has_conf: true,
            hosts: "127.0.0.1 localhost\n",
            host_conf: "multi on\n",
            host_name: "box",
            links: &[],
            found,
            differs: None,
            rotates: false,
        }
    }

    pub const fn hosts(self, hosts: &'static str) -> Row {
        Row { hosts, ..self }
    }

    pub const fn host_conf(self, host_conf: &'static str) -> Row {
        Row { host_conf, ..self }
    }

    pub const fn host_name(self, host_name: &'static str) -> Row {
        Row { host_name, ..self }
    }

    pub const fn elsewhere(self, elsewhere: &'static [(&'static str, &'static str)]) -> Row {
        Row { elsewhere, ..self }
    }

    pub const fn links(self, links: &'static [&'static str]) -> Row {
        Row { links, ..self }
    }

    pub const fn without_conf(self) -> Row {
        Row { has_conf: false, ..self }
    }

    pub const fn differs(self, why: &'static str) -> Row {
        Row { differs: Some(why), ..self }
    }

    pub const fn rotates(self) -> Row {
        Row { rotates: true, ..self }
    }

    /// Where the servers are, and their rules.
    pub fn servers(&self) -> impl Iterator<Item = (SocketAddr, &'static str)> {
        let near = self.rules.iter().enumerate().map(|(index, rules)| (format!("{}:53", near(index)), *rules));
        let far = self.elsewhere.iter().map(|(at, rules)| ((*at).to_owned(), *rules));
        near.chain(far).map(|(at, rules)| (at.parse().unwrap(), rules))
    }

    /// The text of resolv.conf, if there is one.
    pub fn resolv_conf(&self) -> Option<String> {
        let lines = (0..self.rules.len()).map(|index| format!("nameserver {}\n", near(index)));
        self.has_conf.then(|| lines.collect::<String>() + self.conf)
    }
}

fn near(index: usize) -> String {
    format!("127.0.0.{}", 51 + index)
}
