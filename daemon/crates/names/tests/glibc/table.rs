//! The table.

use crate::row::Row;

/// All rows; the ones that wait longest are first.
pub const TABLES: &[&[Row]] = &[WAITS, STREAMS, SERVERS, OPTIONS, SEARCH, NAMES, FILES, ORDER];

/// A server that knows one name, with an address of either kind.
const WEB: &str = "web.test * 10.0.0.1 fd00::1";

/// Another one, with other addresses.
const OTHER: &str = "web.test * 10.0.0.2 fd00::2";

const FOUND: &str = "fd00::1 10.0.0.1";
const FOUND_OTHER: &str = "fd00::2 10.0.0.2";

/// The shortest waits.
const SHORT: &str = "options timeout:1 attempts:1\n";
const TWICE: &str = "options timeout:1 attempts:2\n";

const WAITS: &[Row] = &[
    Row::new(
        "a server by TCP says nothing",
        "web.test",
        "options use-vc timeout:1\n",
        &["* * silent", OTHER],
        FOUND_OTHER,
    )
    .differs("glibc waits for TCP without limit"),
    Row::new("both servers are silent", "web.test", TWICE, &["* * silent", "* * silent"], "!Late"),
    Row::new("one server is silent five times", "web.test", "options timeout:1 attempts:9\n", &["* * silent"], "!Late"),
    Row::new(
        "a time-out of 0 is 1 s",
        "web.test",
        "options timeout:0 attempts:1\n",
        &["* * silent", OTHER],
        FOUND_OTHER,
    ),
    Row::new("the first server is silent", "web.test", SHORT, &["* * silent", OTHER], FOUND_OTHER),
    Row::new("the first two servers are silent", "web.test", SHORT, &["* * silent", "* * silent", OTHER], FOUND_OTHER),
    Row::new("silent, then SERVFAIL", "web.test", TWICE, &["* * silent", "* * servfail"], "!Late"),
    Row::new("a server answers the second attempt", "web.test", TWICE, &["* * once-silent 10.0.0.1 fd00::1"], FOUND),
    Row::new(
        "an answer to the first attempt comes during the second",
        "web.test",
        TWICE,
        &["* * slow 1300 10.0.0.1 fd00::1"],
        FOUND,
    ),
    Row::new(
        "an answer of the first server comes while the second is asked",
        "web.test",
        TWICE,
        &["* * slow 1500 10.0.0.1", "* * silent"],
        "10.0.0.1",
    ),
    Row::new("a server is silent for AAAA", "web.test", SHORT, &["* A 10.0.0.1; * AAAA silent", OTHER], "10.0.0.1"),
    Row::new(
        "the first answer for AAAA comes after A is asked again",
        "web.test",
        SHORT,
        &["* A 10.0.0.1; * AAAA slow 1300 fd00::1"],
        FOUND,
    ),
    Row::new(
        "the first answer for A comes after it is asked again",
        "web.test",
        SHORT,
        &["* AAAA fd00::1; * A slow 1300 10.0.0.1"],
        FOUND,
    ),
    Row::new("a server is silent for A", "web.test", SHORT, &["* AAAA fd00::1; * A silent", OTHER], FOUND_OTHER),
    Row::new(
        "a server is silent for AAAA and has no A",
        "web.test",
        SHORT,
        &["* A nodata; * AAAA silent", OTHER],
        "!NoAddress",
    ),
    Row::new(
        "a server is silent for AAAA, in two domains of the search",
        "web",
        "search a.test test\noptions timeout:1 attempts:1 ndots:2\n",
        &["web.a.test A nodata; web.a.test AAAA silent; web.test A 10.0.0.1; web.test AAAA nodata"],
        "10.0.0.1",
    ),
    Row::new(
        "a server is silent for AAAA, with single-request",
        "web.test",
        "options timeout:1 attempts:1 single-request\n",
        &["* A 10.0.0.1; * AAAA silent"],
        "10.0.0.1",
    ),
    Row::new(
        "a server fails for A and is silent for AAAA",
        "web.test",
        SHORT,
        &["* A servfail; * AAAA silent", OTHER],
        FOUND_OTHER,
    ),
    Row::new(
        "a time-out ends the search",
        "web",
        "search a.test b.test\noptions timeout:1 attempts:1\n",
        &["web.a.test * silent; web.b.test * 10.0.0.9; web * 10.0.0.1"],
        "10.0.0.1",
    ),
    Row::new("an answer has another id", "web.test", SHORT, &["* * wrong-id silent", OTHER], FOUND_OTHER),
    Row::new(
        "a name server is silent in a third of the search",
        "web",
        "search a b c\noptions timeout:1 attempts:1\n",
        &["web.a * nxdomain; web.b * silent; web.c * 10.0.0.1"],
        "!Unknown",
    ),
];

