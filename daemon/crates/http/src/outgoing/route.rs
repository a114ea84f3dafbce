//! Where a request goes: its server, the protocol there, and the proxy on the way.
//!
//! * Proxies are those of the container's environment, as most clients read it: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and
//!   `NO_PROXY`, or the same in lower case. Requests to the loopback need none. A proxy that cannot be used fails the
//!   requests that would take it; they never go without it.
//! * HTTP/2 without TLS (RFC 9113, 3.3) is spoken to the servers that `HEARTH_HTTP_OUTGOING_H2C` names, and with requests
//!   of gRPC, which is defined over HTTP/2 only.

use std::net::IpAddr;

use hyper::header::{self, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{Method, Request, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use wasmtime_wasi_http::Error;

use hearth_base::env::last;

use super::server_origin::{ServerOrigin, bare_host};

/// The environment variable with the servers that HTTP/2 is spoken to without TLS: `HOST:PORT`, several with commas between,
/// or `*` for all.
pub const H2C: &str = "HEARTH_HTTP_OUTGOING_H2C";

/// The environment variables with proxies; each also counts in lower case.
const PROXIES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];

/// The environment variable with the servers that need no proxy.
const NO_PROXY: &str = "NO_PROXY";

/// The protocol on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// HTTP/1.1, without TLS.
    Http1,
    /// HTTP/2, without TLS.
    H2c,
    /// TLS; the server chooses HTTP/1.1 or HTTP/2 by ALPN.
    Tls,
}

/// A proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its name or address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `Proxy-Authorization`.
    pub authorization: Option<HeaderValue>,
}

/// The other end of a connection, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The protocol.
    pub dialect: Dialect,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The proxy that the connection is tunnelled through.
    pub tunnel: Option<Proxy>,
}

/// A request's way.
#[derive(Debug, Clone)]
pub struct Route {
    /// The other end of its connection.
    pub server: Server,
    /// The request's own URI.
    uri: Uri,
    /// The proxy that gets the request itself, which is then the other end of its connection.
    forwarder: Option<Proxy>,
}

/// The ways of one container's requests.
pub struct Routes {
    h2c: Vec<String>,
    proxies: Result<Option<Matcher>, String>,
}

impl Routes {
    /// As the environment asks for them.
    pub fn new(env: &[(String, String)]) -> Routes {
        let named = last(env, H2C).unwrap_or_default();
        let h2c = named.split(',').map(|server| server.trim().to_ascii_lowercase()).filter(|server| !server.is_empty());
        Routes { h2c: h2c.collect(), proxies: proxies(env) }
    }

    /// Why no request can take a proxy that the environment asks for.
    pub fn unusable_proxy(&self) -> Option<&str> {
        self.proxies.as_ref().err().map(String::as_str)
    }

    /// The way of a request to its server.
    ///
    /// # Errors
    /// The error code of `wasi:http`.
    pub fn of<B>(&self, server: ServerOrigin, request: &Request<B>) -> Result<Route, Error> {
        if request.method() == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let uri = request.uri();
        let ServerOrigin { secure, host, port } = server;
        let dialect = match secure {
            true => Dialect::Tls,
            false if is_grpc(request) || self.is_h2c(&host, port) => Dialect::H2c,
            false => Dialect::Http1,
        };
        let proxy = if is_loopback(&host) { None } else { self.proxy(uri)? };
        Ok(match (dialect, proxy) {
            (Dialect::Http1, Some(proxy)) => {
                let server = Server { dialect, host: proxy.host.clone(), port: proxy.port, tunnel: None };
                Route { server, uri: uri.clone(), forwarder: Some(proxy) }
            }
            (_, tunnel) => Route { server: Server { dialect, host, port, tunnel }, uri: uri.clone(), forwarder: None },
        })
    }

    fn is_h2c(&self, host: &str, port: u16) -> bool {
        let at_port = format!("{host}:{port}");
        self.h2c.iter().any(|server| server == "*" || *server == at_port || *server == format!("[{host}]:{port}"))
    }

    fn proxy(&self, uri: &Uri) -> Result<Option<Proxy>, Error> {
        match &self.proxies {
            Ok(None) => Ok(None),
            Ok(Some(proxies)) => proxies.intercept(uri).map(|found| Proxy::of(&found)).transpose(),
            Err(_) => Err(Error::ConfigurationError),
        }
    }
}

impl Proxy {
    fn of(found: &Intercept) -> Result<Proxy, Error> {
        let authority = found.uri().authority().ok_or(Error::ConfigurationError)?;
        let port = authority.port_u16().unwrap_or(80);
        Ok(Proxy { host: bare_host(authority), port, authorization: found.basic_auth().cloned() })
    }
}

