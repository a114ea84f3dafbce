//! Which component answers a request: the only one of a container, or one of an application, by its routes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Request, Response, StatusCode};

use hearth_base::error::{Error, Result as MadeResult};
use hearth_spin::application::{HttpAnswer, StaticResponse};
use hearth_spin::headers::{RequestFacts, headers};
use hearth_spin::retain::INTERNAL;
use hearth_spin::routes::{RouteMatch, RoutePattern, Routes};
use hearth_wasm::runtime::Runtime;

use crate::component::{Component, NewComponent};
use crate::refused::Refused;

/// Paths that no component sees.
const WELL_KNOWN: &str = "/.well-known/spin/";

/// The component or the application that answers the requests of a container.
pub enum Site {
    /// One component, every request.
    One(Arc<Component>),
    /// The components of an application.
    Application(ApplicationSite),
}

/// The components of an application with their routes.
pub struct ApplicationSite {
    routes: Routes<Target>,
    components: BTreeMap<Arc<str>, Arc<Component>>,
    /// The route of requests that another component sends.
    internal: RoutePattern,
    /// The body of `/.well-known/spin/info`.
    info: Bytes,
}

/// The parts that an application's site is made from.
pub struct NewApplication {
    /// Its components that answer requests or take messages.
    pub components: Vec<NewComponent>,
    /// Its routes, each with its answer.
    pub routes: Vec<(RoutePattern, HttpAnswer)>,
    /// The JSON text that describes the application.
    pub info: String,
}

impl NewApplication {
    /// Opens the files of all components.
    ///
    /// # Errors
    /// The fault of a component, in one line.
    pub fn make(self, runtime: &Runtime) -> MadeResult<ApplicationSite> {
        let mut components = BTreeMap::new();
        for new in self.components {
            let id: Arc<str> = new.parts.id.clone().unwrap_or_default();
            let made = Component::new(runtime, new).map_err(|error| error.context(format!("the component {id:?}")))?;
            components.insert(id, made);
        }
        let mut routes = Vec::new();
        for (route, answer) in self.routes {
            let target = match answer {
                HttpAnswer::Static(response) => Target::Static(response),
                HttpAnswer::Component(id) => {
                    let missing = || Error::Internal(format!("the route of {id:?} leads to no component"));
                    Target::Component(components.get(id.as_str()).cloned().ok_or_else(missing)?)
                }
            };
            routes.push((route, target));
        }
        let (routes, internal) = (Routes::new(routes), RoutePattern::everything());
        Ok(ApplicationSite { routes, components, internal, info: self.info.into() })
    }
}

/// The target of a route.
enum Target {
    /// A component.
    Component(Arc<Component>),
    /// The same response always.
    Static(StaticResponse),
}

/// The component that answers a request, or the daemon's own answer.
pub enum Destination {
    /// A component.
    Component(Arc<Component>),
    /// The daemon, with this.
    Daemon(Response<Full<Bytes>>),
}

impl Site {
    /// Finds the destination of a client's request. An application's component is told of the request in headers.
    ///
    /// # Errors
    /// The answer to a request that contradicts itself.
    pub fn destination<B>(&self, request: &mut Request<B>, client: Option<SocketAddr>) -> Result<Destination, Refused> {
        match self {
            Site::One(component) => Ok(Destination::Component(component.clone())),
            Site::Application(application) => application.destination(request, client),
        }
    }

    /// Whether its components are told of their clients' addresses.
    pub fn tells_of_clients(&self) -> bool {
        matches!(self, Site::Application(_))
    }
}

impl ApplicationSite {
    /// The component with this id.
    pub(crate) fn component(&self, id: &str) -> Option<&Arc<Component>> {
        self.components.get(id)
    }

