use std::net::IpAddr;

use super::{AllowedHosts, BlockedNetworks, Destinations, IpNetwork};

#[test]
fn an_entry_matches_its_scheme_its_host_and_its_port() {
    // Entry, then what it allows, then what it does not.
    #[rustfmt::skip]
    let table: &[(&str, &[&str], &[&str])] = &[
        ("https://example.com", &["https example.com 443", "https EXAMPLE.com 443", "https example.com. 443"],
            &["http example.com 80", "https example.com 8443", "https a.example.com 443", "https example.com.evil 443"]),
        ("https://example.com/", &["https example.com 443"], &["http example.com 443"]),
        ("http://example.com:8080", &["http example.com 8080"], &["http example.com 80"]),
        ("*://example.com:*", &["tcp example.com 1", "https example.com 65535"], &["tcp example.org 1"]),
        ("http://*.example.com", &["http a.example.com 80", "http a.b.example.com 80"],
            &["http example.com 80", "http aexample.com 80", "http 10.0.0.1 80"]),
        ("http://*", &["http anything 80", "http 10.0.0.1 80", "http [::1] 80"], &["http anything 81", "https anything 443"]),
        ("*://*:*", &["tcp ::1 9", "mqtt name 1883"], &[]),
        ("tcp://10.0.0.1:5432", &["tcp 10.0.0.1 5432", "tcp ::ffff:10.0.0.1 5432"], &["udp 10.0.0.1 5432", "tcp 10.0.0.2 5432"]),
        ("tcp://10.1.0.0/16:1..10", &["tcp 10.1.2.3 1", "tcp 10.1.255.255 9"], &["tcp 10.1.2.3 10", "tcp 10.2.0.0 5", "tcp name 5"]),
        ("tcp://10.1.2.3/16:9", &["tcp 10.1.200.1 9"], &["tcp 10.2.2.3 9"]),
        ("redis://[::1]", &["redis ::1 6379", "redis [::1] 6379"], &["redis ::2 6379"]),
        ("redis://[::1]:7000", &["redis ::1 7000"], &["redis ::1 6379"]),
        ("tcp://fd00::/8:*", &["tcp fd12::1 80"], &["tcp fe80::1 80"]),
        ("postgres://db", &["postgres db 5432"], &["postgres db 5433"]),
        ("mysql://db", &["mysql db 3306"], &[]),
        ("mqtt://broker", &["mqtt broker 1883"], &[]),
        ("http://self", &[], &["http self 80"]),
        ("HTTP://Example.Com", &["http example.com 80"], &[]),
        ("http://a.spin.internal", &["http a.spin.internal 80"], &["http b.spin.internal 80"]),
        ("http://", &[], &["http  80"]),
    ];
    for (entry, allowed, refused) in table {
        let hosts = AllowedHosts::parse([*entry]).unwrap_or_else(|error| panic!("{entry}: {error}"));
        let allows = |text: &str| {
            let mut words = text.split(' ');
            let [scheme, host, port] = [(); 3].map(|()| words.next().unwrap());
            hosts.allows(scheme, host, port.parse().unwrap())
        };
        for text in *allowed {
            assert!(allows(text), "{entry} does not allow {text}");
        }
        for text in *refused {
            assert!(!allows(text), "{entry} allows {text}");
        }
    }
}

#[test]
fn an_entry_that_means_nothing_is_refused_with_the_reason() {
    #[rustfmt::skip]
    let table = [
        ("example.com", "it has no scheme; an entry is scheme://host:port, for example https://example.com, or *://*:* for all"),
        ("*", "it has no scheme; an entry is scheme://host:port, for example https://example.com, or *://*:* for all"),
        ("h2c://example.com", "a scheme has only letters, or is *"),
        ("://example.com", "a scheme has only letters, or is *"),
        ("https://example.com/path", "it has a path, which an entry cannot have"),
        ("https://example.com:443/path", "it has a path, which an entry cannot have"),
        ("https://*example.com", "* is a host alone, or the first part of a name: *.example.com"),
        ("https://a.*.com", r#""a.*.com" is neither a host name nor an address"#),
        ("https://user@example.com", r#""user@example.com" is neither a host name nor an address"#),
        ("https://a..b", r#""a..b" is neither a host name nor an address"#),
        ("tcp://example.com", r#"it has no port, and the scheme "tcp" has none of its own; :* is all ports"#),
        ("*://example.com", r#"it has no port, and the scheme "*" has none of its own; :* is all ports"#),
        ("tcp://example.com:65536", r#""65536" is not a port"#),
        ("tcp://example.com:1..x", r#""x" is not a port"#),
    ];
    for (entry, reason) in table {
        let error = AllowedHosts::parse(["https://good", entry]).unwrap_err();
        assert_eq!(error.to_string(), format!("the allowed host {entry:?}: {reason}"));
    }
}

#[test]
fn the_own_application_is_asked_for_by_name() {
    let hosts = |entries: &[&str]| AllowedHosts::parse(entries.iter().copied()).unwrap();
    assert!(hosts(&["http://self"]).allows_self("http") && hosts(&["*://self.alt:*"]).allows_self("https"));
    assert!(hosts(&["http://*"]).allows_self("http"));
    assert!(!hosts(&["http://self"]).allows_self("https") && !hosts(&["http://example.com"]).allows_self("http"));
}

#[test]
fn a_name_is_looked_up_only_for_an_entry_of_sockets() {
    let only = |entries: &[&str]| Destinations::parse(entries.iter().copied()).unwrap();
    assert!(only(&["tcp://db.example:5432"]).look_up("db.example") && only(&["*://*.example:*"]).look_up("db.example"));
    assert!(!only(&["https://db.example"]).look_up("db.example") && !only(&[]).look_up("db.example"));
    assert!(Destinations::default().look_up("db.example"));
}

#[test]
fn a_blocked_network_is_not_reached_by_any_name() {
    let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNetwork>>();
    let allowed = AllowedHosts::parse(["*://*:*"]).unwrap();
    let some =
        Destinations::only(allowed.clone(), BlockedNetworks::new(networks(&["123.0.0.0/8", "2600::/32"]), false));
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for blocked in ["123.1.2.3", "::ffff:123.1.2.3", "2600::1"] {
        assert!(!some.address(address(blocked)), "{blocked}");
        assert!(!some.socket("tcp", (address(blocked), 80).into()), "{blocked}");
    }
    assert!(some.address(address("124.0.0.1")) && some.address(address("10.0.0.1")));
    let public = Destinations::only(allowed, BlockedNetworks::new(Vec::new(), true));
    for private in [
        "0.0.0.0",
        "10.1.1.1",
        "100.64.1.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.1.1.1",
        "::10.0.0.1",
        "64:ff9b::a00:1",
        "fc00::1",
        "fe80::1",
        "ff02::1",
        "2001:db8::1",
    ] {
        assert!(!public.address(address(private)), "{private}");
    }
    for free in ["8.8.8.8", "123.1.2.3", "64:ff9b::808:808", "2600::1", "2001:4860::1"] {
        assert!(public.address(address(free)), "{free}");
    }
    for wrong in ["10.0.0.0/33", "10.0.0/8", "::/129", "name", "10.0.0.0/-1", ""] {
        assert!(wrong.parse::<IpNetwork>().is_err(), "{wrong}");
    }
    assert!("0.0.0.0/0".parse::<IpNetwork>().unwrap().contains(address("1.2.3.4")));
    assert!(!"0.0.0.0/0".parse::<IpNetwork>().unwrap().contains(address("2600::1")));
    assert!("::/0".parse::<IpNetwork>().unwrap().contains(address("2600::1")));
}