const STREAMS: &[Row] = &[
    Row::new(
        "a long answer is asked for by TCP",
        "web.test",
        "",
        &["udp/* * truncated; web.test * 10.0.0.1 fd00::1"],
        FOUND,
    ),
    Row::new("only one answer is long", "web.test", "", &["udp/* A truncated; web.test * 10.0.0.1 fd00::1"], FOUND),
    Row::new(
        "the server with the long answer closes",
        "web.test",
        "",
        &["udp/* * truncated; tcp/* * close", OTHER],
        FOUND_OTHER,
    ),
    Row::new(
        "the second server has the long answer",
        "web.test",
        "",
        &["* * servfail", "udp/* * truncated; web.test * 10.0.0.1 fd00::1"],
        FOUND,
    ),
    Row::new(
        "the server with the long answer has no TCP",
        "web.test",
        "",
        &["* * truncated; tcp/* * down", OTHER],
        FOUND_OTHER,
    ),
    Row::new(
        "the only server has no TCP, and a search",
        "web",
        "search a.test b.test\n",
        &["web.a.test * truncated; web.b.test * 10.0.0.9; tcp/* * down"],
        "!Temporary",
    ),
    Row::new("TCP alone", "web.test", "options use-vc\n", &[WEB], FOUND),
    Row::new("TCP alone, no such name", "web.test", "options use-vc\n", &["* * nxdomain", OTHER], "!Unknown"),
    Row::new("TCP alone, the first server is down", "web.test", "options use-vc\n", &["", OTHER], FOUND_OTHER),
    Row::new("TCP alone, all servers are down", "web.test", "options use-vc\n", &["", ""], "!Temporary"),
    Row::new(
        "TCP alone, all servers are down, and a search",
        "web",
        "search a.test b.test\noptions use-vc\n",
        &["", ""],
        "!Temporary",
    ),
    Row::new("TCP alone, the server resets", "web.test", "options use-vc\n", &["* * reset", OTHER], FOUND_OTHER),
    Row::new("TCP alone, closed", "web.test", "options use-vc attempts:3\n", &["* * close", "* * close"], "!Temporary"),
    Row::new(
        "TCP alone, closed after the first answer",
        "web.test",
        "options use-vc\n",
        &["* A 10.0.0.1; * AAAA close", OTHER],
        FOUND_OTHER,
    ),
    Row::new(
        "TCP alone, an answer has another id",
        "web.test",
        "options use-vc\n",
        &["* * wrong-id 10.0.0.1 fd00::1"],
        FOUND,
    ),
    Row::new("TCP alone, SERVFAIL", "web.test", "options use-vc\n", &["* * servfail", OTHER], FOUND_OTHER)
        .differs("glibc takes any answer by TCP, an error too"),
    Row::new(
        "TCP alone, SERVFAIL for A",
        "web.test",
        "options use-vc\n",
        &["* A servfail; * AAAA fd00::1", OTHER],
        "fd00::1",
    ),
    Row::new(
        "TCP alone, another question is answered first",
        "web.test",
        "options use-vc\n",
        &["web.test * wrong-question 10.0.0.1 fd00::1"],
        FOUND,
    )
    .differs("glibc does not compare the question by TCP"),
    Row::new(
        "TCP alone, in order even with single-request",
        "web.test",
        "options use-vc single-request\n",
        &[WEB],
        FOUND,
    ),
];

const HALF: &str = "glibc takes half of an answer, and says that the name has no address";

