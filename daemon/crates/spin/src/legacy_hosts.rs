//! `allowed_http_hosts`, the older form of `allowed_outbound_hosts`: hosts without a scheme.

/// The entry that allows every host.
const ALLOW_ALL: &str = "insecure:allow-all";

/// The entries of `allowed_outbound_hosts` that say the same.
pub(crate) fn outbound_hosts(hosts: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for host in hosts {
        match host.as_str() {
            ALLOW_ALL => all.extend(["http://*:*".into(), "https://*:*".into(), "http://self".into()]),
            "self" => all.push("http://self".into()),
            host if host.contains("://") => all.push(host.into()),
            host => all.extend([format!("http://{host}"), format!("https://{host}")]),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_a_scheme_are_hosts_of_http_and_https() {
        let of = |host: &str| outbound_hosts(&[host.to_string()]);
        assert_eq!(of("example.org"), ["http://example.org", "https://example.org"]);
        assert_eq!(of("example.org:8080"), ["http://example.org:8080", "https://example.org:8080"]);
        assert_eq!(of("https://example.org"), ["https://example.org"]);
        assert_eq!(of("self"), ["http://self"]);
        assert_eq!(of("insecure:allow-all"), ["http://*:*", "https://*:*", "http://self"]);
        assert!(outbound_hosts(&[]).is_empty());
    }
}
