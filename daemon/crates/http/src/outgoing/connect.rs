//! Making a connection: names, sockets in the pod's network, the tunnel through a proxy, TLS, and the beginning of HTTP.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use wasmtime_wasi_http::Error;

use super::body::Sending;
use super::context::OutgoingContext;
use super::fault;
use super::route::{Dialect, Proxy, Server};
use super::tls::Trust;
use hearth_base::destinations::Destinations;
use hearth_base::tenant::Permit;
use hearth_wasm::dial::dial;
use hearth_wasm::resolver::Names;

/// The bytes that a server may send before the guest reads them: of one response, and on one connection of HTTP/2.
/// The daemon keeps it outside the guest's memory.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// How much of a request's body waits for its server, in bytes.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Something that bytes go over.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection that HTTP has begun on.
pub enum Connected {
    /// HTTP/1.1.
    Http1(http1::SendRequest<Sending>),
    /// HTTP/2.
    Http2(http2::SendRequest<Sending>),
}

/// Makes the connections of one container.
pub struct Connector {
    context: Arc<OutgoingContext>,
    names: Names,
    destinations: Destinations,
    trust: Trust,
}

impl Connector {
    /// With these names and certificates, to no address that `destinations` block.
    pub fn new(context: Arc<OutgoingContext>, names: Names, destinations: Destinations, trust: Trust) -> Connector {
        Connector { context, names, destinations, trust }
    }

    /// Makes a connection, which holds `place` until its end. The addresses of a name share the time until `deadline`.
    ///
    /// # Errors
    /// The error code of `wasi:http`.
    pub async fn connect(&self, server: &Server, place: Permit, deadline: Instant) -> Result<Connected, Error> {
        let stream: Box<dyn Transport> = match &server.tunnel {
            None => Box::new(self.reach(&server.host, server.port, deadline).await?),
            Some(proxy) => {
                let stream = self.reach(&proxy.host, proxy.port, deadline).await?;
                Box::new(self.tunnel(stream, server, proxy).await?)
            }
        };
        match server.dialect {
            Dialect::Http1 => self.begin_http1(stream, place).await,
            Dialect::H2c => self.begin_http2(stream, place).await,
            Dialect::Tls => {
                let stream = self.trust.secure(&server.host, stream).await?;
                match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => self.begin_http2(stream, place).await,
                    _ => self.begin_http1(stream, place).await,
                }
            }
        }
    }

    async fn reach(&self, host: &str, port: u16, deadline: Instant) -> Result<TcpStream, Error> {
        let addresses = self.names.addresses(host).await.map_err(fault::unresolved)?;
        let allowed = addresses.into_iter().filter(|address| self.destinations.address(*address));
        let addresses: Vec<_> = allowed.map(|address| SocketAddr::new(address, port)).collect();
        if addresses.is_empty() {
            return Err(Error::DestinationIpProhibited);
        }
        dial(&self.names.identity, &addresses, deadline).await.map_err(|error| fault::connecting(&error))
    }

    /// Asks a proxy for a tunnel to a server (RFC 9110, 9.3.6).
    async fn tunnel(
        &self,
        stream: TcpStream,
        server: &Server,
        proxy: &Proxy,
    ) -> Result<impl Transport + 'static, Error> {
        let is_v6 = server.host.contains(':');
        let authority = if is_v6 {
            format!("[{}]:{}", server.host, server.port)
        } else {
            format!("{}:{}", server.host, server.port)
        };
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() =
            Uri::builder().authority(authority.as_str()).build().map_err(|_| Error::HttpRequestUriInvalid)?;
        let host = HeaderValue::from_str(&authority).map_err(|_| Error::HttpRequestUriInvalid)?;
        request.headers_mut().insert(header::HOST, host);
        if let Some(authorization) = &proxy.authorization {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.context.config().header_bytes_max);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| fault::exchanging(&error))?;
        let mut connection = pin!(connection.with_upgrades());
        let mut asking = pin!(async {
            let response = sender.send_request(request).await.map_err(|error| fault::exchanging(&error))?;
            if !response.status().is_success() {
                return Err(fault::refused_by_proxy(response.status()));
            }
            hyper::upgrade::on(response).await.map_err(|error| fault::exchanging(&error))
        });
        let mut has_ended = false;
        let upgraded = poll_fn(|cx| {
            has_ended = has_ended || connection.as_mut().poll(cx).is_ready();
            asking.as_mut().poll(cx)
        });
        Ok(TokioIo::new(upgraded.await?))
    }

    async fn begin_http1(&self, stream: impl Transport + 'static, place: Permit) -> Result<Connected, Error> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.context.config().header_bytes_max);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| fault::exchanging(&error))?;
        self.drive(connection, place);
        Ok(Connected::Http1(sender))
    }

    async fn begin_http2(&self, stream: impl Transport + 'static, place: Permit) -> Result<Connected, Error> {
        let header_bytes_max = self.context.config().header_bytes_max;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(u32::try_from(header_bytes_max).unwrap_or(u32::MAX));
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| fault::exchanging(&error))?;
        self.drive(connection, place);
        Ok(Connected::Http2(sender))
    }

    fn drive(&self, connection: impl Future<Output = hyper::Result<()>> + Send + 'static, place: Permit) {
        let metrics = self.context.metrics.clone();
        metrics.http.outgoing.connections.inc();
        self.context.runtime.spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a guest's connection ended early");
            }
            metrics.http.outgoing.connections.dec();
        });
    }
}
