//! Handshakes with the clients of a service: how many at once (`http.tls_handshakes_max`), and how long each may take
//! (`http.tls_handshake_timeout_ms`). The wait for a turn counts.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::activity::{Activity, Watched};
use crate::service::Service;
use hearth_observe::metrics::Handshake;
use hearth_wasm::scheduler::Socket;

use super::ServerTls;

/// Speaks TLS with a client; none if that fails or takes too long.
pub async fn accept(
    service: &Arc<Service>,
    tls: &ServerTls,
    stream: Watched<Socket>,
    activity: &Activity,
) -> Option<TlsStream<Watched<Socket>>> {
    let time = Duration::from_millis(service.http.config().tls_handshake_timeout_ms);
    let (end, stream) = match timeout(time, shake_hands(service, tls, stream, activity)).await {
        Ok(Ok(stream)) => (Handshake::Done, Some(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client's TLS failed");
            (Handshake::Failed, None)
        }
        Err(_) => (Handshake::TooSlow, None),
    };
    service.counts.handshake(end);
    stream
}

async fn shake_hands(
    service: &Arc<Service>,
    tls: &ServerTls,
    stream: Watched<Socket>,
    activity: &Activity,
) -> std::io::Result<TlsStream<Watched<Socket>>> {
    let _turn = tls.handshakes.acquire().await.map_err(std::io::Error::other)?;
    let tell = {
        let service = service.clone();
        Box::new(move |renewal: Result<(), String>| {
            service.counts.renewed(renewal.is_ok());
            if let Err(text) = renewal {
                let text = format!("the new certificate cannot be used, and the one before stays: {text}");
                service.notes.write(&service.container.stdio, &text);
            }
        })
    };
    let configuration = tls.certificate.configuration(tell).await;
    let mut accepting = pin!(TlsAcceptor::from(configuration).accept(stream));
    poll_fn(|cx| {
        activity.begin_poll();
        accepting.as_mut().poll(cx)
    })
    .await
}
