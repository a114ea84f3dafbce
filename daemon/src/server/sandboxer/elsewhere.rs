//! What the generation in charge is asked of a pod that an older generation has made: that one answers, on the
//! socket of its own.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_client::services::v1::sandbox as api;
use containerd_client::services::v1::sandbox::controller_client::ControllerClient;
use parking_lot::Mutex;
use tonic::codegen::async_trait;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::generated::controller_server::Controller as ControllerApi;
use super::{Controller, namespace};

/// The pods of all generations, for one containerd.
pub struct Anywhere {
    here: Arc<Controller>,
    /// To older generations, by their names. A connection to each is enough for all calls.
    channels: Mutex<HashMap<String, Channel>>,
}

impl Anywhere {
    /// Those of `here`, and of the generations before it.
    pub fn new(here: Arc<Controller>) -> Anywhere {
        Anywhere { here, channels: Mutex::default() }
    }

    /// The older generation that has the pod.
    async fn elsewhere<T>(&self, request: &Request<T>, id: &str) -> Option<ControllerClient<Channel>> {
        let older = self.here.task_sockets.older();
        if older.is_empty() {
            return None;
        }
        let pod = self.here.owner(namespace(request).ok()?, id);
        if self.here.task_sockets.owned(&pod).is_some() {
            return None;
        }
        let (generation, socket) = older.controller(&pod).await?;
        let living = older.living();
        let mut channels = self.channels.lock();
        channels.retain(|generation, _| living.contains(generation));
        let channel = channels.entry(generation).or_insert_with(|| {
            // Fails only for bytes that are not UTF-8.
            Endpoint::from_shared(format!("unix://{socket}")).expect("a string").connect_lazy()
        });
        Some(ControllerClient::new(channel.clone()))
    }
}

/// A call about a pod, made where the pod is.
macro_rules! by_whose_it_is {
    ($all:ident.$call:ident($request:ident)) => {
        match $all.elsewhere(&$request, &$request.get_ref().sandbox_id).await {
            Some(mut there) => there.$call($request).await,
            None => $all.here.$call($request).await,
        }
    };
}

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl ControllerApi for Anywhere {
    async fn create(&self, request: Request<api::ControllerCreateRequest>) -> Answer<api::ControllerCreateResponse> {
        self.here.create(request).await
    }

    async fn start(&self, request: Request<api::ControllerStartRequest>) -> Answer<api::ControllerStartResponse> {
        by_whose_it_is!(self.start(request))
    }

    async fn platform(
        &self,
        request: Request<api::ControllerPlatformRequest>,
    ) -> Answer<api::ControllerPlatformResponse> {
        self.here.platform(request).await
    }

    async fn stop(&self, request: Request<api::ControllerStopRequest>) -> Answer<api::ControllerStopResponse> {
        by_whose_it_is!(self.stop(request))
    }

    async fn wait(&self, request: Request<api::ControllerWaitRequest>) -> Answer<api::ControllerWaitResponse> {
        by_whose_it_is!(self.wait(request))
    }

    async fn status(&self, request: Request<api::ControllerStatusRequest>) -> Answer<api::ControllerStatusResponse> {
        by_whose_it_is!(self.status(request))
    }

    async fn shutdown(
        &self,
        request: Request<api::ControllerShutdownRequest>,
    ) -> Answer<api::ControllerShutdownResponse> {
        by_whose_it_is!(self.shutdown(request))
    }

    async fn metrics(&self, request: Request<api::ControllerMetricsRequest>) -> Answer<api::ControllerMetricsResponse> {
        by_whose_it_is!(self.metrics(request))
    }

    async fn update(&self, request: Request<api::ControllerUpdateRequest>) -> Answer<api::ControllerUpdateResponse> {
        by_whose_it_is!(self.update(request))
    }
}