    fn destination<B>(&self, request: &mut Request<B>, client: Option<SocketAddr>) -> Result<Destination, Refused> {
        let host = host_of(request)?;
        let path_and_query = path_and_query(request);
        let path = path_and_query.split('?').next().unwrap_or_default();
        if let Some(name) = path.strip_prefix(WELL_KNOWN) {
            return Ok(Destination::Daemon(self.well_known(name)));
        }
        let Some((found, target)) = self.routes.find(path) else {
            return Ok(Destination::Daemon(empty(StatusCode::NOT_FOUND)));
        };
        match target {
            Target::Static(response) => Ok(Destination::Daemon(fixed(response)?)),
            Target::Component(component) => {
                let client = client.map(|client| client.to_string());
                let scheme = if request.uri().scheme() == Some(&Scheme::HTTPS) { "https" } else { "http" };
                let facts =
                    RequestFacts { scheme, host: &host, path_and_query: &path_and_query, client: client.as_deref() };
                tell(request.headers_mut(), &found, &facts)?;
                Ok(Destination::Component(component.clone()))
            }
        }
    }

    /// The component that another one calls by `host`, `ID.spin.internal`. It is told of the request in headers.
    ///
    /// # Errors
    /// The answer to a request that contradicts itself, or whose component does not exist.
    pub fn called<B>(&self, request: &mut Request<B>, host: &str) -> Result<Arc<Component>, Refused> {
        let id = host.strip_suffix(INTERNAL).unwrap_or(host);
        let component = self.components.get(id).ok_or(NO_COMPONENT)?;
        let path_and_query = path_and_query(request);
        let path = path_and_query.split('?').next().unwrap_or_default();
        let Some(found) = self.internal.matches(path) else { return Err(NO_COMPONENT) };
        let facts = RequestFacts { scheme: "http", host, path_and_query: &path_and_query, client: None };
        tell(request.headers_mut(), &found, &facts)?;
        request.headers_mut().remove(header::HOST);
        Ok(component.clone())
    }

    fn well_known(&self, name: &str) -> Response<Full<Bytes>> {
        let of_type = |body: Bytes, kind| {
            let mut response = Response::new(Full::new(body));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            response
        };
        match name {
            "health" => of_type(Bytes::from_static(b"OK"), "text/plain"),
            "info" => of_type(self.info.clone(), "application/json"),
            _ => empty(StatusCode::NOT_FOUND),
        }
    }
}

/// A component called another that the application does not have.
const NO_COMPONENT: Refused = Refused::new(StatusCode::NOT_FOUND, "the application has no such component");

/// The headers of a request cannot be told to its component.
const NO_TEXT: Refused = Refused::new(StatusCode::BAD_REQUEST, "the Host or the path is no text");

/// The host of a request, from its target or its `Host`.
fn host_of<B>(request: &Request<B>) -> Result<String, Refused> {
    let of_header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    match (request.uri().authority(), of_header) {
        (Some(authority), Some(host)) if !authority.as_str().eq_ignore_ascii_case(host) => {
            Err(Refused::new(StatusCode::BAD_REQUEST, "the Host differs from the request's authority"))
        }
        (Some(authority), _) => Ok(authority.to_string()),
        (None, Some(host)) => Ok(host.to_string()),
        (None, None) => Err(Refused::new(StatusCode::BAD_REQUEST, "the Host is missing")),
    }
}

fn path_and_query<B>(request: &Request<B>) -> String {
    request.uri().path_and_query().map_or_else(|| "/".into(), ToString::to_string)
}

/// Tells a component of its request.
fn tell(fields: &mut HeaderMap, found: &RouteMatch<'_>, facts: &RequestFacts<'_>) -> Result<(), Refused> {
    fields.remove(header::CONNECTION);
    for (name, value) in headers(found, facts) {
        let name = HeaderName::try_from(name).map_err(|_| NO_TEXT)?;
        fields.insert(name, HeaderValue::try_from(value).map_err(|_| NO_TEXT)?);
    }
    Ok(())
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn fixed(fixed: &StaticResponse) -> Result<Response<Full<Bytes>>, Refused> {
    const WRONG: Refused = Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "the static response is no HTTP");
    let mut response = Response::builder().status(fixed.status);
    for (name, value) in &fixed.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(fixed.body.clone()))).map_err(|_| WRONG)
}