const SERVERS: &[Row] = &[
    Row::new(
        "SERVFAIL for A, no AAAA, single-request",
        "web.test",
        "options single-request\n",
        &["* A servfail; * AAAA nodata", OTHER],
        FOUND_OTHER,
    ),
    Row::new(
        "no A, SERVFAIL for AAAA, single-request",
        "web.test",
        "options single-request\n",
        &["* A nodata; * AAAA servfail", OTHER],
        FOUND_OTHER,
    )
    .differs(HALF),
    Row::new(
        "SERVFAIL for A, no AAAA, at all servers",
        "web.test",
        "options attempts:1\n",
        &["* A servfail; * AAAA nodata", "* A servfail; * AAAA nodata"],
        "!Temporary",
    )
    .differs(HALF),
    Row::new("no A, NOTIMP for AAAA", "web.test", "", &["* A nodata; * AAAA notimp", OTHER], "!NoAddress"),
    Row::new(
        "SERVFAIL for A, NXDOMAIN for AAAA",
        "web.test",
        "",
        &["* A servfail; * AAAA nxdomain", OTHER],
        "!Unknown",
    ),
    Row::new(
        "TCP alone, SERVFAIL for A, no AAAA",
        "web.test",
        "options use-vc\n",
        &["* A servfail; * AAAA nodata", OTHER],
        FOUND_OTHER,
    )
    .differs(HALF),
    Row::new("the first server answers", "web.test", "", &[WEB, OTHER], FOUND),
    Row::new("only the first server knows", "web.test", "", &[WEB, "* * nxdomain"], FOUND),
    Row::new("NXDOMAIN is an answer", "web.test", "", &["* * nxdomain", OTHER], "!Unknown"),
    Row::new("NODATA is an answer", "web.test", "", &["* * nodata", OTHER], "!NoAddress"),
    Row::new("SERVFAIL, then the next", "web.test", "", &["* * servfail", OTHER], FOUND_OTHER),
    Row::new("REFUSED, then the next", "web.test", "", &["* * refused", OTHER], FOUND_OTHER),
    Row::new("NOTIMP, then the next", "web.test", "", &["* * notimp", OTHER], FOUND_OTHER),
    Row::new("FORMERR is an answer", "web.test", "", &["* * formerr", OTHER], "!Permanent")
        .differs("glibc says that there is no such name"),
    Row::new("the first server is down", "web.test", "", &["", OTHER], FOUND_OTHER),
    Row::new("all servers are down", "web.test", "", &["", ""], "!Temporary"),
    Row::new(
        "all servers say SERVFAIL",
        "web.test",
        "options attempts:2\n",
        &["* * servfail", "* * servfail"],
        "!Temporary",
    ),
    Row::new(
        "all servers say REFUSED",
        "web.test",
        "options attempts:1\n",
        &["* * refused", "* * refused"],
        "!Permanent",
    ),
    Row::new("a server that only points to others", "web.test", "", &["* * lame", OTHER], FOUND_OTHER),
    Row::new("a bare REFUSED", "web.test", "", &["* * bare refused", OTHER], FOUND_OTHER),
    Row::new("a bare SERVFAIL for one kind", "web.test", "", &["* A bare servfail; * AAAA fd00::1", OTHER], "fd00::1"),
    Row::new("five bytes", "web.test", "", &["* * short", OTHER], FOUND_OTHER),
    Row::new("the question sent back", "web.test", "", &["* * echo", OTHER], FOUND_OTHER),
    Row::new("half a record", "web.test", "", &["* * garbled 10.0.0.1 fd00::1", OTHER], FOUND_OTHER)
        .differs("glibc gives up"),
    Row::new("an answer to another question first", "web.test", SHORT, &["* * wrong-question 10.0.0.1 fd00::1"], FOUND),
    Row::new("an answer with another id first", "web.test", SHORT, &["* * wrong-id 10.0.0.1 fd00::1"], FOUND),
    Row::new("SERVFAIL for A alone", "web.test", "", &["* A servfail; * AAAA fd00::1", OTHER], "fd00::1"),
    Row::new("SERVFAIL for AAAA alone", "web.test", "", &["* A 10.0.0.1; * AAAA servfail", OTHER], "10.0.0.1"),
    Row::new("SERVFAIL for A, no AAAA", "web.test", "", &["* A servfail; * AAAA nodata", OTHER], FOUND_OTHER)
        .differs(HALF),
    Row::new("no A, SERVFAIL for AAAA", "web.test", "", &["* A nodata; * AAAA servfail", OTHER], FOUND_OTHER)
        .differs(HALF),
    Row::new("NXDOMAIN for AAAA alone", "web.test", "", &["* A 10.0.0.1; * AAAA nxdomain", OTHER], "10.0.0.1"),
    Row::new("NOTIMP for AAAA alone", "web.test", "", &["* A 10.0.0.1; * AAAA notimp", OTHER], "10.0.0.1"),
    Row::new("FORMERR for AAAA alone", "web.test", "", &["* A 10.0.0.1; * AAAA formerr", OTHER], "10.0.0.1"),
    Row::new(
        "the fourth server is not asked",
        "web.test",
        "options attempts:1\n",
        &["* * servfail", "* * refused", "* * notimp", OTHER],
        "!Permanent",
    ),
    Row::new("an alias", "web.test", "", &["web.test * alias b.test 10.0.0.1 fd00::1"], FOUND),
    Row::new(
        "an alias of the other kind too",
        "WEB.Test",
        "",
        &["web.test A alias b.test 10.0.0.1; * AAAA nodata"],
        "10.0.0.1",
    ),
    Row::new("an alias behind its addresses", "web.test", "", &["web.test * alias-last b.test 10.0.0.1"], "!Unknown"),
    Row::new(
        "an alias to nothing ends the search",
        "web.test",
        "search a.test\n",
        &["web.test * alias b.test; web.test.a.test * 10.0.0.1"],
        "!Unknown",
    ),
    Row::new(
        "addresses of another name",
        "web.test",
        "",
        &["web.test * of b.test 10.0.0.1 fd00::1", OTHER],
        "!Unknown",
    ),
    Row::new("an IPv4 address in IPv6", "web.test", "", &["web.test * ::ffff:10.0.0.1"], "10.0.0.1")
        .differs("glibc returns the mapped address"),
    Row::new("no server is named", "web.test", "", &[], FOUND).elsewhere(&[("127.0.0.1:53", WEB)]),
    Row::new(
        "no server has an address",
        "web.test",
        "nameserver nonsense\nnameserver\n nameserver 127.0.0.51\n",
        &[],
        FOUND,
    )
    .elsewhere(&[("127.0.0.1:53", WEB)]),
    Row::new("an address in two parts", "web.test", "nameserver 127.77 rest\n", &[], FOUND)
        .elsewhere(&[("127.0.0.77:53", WEB)]),
    Row::new("the address of no host", "web.test", "nameserver 0.0.0.0\n", &[], FOUND)
        .elsewhere(&[("127.0.0.1:53", WEB)]),
    Row::new("an IPv4 server in IPv6", "web.test", "nameserver ::ffff:127.0.0.77\n", &[], FOUND)
        .elsewhere(&[("127.0.0.77:53", WEB)]),
    Row::new("a server with an interface that its address cannot have", "web.test", "nameserver ::1%lo\n", &[], FOUND)
        .elsewhere(&[("[::1]:53", WEB)]),
    Row::new(
        "the same server twice",
        "web.test",
        "nameserver 127.0.0.51\noptions attempts:1\n",
        &["* * servfail"],
        "!Temporary",
    ),
    Row::new("lines of another system", "web.test", "nameserver 127.0.0.51\r\noptions ndots:2\r\n", &[], FOUND)
        .elsewhere(&[("127.0.0.51:53", WEB)])
        .differs("glibc takes the CR as part of the address, and asks 127.0.0.1"),
    Row::new("an IPv6 server", "web.test", "nameserver ::1\n", &[], FOUND).elsewhere(&[("[::1]:53", WEB)]),
    Row::new("an IPv6 server with an interface", "web.test", "nameserver fe80::53%d0\n", &[], FOUND)
        .links(LINK_LOCAL)
        .elsewhere(&[("[fe80::53%7]:53", WEB)]),
    Row::new("an IPv6 server with a number", "web.test", "nameserver fe80::53%7\n", &[], FOUND)
        .links(LINK_LOCAL)
        .elsewhere(&[("[fe80::53%7]:53", WEB)]),
    Row::new(
        "an IPv6 server with an interface that is not there",
        "web.test",
        "nameserver fe80::53%d1\nnameserver ::1\n",
        &[],
        FOUND,
    )
    .links(LINK_LOCAL)
    .elsewhere(&[("[::1]:53", WEB)]),
    Row::new(
        "a server without a route",
        "web.test",
        "nameserver 2001:db8::1\nnameserver 192.0.2.1\nnameserver 127.0.0.77\n",
        &[],
        FOUND,
    )
    .elsewhere(&[("127.0.0.77:53", WEB)]),
];

