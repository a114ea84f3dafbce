//! Calls about the pod of an older generation: the leading generation, which containerd calls, forwards them to the
//! controller socket of the generation that has the pod, and returns its answer.

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

/// The controller of the pods of all generations, for one containerd.
pub struct Forwarding {
    own: Arc<Controller>,
    /// One connection to each older generation, by its name.
    channels: Mutex<HashMap<String, Channel>>,
}

impl Forwarding {
    /// Forwards calls about pods that `own` does not have.
    pub fn new(own: Arc<Controller>) -> Forwarding {
        Forwarding { own, channels: Mutex::default() }
    }

    /// The older generation that has the pod; `None` if this generation has it, or none has.
    async fn older_owner<T>(&self, request: &Request<T>, id: &str) -> Option<ControllerClient<Channel>> {
        let older = self.own.task_sockets.older();
        if older.is_empty() {
            return None;
        }
        let pod = self.own.owner(&namespace(request).ok()?, id);
        if self.own.task_sockets.owned(&pod).is_some() {
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

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl ControllerApi for Forwarding {
    async fn create(&self, request: Request<api::ControllerCreateRequest>) -> Answer<api::ControllerCreateResponse> {
        self.own.create(request).await
    }

    async fn start(&self, request: Request<api::ControllerStartRequest>) -> Answer<api::ControllerStartResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.start(request).await,
            None => self.own.start(request).await,
        }
    }

    async fn platform(
        &self,
        request: Request<api::ControllerPlatformRequest>,
    ) -> Answer<api::ControllerPlatformResponse> {
        self.own.platform(request).await
    }

    async fn stop(&self, request: Request<api::ControllerStopRequest>) -> Answer<api::ControllerStopResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.stop(request).await,
            None => self.own.stop(request).await,
        }
    }

    async fn wait(&self, request: Request<api::ControllerWaitRequest>) -> Answer<api::ControllerWaitResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.wait(request).await,
            None => self.own.wait(request).await,
        }
    }

    async fn status(&self, request: Request<api::ControllerStatusRequest>) -> Answer<api::ControllerStatusResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.status(request).await,
            None => self.own.status(request).await,
        }
    }

    async fn shutdown(
        &self,
        request: Request<api::ControllerShutdownRequest>,
    ) -> Answer<api::ControllerShutdownResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.shutdown(request).await,
            None => self.own.shutdown(request).await,
        }
    }

    async fn metrics(&self, request: Request<api::ControllerMetricsRequest>) -> Answer<api::ControllerMetricsResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.metrics(request).await,
            None => self.own.metrics(request).await,
        }
    }

    async fn update(&self, request: Request<api::ControllerUpdateRequest>) -> Answer<api::ControllerUpdateResponse> {
        match self.older_owner(&request, &request.get_ref().sandbox_id).await {
            Some(mut older) => older.update(request).await,
            None => self.own.update(request).await,
        }
    }
}
