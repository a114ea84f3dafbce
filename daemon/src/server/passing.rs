//! Which calls are ours: those for a native container are passed on as they came, undecoded but for the id.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::native::{Natives, task_id};

/// A method of the Task API.
struct Passing {
    ours: Box<dyn MethodHandler + Send + Sync>,
    natives: Arc<Natives>,
}

/// Puts the look at the id before every method of a service.
pub fn around(service: Service, natives: &Arc<Natives>) -> Service {
    let wrap = |(path, ours)| {
        let passing: Box<dyn MethodHandler + Send + Sync> = Box::new(Passing { ours, natives: natives.clone() });
        (path, passing)
    };
    let methods: HashMap<_, _> = service.methods.into_iter().map(wrap).collect();
    Service { methods, streams: service.streams }
}

#[async_trait]
impl MethodHandler for Passing {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        if !self.natives.is_empty()
            && let Some(native) = task_id(&request.payload).and_then(|id| self.natives.get(&id))
        {
            return Ok(self.natives.pass(&native, request).await);
        }
        self.ours.handler(context, request).await
    }
}
