//! Which calls are ours: those for a native container are passed on as they came, undecoded but for the id.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::{MethodHandler, Service, TtrpcContext};
use ttrpc::proto::{Request, Response};

use crate::native::{Natives, failure, is_ok, task_id};

/// A method of the Task API.
struct Passing {
    ours: Box<dyn MethodHandler + Send + Sync>,
    natives: Arc<Natives>,
    is_create: bool,
}

/// Puts the look at the id before every method of a service.
pub fn around(service: Service, natives: &Arc<Natives>) -> Service {
    let wrap = |(path, ours): (String, Box<dyn MethodHandler + Send + Sync>)| {
        let passing = Passing { ours, natives: natives.clone(), is_create: path.ends_with("Create") };
        (path, Box::new(passing) as Box<dyn MethodHandler + Send + Sync>)
    };
    let methods: HashMap<_, _> = service.methods.into_iter().map(wrap).collect();
    Service { methods, streams: service.streams }
}

#[async_trait]
impl MethodHandler for Passing {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        if self.is_create {
            return self.create(context, request).await;
        }
        if !self.natives.is_empty()
            && let Some(native) = task_id(&request.payload).and_then(|id| self.natives.get(&id))
        {
            return Ok(self.natives.pass(&native, request).await);
        }
        self.ours.handler(context, request).await
    }
}

impl Passing {
    async fn create(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let again = request.clone();
        let response = self.ours.handler(context, request).await?;
        if is_ok(&response) {
            return Ok(response);
        }
        match task_id(&again.payload) {
            Some(id) if self.natives.take_wanted(&id) => match self.natives.create(again).await {
                Ok(response) => Ok(response),
                Err(error) => {
                    tracing::info!(task = id, %error, "a native container was refused");
                    Ok(failure(&error))
                }
            },
            _ => Ok(response),
        }
    }
}
