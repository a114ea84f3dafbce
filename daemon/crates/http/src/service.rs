//! A container that serves HTTP: from the environment that its pod sets to a bound port.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hearth_base::env::last;
use hearth_base::error::{Error, Result};
use hearth_base::tenant::Tenant;
use hearth_observe::starts::About;
use hearth_stdio::Stdio;
use hearth_wasm::memory::MemoryUse;
use hearth_wasm::runtime::Runtime;
use hearth_wasm::scheduler::Guest;

use crate::access_log::AccessLog;
use crate::admission::RequestAdmission;
use crate::calls::CallAdmission;
use crate::component::{Component, NewComponent};
use crate::context::Http;
use crate::counts::Counts;
use crate::daemon_notes::DaemonNotes;
use crate::lines::Marks;
use crate::listener::{self, Listen};
use crate::requests::Requests;
use crate::site::{NewApplication, Site};
use crate::tls::ServerTls;

/// The environment variable with which a pod asks for the service of a component that is a command, too.
pub const SERVE: &str = "HEARTH_HTTP";

/// Whether the environment asks that the component serves (`HEARTH_HTTP=serve`).
///
/// # Errors
/// `InvalidArgument` if the variable has another value.
pub fn asked(env: &[(String, String)]) -> Result<bool> {
    match last(env, SERVE).map(str::trim) {
        None | Some("") => Ok(false),
        Some("serve") => Ok(true),
        Some(value) => Err(Error::InvalidArgument(format!("{SERVE}={value:?} is not \"serve\""))),
    }
}

/// The container that serves, as its requests share it.
pub struct ServedContainer {
    /// Its stdio.
    pub stdio: Arc<Stdio>,
    /// Its memory.
    pub memory: Arc<MemoryUse>,
    /// Its budget.
    pub tenant: Arc<Tenant>,
    /// The leader of the requests' guests: the listener's.
    pub guest: Arc<Guest>,
    /// Its requests that are under way.
    pub requests: Arc<Requests>,
    /// For messages, metrics and the status page.
    pub about: Arc<About>,
}

/// The parts that a service is made from.
pub struct NewService {
    /// The component or the application that answers.
    pub site: NewSite,
    /// Where it listens; nowhere if its components only take messages.
    pub listen: Option<Listen>,
    /// The container's environment, which asks for TLS, an access log and marks.
    pub env: Vec<(String, String)>,
    /// The container's root on the host.
    pub root: PathBuf,
    /// The container.
    pub container: ServedContainer,
    /// Whether its pod has metrics of its own.
    pub by_pod: bool,
}

/// The component or the application that a service is made for.
pub enum NewSite {
    /// One component.
    One(Box<NewComponent>),
    /// The components of an application.
    Application(NewApplication),
}

/// A container that serves.
pub struct Service {
    /// The component or the application that answers.
    pub site: Site,
    /// The container.
    pub container: ServedContainer,
    /// Which requests of clients get an instance.
    pub admission: RequestAdmission,
    /// Which requests of its own components get one.
    pub calls: CallAdmission,
    /// The log of its requests, if it has one.
    pub access_log: Option<AccessLog>,
    /// The number of instances made so far.
    pub instances: AtomicU64,
    /// TLS at its port, if it speaks TLS.
    pub tls: Option<ServerTls>,
    /// Marks that its output lines begin with.
    pub marks: Marks,
    /// Its metrics.
    pub counts: Arc<Counts>,
    /// Notes of the daemon in its stderr.
    pub notes: DaemonNotes,
    /// The context that all services share.
    pub http: Arc<Http>,
    /// The engine parts that all guests share.
    pub runtime: Arc<Runtime>,
}

/// A service whose port is bound and not served yet; see [`crate::accept::serve`].
pub struct Bound {
    pub(crate) service: Arc<Service>,
    pub(crate) listeners: Vec<TcpListener>,
}

impl Bound {
    /// The service.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }
}

impl Service {
    /// Opens the files of its components and binds its port. Has to be called in the future of the service's own guest.
    ///
    /// # Errors
    /// The fault of a component, the environment, the root, the certificate or the port, in one line.
    pub async fn bind(http: &Arc<Http>, runtime: &Arc<Runtime>, new: NewService) -> Result<Bound> {
        let site = match new.site {
            NewSite::One(component) => Site::One(Component::new(runtime, *component)?),
            NewSite::Application(application) => Site::Application(application.make(runtime)?),
        };
        let env = &new.env;
        let tls = ServerTls::of(http, env, new.root).await?;
        let listeners = match &new.listen {
            Some(listen) => listener::bind(http, listen, new.container.guest.identity()).await?,
            None => Vec::new(),
        };
        let named = new.container.about.pod.as_ref().filter(|_| new.by_pod);
        let pod = named.map(|pod| runtime.metrics.http.pod([&pod.namespace, &pod.name, &pod.container]));
        let service = Service {
            site,
            tls,
            access_log: AccessLog::of(env)?,
            instances: AtomicU64::new(0),
            admission: RequestAdmission::new(&http.config(), new.container.tenant.clone(), http.places.join()),
            calls: CallAdmission::new(new.container.tenant.clone(), http.places.join()),
            marks: Marks::of(env),
            counts: Arc::new(Counts::new(runtime.metrics.clone(), pod)),
            notes: DaemonNotes::default(),
            http: http.clone(),
            runtime: runtime.clone(),
            container: new.container,
        };
        service.container.memory.reclaim_from(service.container.requests.spare.clone());
        Ok(Bound { service: Arc::new(service), listeners })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_asks_for_the_service_in_one_word() {
        let asked = |values: &[&str]| {
            let env: Vec<_> = values.iter().map(|value| (SERVE.to_string(), value.to_string())).collect();
            super::asked(&env)
        };
        assert!(!asked(&[]).unwrap() && !asked(&[""]).unwrap());
        assert!(asked(&["serve"]).unwrap() && asked(&["run", "serve"]).unwrap(), "the last value counts");
        let error = asked(&["serve", "run"]).unwrap_err().to_string();
        assert!(error.contains("HEARTH_HTTP=\"run\""), "{error}");
    }
}
