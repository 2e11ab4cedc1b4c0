//! Tower services and axum routers as applications.

use std::convert::Infallible;

use axum::Router;
use axum::extract::Path;
use axum::routing::{get, post};
use http::{Method, Request, Response, StatusCode};
use stead_node::{Body, Session, tower};

use crate::common::{host, meta, request, text};

#[tokio::test]
async fn an_axum_router_serves_sessions_and_extracts_them() {
    async fn visit(session: Session, Path(room): Path<String>) -> String {
        format!("{room} {}", session.add("visits", 1).unwrap())
    }
    let router = Router::new()
        .route("/rooms/{room}", post(visit))
        .route("/plain", get(|| async { "no session wanted" }));
    let host = host(tower(router));
    for visit in ["tea 1", "tea 2"] {
        let asked = host.serve(meta("s"), request(Method::POST, "/rooms/tea", "")).await;
        let (meta, response) = asked.unwrap();
        assert_eq!(meta.length, Some(5));
        assert_eq!(text(response).await, visit);
    }
    let (_, response) = host.serve(meta("s"), request(Method::GET, "/plain", "")).await.unwrap();
    assert_eq!(text(response).await, "no session wanted");
    let (_, response) = host.serve(meta("s"), request(Method::GET, "/none", "")).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_tower_service_finds_the_session_in_the_extensions() {
    let service = ::tower::service_fn(|request: Request<Body>| async move {
        let session = Session::of(request.extensions()).unwrap();
        let n = session.add("n", 1).unwrap();
        Ok::<_, Infallible>(Response::new(http_body_util::Full::from(n.to_string())))
    });
    let host = host(tower(service));
    let (_, response) = host.serve(meta("s"), request(Method::GET, "/", "")).await.unwrap();
    assert_eq!(text(response).await, "1");
}
