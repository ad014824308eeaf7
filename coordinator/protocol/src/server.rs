//! The service as a coordinator offers it.

use crate::token::{Token, admit};
use crate::{FROM_COORDINATOR_LIMIT, FROM_WORKER_LIMIT, KEEP_ALIVE, KEEP_ALIVE_TIMEOUT};
use tonic::service::interceptor::{InterceptedService, Interceptor};
use tonic::transport::Server;
use tonic::{Request, Status};

pub use crate::message::coordinator_server::{Coordinator, CoordinatorServer};

/// Lets requests through that carry the join token.
#[derive(Debug, Clone)]
pub struct Admission(Option<Token>);

impl Interceptor for Admission {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        admit(self.0.as_ref(), request)
    }
}

/// `coordinator` behind the token check and the size limits.
pub fn service<C: Coordinator>(
    coordinator: C,
    token: Option<Token>,
) -> InterceptedService<CoordinatorServer<C>, Admission> {
    let limited = CoordinatorServer::new(coordinator)
        .max_decoding_message_size(FROM_WORKER_LIMIT)
        .max_encoding_message_size(FROM_COORDINATOR_LIMIT);
    InterceptedService::new(limited, Admission(token))
}

/// A server that notices in seconds when a worker's machine is gone.
pub fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .tcp_nodelay(true)
}
