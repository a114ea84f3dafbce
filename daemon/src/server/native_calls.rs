//! Calls of the Task API for native containers: they go to runc's shim as they came. Only the id is decoded.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::native::{Natives, task_id};

/// A method of the Task API, with the check whether a call is for a native container.
struct PassOn {
    ours: Box<dyn MethodHandler + Send + Sync>,
    natives: Arc<Natives>,
}

/// Puts the check of the id before every method of a service.
pub fn around(service: Service, natives: &Arc<Natives>) -> Service {
    let wrap = |(path, ours)| {
        let passing: Box<dyn MethodHandler + Send + Sync> = Box::new(PassOn { ours, natives: natives.clone() });
        (path, passing)
    };
    let methods: HashMap<_, _> = service.methods.into_iter().map(wrap).collect();
    Service { methods, streams: service.streams }
}

#[async_trait]
impl MethodHandler for PassOn {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        if !self.natives.is_empty()
            && let Some(native) = task_id(&request.payload).and_then(|id| self.natives.get(&id))
        {
            return Ok(self.natives.pass(&native, request).await);
        }
        self.ours.handler(context, request).await
    }
}
