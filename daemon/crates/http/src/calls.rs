//! Requests that a component sends: to another component of its application, which is called without leaving the
//! process, or to a server that the application allows.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::{Request, Response, StatusCode};
use tokio::sync::oneshot;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use hearth_base::tenant::{Kind, Permit, Tenant};
use hearth_spin::retain::INTERNAL;
use hearth_wasm::places::{Claim, Place};

use crate::admitted_request::AdmittedRequest;
use crate::component::Component;
use crate::outgoing::client::Timeouts;
use crate::outgoing::server_origin::ServerOrigin;
use crate::refused::Refused;
use crate::request::{name, serve};
use crate::request_body::RequestBody;
use crate::service::Service;
use crate::site::{Destination, Site};
use crate::trace_context::TraceContext;

/// The host by which a component calls its own application where its language has no relative requests.
const OWN: &str = "self.alt";

/// How many calls between components a container has at once. They take no permits of clients' requests: a request whose
/// call waits for a permit would keep its own meanwhile.
pub struct CallAdmission {
    tenant: Arc<Tenant>,
    places: Arc<Claim>,
}

/// The place and the permit that a call holds as long as it has an instance.
type AdmittedCall = (Place, Permit);

impl CallAdmission {
    /// Calls in the container with this budget. `places` are the node's.
    pub fn new(tenant: Arc<Tenant>, places: Arc<Claim>) -> CallAdmission {
        CallAdmission { tenant, places }
    }

    /// Admits a call, or refuses it at once if there are too many: a wait could be for calls that wait for this one.
    fn admit(&self) -> Result<AdmittedCall, Error> {
        let permit = self.tenant.take(Kind::ComponentCalls, 1).map_err(|_| Error::ConnectionLimitReached)?;
        let place = self.places.try_take().ok_or(Error::ConnectionLimitReached)?;
        Ok((place, permit))
    }
}

/// A component of an application that sends a request.
#[derive(Clone)]
pub struct Caller {
    service: Arc<Service>,
    component: Arc<Component>,
}

/// Where a component's request goes.
pub enum Called {
    /// To a server.
    Server(Request<WasiBody>),
    /// To a component of the application.
    Component(Arc<Component>, Request<WasiBody>),
    /// Nowhere: the daemon has the response.
    Answered(Response<WasiBody>),
}

impl Caller {
    /// A component of a service's application.
    pub fn new(service: Arc<Service>, component: Arc<Component>) -> Caller {
        Caller { service, component }
    }

    /// Where a request to this server goes. Whether another server may be reached is for the client to check.
    ///
    /// # Errors
    /// `HTTP-request-denied` if the component may not call its own application.
    pub fn route(&self, server: &ServerOrigin, mut request: Request<WasiBody>) -> Result<Called, Error> {
        let Site::Application(site) = &self.service.site else { return Ok(Called::Server(request)) };
        let allowed = &self.component.parts.settings.access.destinations;
        if server.host == OWN {
            if !allowed.own_application(server.scheme()) {
                return Err(self.denied(server));
            }
            return match self.service.site.destination(&mut request, None).map_err(refused)? {
                Destination::Component(component) => Ok(Called::Component(component, request)),
                Destination::Daemon(response) => {
                    Ok(Called::Answered(response.map(|body| body.map_err(|never| match never {}).boxed_unsync())))
                }
            };
        }
        if server.host.ends_with(INTERNAL) && !server.secure {
            if !allowed.host(server.scheme(), &server.host, server.port) {
                return Err(self.denied(server));
            }
            let component = site.called(&mut request, &server.host).map_err(refused)?;
            return Ok(Called::Component(component, request));
        }
        Ok(Called::Server(request))
    }

    /// Calls a component, and waits for the head of its response.
    ///
    /// # Errors
    /// The error code of `wasi:http`.
    pub async fn call(
        self,
        component: Arc<Component>,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let service = &self.service;
        let admitted = service.calls.admit()?;
        let admitted = Box::new((admitted, service.counts.begin()));
        let name = component.name_of(&name(&request));
        let trace = TraceContext::of(request.headers());
        let request = request.map(RequestBody::Component);
        let (send_head, head) = oneshot::channel();
        let admitted = AdmittedRequest { component, request, secure: false, trace, send_head, name, admitted };
        let patience = Timeouts::new(options, &service.http.config()).first_byte;
        let served = tokio::time::timeout(patience, serve(service, admitted, head, None)).await;
        let response = served.map_err(|_| Error::ConnectionReadTimeout)?.map_err(refused)?;
        Ok(response.map(|body| body.map_err(|_| Error::HttpResponseIncomplete).boxed_unsync()))
    }

    /// Notes in the container's log that a request is not allowed.
    pub fn denied(&self, server: &ServerOrigin) -> Error {
        let id = self.component.parts.id.as_deref().unwrap_or_default();
        let text = format!(
            "the component {id:?} may not send requests to {server}: add the host to its allowed_outbound_hosts"
        );
        self.service.note_refusal(text);
        Error::HttpRequestDenied
    }
}

/// The error code of an answer that the daemon gave instead of the component.
fn refused(refused: Refused) -> Error {
    match refused.status {
        StatusCode::SERVICE_UNAVAILABLE => Error::ConnectionLimitReached,
        StatusCode::GATEWAY_TIMEOUT => Error::ConnectionReadTimeout,
        StatusCode::NOT_FOUND => Error::DestinationNotFound,
        StatusCode::BAD_REQUEST => Error::HttpRequestUriInvalid,
        _ => Error::InternalError(Some(refused.text().into())),
    }
}
