//! What people and schedulers look at: a page, JSON, metrics and probes.

use crate::metrics::Metrics;
use crate::record::now;
use crate::status::Status;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A process that has not drawn its status for so many seconds is stuck.
const STUCK: f64 = 10.0;

#[derive(Clone)]
struct Shown {
    status: watch::Receiver<Arc<Status>>,
    metrics: Arc<Metrics>,
}

pub(crate) async fn serve(
    listener: TcpListener,
    status: watch::Receiver<Arc<Status>>,
    metrics: Arc<Metrics>,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/status", get(self::status))
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Shown { status, metrics });
    axum::serve(listener, router).await
}

impl Shown {
    fn current(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }
}

async fn status(State(shown): State<Shown>) -> impl IntoResponse {
    let text = serde_json::to_string(&*shown.current()).expect("plain values always serialise");
    ([(header::CONTENT_TYPE, "application/json")], text)
}

async fn metrics_text(State(shown): State<Shown>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shown.metrics.text())
}

/// Alive: decisions are being made.
async fn healthz(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    if now() - shown.current().at < STUCK {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "stuck\n")
    }
}

/// Ready: leads the run, so that workers may attach.
async fn readyz(State(shown): State<Shown>) -> (StatusCode, &'static str) {
    if shown.current().claimed > 0 {
        (StatusCode::OK, "leading\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}