const LINK_LOCAL: &[&str] = &[
    "link add d0 index 7 type veth peer name d1",
    "link set d1 up",
    "link set d0 up",
    "addr add fe80::53/64 dev d0 nodad",
];

const OPTIONS: &[Row] = &[
    Row::new("edns0", "web.test", "options edns0\n", &[WEB], FOUND),
    Row::new("edns0, and SERVFAIL", "web.test", "options edns0\n", &["* * servfail", OTHER], FOUND_OTHER),
    Row::new("edns0 by TCP", "web.test", "options edns0 use-vc\n", &[WEB], FOUND),
    Row::new("trust-ad", "web.test", "options trust-ad\n", &[WEB], FOUND),
    Row::new("no-aaaa", "web.test", "options no-aaaa\n", &[WEB], "10.0.0.1"),
    Row::new("no-aaaa, and SERVFAIL", "web.test", "options no-aaaa\n", &["* * servfail", OTHER], "10.0.0.2"),
    Row::new("no-aaaa by TCP", "web.test", "options no-aaaa use-vc\n", &[WEB], "10.0.0.1"),
    Row::new("single-request", "web.test", "options single-request\n", &[WEB], FOUND),
    Row::new(
        "single-request, SERVFAIL for A",
        "web.test",
        "options single-request\n",
        &["* A servfail; * AAAA fd00::1", OTHER],
        FOUND_OTHER,
    ),
    Row::new(
        "single-request, SERVFAIL for AAAA",
        "web.test",
        "options single-request\n",
        &["* A 10.0.0.1; * AAAA servfail", OTHER],
        "10.0.0.1",
    ),
    Row::new("single-request-reopen", "web.test", "options single-request-reopen\n", &[WEB], FOUND),
    Row::new("rotate", "web.test", "options rotate\n", &[WEB, WEB], FOUND).rotates(),
    Row::new(
        "rotate past a failure",
        "web.test",
        "options rotate\n",
        &["* * servfail", "* * servfail", "* * servfail"],
        "!Temporary",
    )
    .rotates(),
    Row::new(
        "rotate through the search",
        "web",
        "search a.test b.test c.test\noptions rotate\n",
        &["* * nxdomain", "* * nxdomain"],
        "!Unknown",
    )
    .rotates(),
    Row::new("rotate with one server", "web.test", "options rotate\n", &[WEB], FOUND),
    Row::new("attempts:9 is 5", "web.test", "options attempts:9\n", &["* * servfail"], "!Temporary"),
    Row::new("attempts:0 is 1", "web.test", "options attempts:0\n", &[WEB], FOUND).differs("glibc asks nothing then"),
    Row::new(
        "unknown options",
        "web.test",
        "options what ndots: 2 inet6 timeout:x #edns0\nnonsense\nsortlist 10.0.0.0\n",
        &[WEB],
        FOUND,
    ),
    Row::new("an option that begins like another", "web.test", "options edns0x rotate1\n", &[WEB], FOUND),
    Row::new(
        "the last of two",
        "web.test",
        "options attempts:1\noptions attempts:3\n",
        &["* * servfail"],
        "!Temporary",
    ),
];