/// The proxies that the environment asks for, or why one of them cannot be used.
fn proxies(env: &[(String, String)]) -> Result<Option<Matcher>, String> {
    let find = |name: &str| {
        let is_set = |known: &str, value: &str| known.eq_ignore_ascii_case(name) && !value.trim().is_empty();
        env.iter().rev().find(|(known, value)| is_set(known, value)).map(|(_, value)| value.trim())
    };
    let [http, https, all] = PROXIES.map(find);
    for (name, value) in PROXIES.iter().zip([http, https, all]) {
        let Some(value) = value else { continue };
        let found =
            Matcher::builder().all(value.to_owned()).build().intercept(&Uri::from_static("http://any.invalid/"));
        if found.as_ref().and_then(|found| found.uri().scheme_str()) != Some("http") {
            // Without the value, which may have a password.
            return Err(format!("{name} is not a proxy like http://proxy.example:3128"));
        }
    }
    if http.or(https).or(all).is_none() {
        return Ok(None);
    }
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let builder = Matcher::builder().http(text(http)).https(text(https)).all(text(all));
    Ok(Some(builder.no(text(find(NO_PROXY))).build()))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Whether it is a request of gRPC. gRPC-Web is another protocol, for HTTP/1.1, too.
fn is_grpc<B>(request: &Request<B>) -> bool {
    let content = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    const GRPC: &[u8] = b"application/grpc";
    content.len() >= GRPC.len()
        && content[..GRPC.len()].eq_ignore_ascii_case(GRPC)
        && matches!(content.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

impl Route {
    /// Writes the request for a connection of HTTP/1.1.
    pub fn write_http1<B>(&self, request: &mut Request<B>) {
        let target = request_target(request.method(), &self.uri);
        *request.uri_mut() = target;
        *request.version_mut() = hyper::Version::HTTP_11;
        if let Some(host) = self.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
            request.headers_mut().entry(header::HOST).or_insert(host);
        }
        let Some(forwarder) = &self.forwarder else { return };
        // RFC 9112, 3.2.2: a proxy needs the whole URI.
        *request.uri_mut() = self.uri.clone();
        if let Some(authorization) = &forwarder.authorization {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
    }

    /// Writes the request for a connection of HTTP/2. There the URI has the host (RFC 9113, 8.3.1), and gRPC asks for
    /// `TE: trailers`, which guests may not set: the response's trailers do reach them.
    pub fn write_http2<B>(&self, request: &mut Request<B>) {
        let mut parts = self.uri.clone().into_parts();
        parts.scheme = Some(if self.server.dialect == Dialect::Tls { Scheme::HTTPS } else { Scheme::HTTP });
        parts.path_and_query = request_target(request.method(), &self.uri).into_parts().path_and_query;
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_else(|_| self.uri.clone());
        *request.version_mut() = hyper::Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
        request.headers_mut().entry(header::TE).or_insert(HeaderValue::from_static("trailers"));
    }
}

/// The request target (RFC 9112, 3.2) for a server that is no proxy: the path and the query. An empty path is `/`; with
/// OPTIONS, where there is no query either, it is `*`.
fn request_target(method: &Method, uri: &Uri) -> Uri {
    let Some(path_and_query) = uri.path_and_query() else { return Uri::from_static("/") };
    // A Uri without scheme shows an empty path as it is; one with a scheme shows it as `/`.
    let target = Uri::from(path_and_query.clone());
    if !target.path().is_empty() && path_and_query.as_str().starts_with(['/', '*']) {
        return target;
    }
    match target.query() {
        None if method == Method::OPTIONS => Uri::from_static("*"),
        None => Uri::from_static("/"),
        // It was part of a valid Uri.
        Some(query) => format!("/?{query}").parse().unwrap_or(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(uri: &str) -> Request<()> {
        Request::builder().uri(uri).body(()).unwrap()
    }

    fn route(routes: &Routes, uri: &str) -> Result<Route, Error> {
        let request = to(uri);
        routes.of(ServerOrigin::of(request.uri())?, &request)
    }

    fn routes(env: &[(&str, &str)]) -> Routes {
        Routes::new(&env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect::<Vec<_>>())
    }

    #[test]
    fn a_request_says_where_it_goes() {
        let at = |uri: &str| route(&routes(&[]), uri).map(|route| route.server);
        let expected = |dialect, host: &str, port| Server { dialect, host: host.into(), port, tunnel: None };
        assert_eq!(at("http://Peer/a").unwrap(), expected(Dialect::Http1, "peer", 80));
        assert_eq!(at("https://peer/").unwrap(), expected(Dialect::Tls, "peer", 443));
        assert_eq!(at("https://[2001:db8::1]:8443/").unwrap(), expected(Dialect::Tls, "2001:db8::1", 8443));
        assert!(matches!(at("http://user@peer/"), Err(Error::HttpRequestUriInvalid)));
        assert!(matches!(at("/only/a/path"), Err(Error::HttpRequestUriInvalid)));
    }

    #[test]
    fn a_request_line_has_a_target_whatever_the_path() {
        let target = |method: Method, uri: &str| request_target(&method, to(uri).uri()).to_string();
        assert_eq!(target(Method::GET, "http://peer/a?b=c"), "/a?b=c");
        assert_eq!(target(Method::GET, "http://peer/"), "/");
        assert_eq!(target(Method::GET, "http://peer"), "/");
        assert_eq!(target(Method::GET, "http://peer?b=c"), "/?b=c");
        assert_eq!(target(Method::OPTIONS, "http://peer/"), "/");
        assert_eq!(target(Method::OPTIONS, "http://peer?b=c"), "/?b=c");
        // As a guest has it that gives the empty string as the path.
        let empty = Uri::builder().scheme("http").authority("peer").path_and_query("").build().unwrap();
        assert_eq!(request_target(&Method::GET, &empty), "/");
        assert_eq!(request_target(&Method::OPTIONS, &empty), "*");
    }

    #[test]
    fn http_2_without_tls_is_for_grpc_and_for_named_servers() {
        let dialect = |env: &[(&str, &str)], uri: &str, content: &str| {
            let mut request = to(uri);
            request.headers_mut().insert(header::CONTENT_TYPE, content.parse().unwrap());
            routes(env).of(ServerOrigin::of(request.uri()).unwrap(), &request).unwrap().server.dialect
        };
        let plain = "http://peer:50051/";
        for content in ["application/grpc", "application/grpc+proto", "Application/gRPC; a=b"] {
            assert_eq!(dialect(&[], plain, content), Dialect::H2c, "{content}");
        }
        for content in ["application/grpc-web", "application/grpcx", "text/plain"] {
            assert_eq!(dialect(&[], plain, content), Dialect::Http1, "{content}");
        }
        assert_eq!(dialect(&[], "https://peer/", "application/grpc"), Dialect::Tls);
        assert_eq!(dialect(&[(H2C, "other:1, PEER:50051")], plain, "a/b"), Dialect::H2c);
        assert_eq!(dialect(&[(H2C, "*")], plain, "a/b"), Dialect::H2c);
        assert_eq!(dialect(&[(H2C, "[::1]:8")], "http://[::1]:8/", "a/b"), Dialect::H2c);
        assert_eq!(dialect(&[(H2C, "peer:1")], plain, "a/b"), Dialect::Http1);
    }

    #[test]
    fn proxies_are_those_of_the_environment() {
        let env = [
            ("http_proxy", "http://plain.test:3128"),
            ("HTTPS_PROXY", "user:pass@secure.test:3129"),
            ("NO_PROXY", "inside.test,10.0.0.0/8"),
        ];
        let routes = routes(&env);
        let of = |uri: &str| route(&routes, uri).unwrap();
        let plain = of("http://peer/a");
        assert_eq!((plain.server.host.as_str(), plain.server.port), ("plain.test", 3128));
        let mut request = to("http://peer/a");
        plain.write_http1(&mut request);
        assert_eq!(request.uri(), "http://peer/a");
        assert_eq!(request.headers()[header::HOST], "peer");
        let secure = of("https://peer/a");
        let tunnel = secure.server.tunnel.clone().unwrap();
        assert_eq!((secure.server.host.as_str(), tunnel.host.as_str(), tunnel.port), ("peer", "secure.test", 3129));
        // `user:pass` in base64.
        assert_eq!(tunnel.authorization.unwrap(), "Basic dXNlcjpwYXNz");
        for direct in
            ["http://inside.test/", "https://a.inside.test/", "http://10.1.2.3/", "http://localhost/", "http://[::1]/"]
        {
            let route = of(direct);
            assert!(route.forwarder.is_none() && route.server.tunnel.is_none(), "{direct}");
            let mut request = to(direct);
            route.write_http1(&mut request);
            assert_eq!(request.uri(), "/", "{direct}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_fails_requests_and_is_named() {
        for value in ["socks5://proxy.test:1", "https://proxy.test", "::not a proxy::"] {
            let routes = routes(&[("ALL_PROXY", value)]);
            assert!(matches!(route(&routes, "http://peer/"), Err(Error::ConfigurationError)), "{value}");
            assert!(route(&routes, "http://localhost/").is_ok(), "{value}");
            let text = routes.unusable_proxy().unwrap();
            assert!(text.starts_with("ALL_PROXY ") && !text.contains(value), "{text}");
        }
        assert!(route(&routes(&[("HTTP_PROXY", " ")]), "http://peer/").unwrap().forwarder.is_none());
    }

    #[test]
    fn a_request_of_http_2_has_its_host_in_the_uri() {
        let mut request = to("http://peer:8/a?b=c");
        request.headers_mut().insert(header::HOST, "peer:8".parse().unwrap());
        let route = route(&routes(&[(H2C, "*")]), "http://peer:8/a?b=c").unwrap();
        route.write_http2(&mut request);
        assert_eq!(request.uri(), "http://peer:8/a?b=c");
        assert!(!request.headers().contains_key(header::HOST));
        assert_eq!(request.headers()[header::TE], "trailers");
        // The same request over HTTP/1.1, after the connection was gone.
        route.write_http1(&mut request);
        assert_eq!(request.uri(), "/a?b=c");
        assert_eq!(request.headers()[header::HOST], "peer:8");
    }
}