/// A server that knows a name of a domain.
const IN_B: &str = "web.b.test * 10.0.0.1 fd00::1";

const SEARCH: &[Row] = &[
    Row::new("the second domain has the name", "web", "search a.test b.test c.test\n", &[IN_B], FOUND),
    Row::new("no domain has the name", "web", "search a.test b.test\n", &["* * nxdomain"], "!Unknown"),
    Row::new("a name with a dot is asked for as it is", "web.b", "search a.test test\n", &[IN_B], FOUND),
    Row::new("a name with few dots is searched", "web.b", "search a.test test\noptions ndots:5\n", &[IN_B], FOUND),
    Row::new("a name with few dots is asked for last", "web.b.test", "search svc.test\noptions ndots:5\n", &[IN_B], FOUND),
    Row::new("ndots:0", "web", "search b.test\noptions ndots:0\n", &[IN_B], FOUND),
    Row::new("ndots:99 is 15", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p", "search test\noptions ndots:99\n", &["* * nxdomain"], "!Unknown"),
    Row::new("ndots:-1 is 15", "a.b", "search test\noptions ndots:-1\n", &["* * nxdomain"], "!Unknown"),
    Row::new("ndots:x is 0", "web", "search test\noptions ndots:x\n", &["* * nxdomain"], "!Unknown"),
    Row::new("a complete name is not searched", "web.", "search b.test\noptions ndots:5\n", &[IN_B], "!Unknown"),
    Row::new("NODATA goes on", "web", "search a.test b.test\n", &["web.a.test * nodata; web.b.test * 10.0.0.1"], "10.0.0.1"),
    Row::new("NODATA is remembered", "web", "search a.test b.test\n", &["web.a.test * nodata"], "!NoAddress"),
    Row::new("NODATA is stronger than SERVFAIL", "web", "search a.test b.test\noptions attempts:1\n", &["web.a.test * nodata; web.b.test * servfail"], "!NoAddress"),
    Row::new("the name as it is decides", "web.x", "search a.test\n", &["web.x.a.test * nodata"], "!Unknown"),
    Row::new("the name as it is has no address", "web.x", "search a.test\n", &["web.x * nodata"], "!NoAddress"),
    Row::new("SERVFAIL goes on", "web", "search a.test b.test\noptions attempts:1\n", &["web.a.test * servfail; web.b.test * 10.0.0.1"], "10.0.0.1"),
    Row::new("SERVFAIL is remembered", "web", "search a.test b.test\noptions attempts:1\n", &["web.a.test * servfail"], "!Temporary"),
    Row::new("SERVFAIL of the name as it is goes on", "web.x", "search a.test\noptions attempts:1\n", &["web.x * servfail; web.x.a.test * 10.0.0.1"], "10.0.0.1"),
    Row::new("REFUSED ends the search", "web", "search a.test b.test\noptions attempts:1\n", &["web.a.test * refused; web.b.test * 10.0.0.9; web * 10.0.0.1"], "10.0.0.1"),
    Row::new("FORMERR ends the search", "web", "search a.test b.test\n", &["web.a.test * formerr; web.b.test * 10.0.0.9; web * 10.0.0.1"], "10.0.0.1"),
    Row::new("SERVFAIL by one server, REFUSED by the other", "web", "search a.test b.test\noptions attempts:1\n",
        &["web.b.test * 10.0.0.9; * * servfail", "web * 10.0.0.1; * * refused"], "10.0.0.1"),
    Row::new("servers that are down end the search", "web", "search a.test b.test\n", &[""], "!Temporary"),
    Row::new("servers that are down, and a name with a dot", "web.x", "search a.test b.test\n", &["", ""], "!Temporary"),
    Row::new("eight domains", "web", "search a b c d e f g h\n", &["web.h * 10.0.0.1"], "10.0.0.1"),
    Row::new("the root is a domain", "web", "search . b.test\n", &[IN_B], FOUND),
    Row::new("the root is the last domain", "web", "search a.test .\n", &["* * nxdomain"], "!Unknown"),
    Row::new("a domain that begins with a hyphen", "web", "search -x.d b.test\n", &[IN_B], FOUND),
    Row::new("a domain with dots around", "web", "search .b.test.\n", &[IN_B], FOUND),
    Row::new("a comment that is a domain", "web", "search a.test # b.test\n", &[IN_B], FOUND),
    Row::new("a domain that is no name", "web", "search a..b b.test\n", &[IN_B], FOUND).differs("glibc ends the search there"),
    Row::new("a domain that makes the name too long", "web", concat!(
        "search aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa b.test\n"),
        &[IN_B], FOUND).differs("glibc ends the search there"),
    Row::new("domain is a search of one", "web", "domain b.test c.test\n", &[IN_B], FOUND),
    Row::new("the last of search and domain", "web", "domain a.test\nsearch c.test b.test\nsearch \n", &[IN_B], FOUND),
    Row::new("the domain of the host name", "web", "", &[IN_B], FOUND).host_name("box.b.test"),
    Row::new("a host name without a domain", "web", "", &["web * 10.0.0.1"], "10.0.0.1"),
    Row::new("no-tld-query", "web", "search a.test\noptions no-tld-query\n", &["web * 10.0.0.1"], "!Unknown"),
    Row::new("no-tld-query without a search", "web", "options no-tld-query\n", &["web * 10.0.0.1"], "10.0.0.1"),
    Row::new("no_tld_query, and a dot", "web.x", "search a.test\noptions no_tld_query ndots:3\n", &["web.x * 10.0.0.1"], "10.0.0.1"),
];

const NAMES: &[Row] = &[
    Row::new("an underscore inside of a part", "a_b.test", "", &["a_b.test * 10.0.0.1"], "10.0.0.1"),
    Row::new("an underscore at the beginning", "_a.test", "", &["_a.test * 10.0.0.1"], "10.0.0.1"),
    Row::new("a hyphen at the beginning", "-a.test", "", &["* * 10.0.0.1"], "!Invalid"),
    Row::new("a hyphen at the end", "a-.-b.test", "", &["* * 10.0.0.1"], "10.0.0.1"),
    Row::new("a blank", "a b", "", &["* * 10.0.0.1"], "!Invalid"),
    Row::new("an empty part", "a..b", "", &["* * 10.0.0.1"], "!Invalid"),
    Row::new(
        "a part of 64",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b",
        "",
        &["* * 10.0.0.1"],
        "!Invalid",
    ),
    Row::new(
        "a part of 63",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b",
        "",
        &["* * 10.0.0.1"],
        "10.0.0.1",
    ),
    Row::new("the root", ".", "", &["* * nodata"], "!NoAddress"),
    Row::new("letters outside of ASCII", "b\u{fc}cher.test", "", &["xn--bcher-kva.test * 10.0.0.1"], "10.0.0.1")
        .differs("glibc does so only with AI_IDN, and WASI always"),
    Row::new("an address in two parts is one", "127.1", "", &["* * 10.0.0.9"], "127.0.0.1"),
    Row::new("a hexadecimal address", "0x7f.1", "", &["* * 10.0.0.9"], "127.0.0.1"),
    Row::new("an octal address", "017700000001", "", &["* * 10.0.0.9"], "127.0.0.1"),
    Row::new("a number is an address", "7", "", &["* * 10.0.0.9"], "0.0.0.7"),
    Row::new("five parts are a name", "1.2.3.4.5", "", &["* * 10.0.0.9"], "10.0.0.9"),
    Row::new("an address with a dot behind is a name", "1.2.3.4.", "", &["* * 10.0.0.9"], "10.0.0.9"),
    Row::new("no octal address", "08.1", "", &["* * 10.0.0.9"], "10.0.0.9"),
    Row::new("an IPv6 address", "FD00::0:1", "", &["* * 10.0.0.9"], "fd00::1"),
    Row::new("a mapped address stays one", "::ffff:127.0.0.1", "", &["* * 10.0.0.9"], "::ffff:127.0.0.1"),
    Row::new("an address with an interface", "fe80::1%lo", "", &["* * 10.0.0.9"], "fe80::1"),
    Row::new("an address with an interface's number", "fe80::1%1", "", &["* * 10.0.0.9"], "fe80::1"),
    Row::new("an interface for an address that has none", "::1%lo", "", &["* * 10.0.0.9"], "!Unknown"),
    Row::new("an address with an interface that is not there", "fe80::1%d9", "", &["* * 10.0.0.9"], "fe80::1")
        .differs("a literal is read without the network"),
];

const FILES: &[Row] = &[
    Row::new("the hosts file is first", "PEER.pod", "", &["* * 10.0.0.9"], "10.1.2.3")
        .hosts("10.1.2.3 peer Peer.pod\n"),
    Row::new("the hosts file has all", "peer", "", &["* * 10.0.0.9 fd00::9"], "fd00::7 10.1.2.3")
        .hosts("10.1.2.3 peer # comment\n\n \tfd00::7\tx peer\n10.1.2.4 other\n"),
    Row::new("lines of the hosts file that are none", "peer", "", &["* * 10.0.0.9"], "10.0.0.9")
        .hosts("::: peer\n127.1 peer\nfe80::1%lo peer\n#10.1.2.3 peer\n10.1.2.3 #peer\npeer\n"),
    Row::new("a line twice", "peer", "options no-aaaa\n", &["* * 10.0.0.9"], "fd00::7 10.1.2.3 10.1.2.3")
        .hosts("10.1.2.3 peer\n10.1.2.3 peer\nfd00::7 peer\n"),
    Row::new("the hosts file without servers", "peer", "", &[], "10.1.2.3").hosts("10.1.2.3 peer").without_conf(),
    Row::new("a name of the hosts file with a dot behind", "peer.pod.", "", &["* * 10.0.0.9"], "10.1.2.3")
        .hosts("10.1.2.3 peer.pod\n")
        .differs("glibc asks the server"),
    Row::new("a host.conf that is empty", "both", "", &[], "::1 127.0.0.1")
        .hosts("127.0.0.1 both\n::1 both\n")
        .host_conf("")
        .differs("glibc reads one line only"),
    Row::new("a mapped address in the hosts file", "peer", "", &[], "10.1.2.3")
        .hosts("::ffff:10.1.2.3 peer\n")
        .differs("glibc returns the mapped address"),
    Row::new("no resolv.conf", "web.test", "", &[], "!NoResolver")
        .without_conf()
        .elsewhere(&[("127.0.0.1:53", WEB)])
        .differs("glibc asks 127.0.0.1"),
    Row::new("a name that is none without a resolv.conf", "a b", "", &[], "!Invalid").without_conf(),
];

/// A pod with addresses of both kinds.
const DUAL: &[&str] = &[
    "link add d0 index 7 type veth peer name d1",
    "link set d0 addrgenmode none",
    "link set d1 addrgenmode none",
    "link set d1 up",
    "link set d0 up",
    "addr add 10.0.0.5/24 dev d0",
    "addr add fd00::5/64 dev d0 nodad",
    "route add default dev d0",
    "-6 route add default dev d0",
];

/// A pod with an IPv4 address.
const IPV4: &[&str] = &[
    "link add d0 index 7 type veth peer name d1",
    "link set d0 addrgenmode none",
    "link set d1 addrgenmode none",
    "link set d1 up",
    "link set d0 up",
    "addr add 10.0.0.5/24 dev d0",
    "route add default dev d0",
];

const ORDER: &[Row] = &[
    Row::new(
        "a private IPv6 address is no reason for IPv6",
        "web.test",
        "",
        &["* * 192.0.2.1 2001:db8::1 2001:db8:1::1"],
        "192.0.2.1 2001:db8::1 2001:db8:1::1",
    )
    .links(DUAL),
    Row::new("IPv6 in the same network", "web.test", "", &["* * 10.0.0.9 fd00::9 fd01::9"], "fd00::9 fd01::9 10.0.0.9")
        .links(DUAL),
    Row::new(
        "the nearest of the same subnet, with IPv6",
        "web.test",
        "",
        &["* A 10.9.0.1 10.0.0.200 10.0.0.4 10.0.1.1 10.0.0.5; * AAAA nodata"],
        "10.0.0.5 10.0.0.4 10.0.0.200 10.9.0.1 10.0.1.1",
    )
    .links(DUAL),
    Row::new(
        "the order of the server, without IPv6",
        "web.test",
        "",
        &["* A 10.9.0.1 10.0.0.200 10.0.0.4 10.0.1.1 10.0.0.5; * AAAA nodata"],
        "10.0.0.5 10.9.0.1 10.0.0.200 10.0.0.4 10.0.1.1",
    )
    .links(IPV4),
    Row::new("no route to IPv6", "web.test", "", &["* * 10.0.0.9 2001:db8::1"], "10.0.0.9 2001:db8::1").links(IPV4),
    Row::new("a deprecated source", "web.test", "", &["* * 192.0.2.1 fd00::9 fd01::9"], "192.0.2.1 fd00::9 fd01::9")
        .links(&[
            "link add d0 index 7 type veth peer name d1",
            "link set d0 addrgenmode none",
            "link set d1 addrgenmode none",
            "link set d1 up",
            "link set d0 up",
            "addr add 10.0.0.5/24 dev d0",
            "addr add fd00::5/64 dev d0 nodad preferred_lft 0",
            "route add default dev d0",
            "-6 route add default dev d0",
        ]),
    Row::new("the loopback of both kinds", "localhost", "", &[], "::1 127.0.0.1")
        .hosts("127.0.0.1 localhost\n::1 localhost\n"),
    Row::new(
        "loopback addresses",
        "web.test",
        "",
        &["* A 10.0.0.9 127.9.0.1 127.0.0.1 169.254.1.1; * AAAA nodata"],
        "127.0.0.1 127.9.0.1 10.0.0.9 169.254.1.1",
    )
    .links(IPV4),
    Row::new(
        "a 6to4 address and a site-local one",
        "web.test",
        "",
        &["* * 2002::1 fec0::1 2001::1 fd00::9 192.0.2.1"],
        "fd00::9 192.0.2.1 2001::1 2002::1 fec0::1",
    )
    .links(DUAL),
];
