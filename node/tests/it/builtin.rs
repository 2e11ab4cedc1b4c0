//! The session store over HTTP, one test an endpoint or rule.

use std::time::Duration;

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderName, Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use stead_node::builtin::{BuiltIn, BuiltInConfig};
use stead_node::{Body, Host, HostConfig, REFUSAL};
use stead_shared::id::{Epoch, NodeId};
use stead_shared::refusal::Refusal;
use tokio::time::{advance, sleep};

use crate::common::{SHARD, bytes, hand_over, host, host_with, meta, settle, text};

fn store() -> Host {
    host(BuiltIn::default())
}

/// Sends a request to the session that the path names.
async fn send(host: &Host, request: Request<Body>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let id = path.split('/').nth(2).unwrap_or("none").to_owned();
    host.serve(meta(&id), request).await.unwrap().1
}

fn build(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    crate::common::request(method, path, body)
}

async fn call(host: &Host, method: Method, path: &str) -> Response<Body> {
    send(host, build(method, path, "")).await
}

async fn put(host: &Host, path: &str, value: &str) -> Response<Body> {
    send(host, build(Method::PUT, path, value.to_owned())).await
}

async fn get(host: &Host, path: &str) -> (StatusCode, String) {
    let response = call(host, Method::GET, path).await;
    (response.status(), text(response).await)
}

async fn with(
    host: &Host,
    method: Method,
    path: &str,
    header: HeaderName,
    value: &str,
) -> Response<Body> {
    let mut request = build(method, path, "changed");
    request.headers_mut().insert(header, value.parse().unwrap());
    send(host, request).await
}

async fn count(host: &Host, path: &str, body: &str) -> (StatusCode, Value) {
    let response = send(host, build(Method::POST, path, body.to_owned())).await;
    (response.status(), serde_json::from_slice(&bytes(response).await).unwrap())
}

async fn problem(response: Response<Body>) -> Value {
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let status = response.status().as_u16();
    let document: Value = serde_json::from_slice(&bytes(response).await).unwrap();
    assert_eq!(document["status"], status);
    assert!(document["type"].as_str().unwrap().starts_with("urn:stead:problem:"));
    document
}

fn tag(response: &Response<Body>) -> String {
    response.headers()[ETAG].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_value_is_created_read_replaced_and_deleted() {
    let host = store();
    let absent = call(&host, Method::GET, "/sessions/alice").await;
    assert_eq!(problem(absent).await["status"], 404);
    let created = put(&host, "/sessions/alice", "cart").await;
    assert_eq!(created.status(), StatusCode::CREATED);
    let read = call(&host, Method::GET, "/sessions/alice").await;
    assert_eq!(tag(&read), tag(&created));
    assert_eq!(read.headers()[CONTENT_TYPE], "application/octet-stream");
    assert_eq!(text(read).await, "cart");
    let replaced = put(&host, "/sessions/alice", "cart 2").await;
    assert_eq!(replaced.status(), StatusCode::NO_CONTENT);
    assert_ne!(tag(&replaced), tag(&created));
    assert_eq!(get(&host, "/sessions/alice").await.1, "cart 2");
    assert_eq!(call(&host, Method::DELETE, "/sessions/alice").await.status(), 204);
    assert_eq!(call(&host, Method::DELETE, "/sessions/alice").await.status(), 404);
    assert_eq!(get(&host, "/sessions/alice").await.0, 404);
    assert_eq!(host.stats().sessions, 0);
}

#[tokio::test]
async fn a_value_may_be_empty_and_has_any_bytes() {
    let host = store();
    assert_eq!(put(&host, "/sessions/a", "").await.status(), StatusCode::CREATED);
    assert_eq!(get(&host, "/sessions/a").await, (StatusCode::OK, String::new()));
    let raw: Vec<u8> = (0..=255).collect();
    send(&host, build(Method::PUT, "/sessions/a", raw.clone())).await;
    assert_eq!(bytes(call(&host, Method::GET, "/sessions/a").await).await, raw);
}

#[tokio::test]
async fn a_head_is_the_head_of_a_get() {
    let host = store();
    put(&host, "/sessions/a", "12345").await;
    let head = call(&host, Method::HEAD, "/sessions/a").await;
    assert_eq!(head.headers()[CONTENT_LENGTH], "5");
    assert!(head.headers().contains_key(ETAG));
    assert_eq!(text(head).await, "");
    assert_eq!(call(&host, Method::HEAD, "/sessions/b").await.status(), 404);
}

#[tokio::test]
async fn an_etag_that_is_not_the_current_one_is_412_and_changes_nothing() {
    let host = store();
    let path = "/sessions/a";
    for method in [Method::PUT, Method::DELETE] {
        let absent = with(&host, method, path, IF_MATCH, "*").await;
        assert_eq!(absent.status(), StatusCode::PRECONDITION_FAILED);
    }
    let old = tag(&put(&host, path, "1").await);
    let current = tag(&put(&host, path, "2").await);
    for method in [Method::PUT, Method::DELETE] {
        for wrong in [&old, "\"other\"", &format!("W/{current}")] {
            let refused = with(&host, method.clone(), path, IF_MATCH, wrong).await;
            assert_eq!(problem(refused).await["status"], 412, "{wrong}");
        }
    }
    assert_eq!(get(&host, path).await.1, "2");
    let list = format!("\"other\", {current}");
    assert_eq!(with(&host, Method::PUT, path, IF_MATCH, &list).await.status(), 204);
    assert_eq!(get(&host, path).await.1, "changed");
    assert_eq!(with(&host, Method::DELETE, path, IF_MATCH, "*").await.status(), 204);
}

#[tokio::test]
async fn if_none_match_creates_only_and_spares_reads() {
    let host = store();
    let path = "/sessions/a";
    let created = with(&host, Method::PUT, path, IF_NONE_MATCH, "*").await;
    assert_eq!(created.status(), StatusCode::CREATED);
    let again = with(&host, Method::PUT, path, IF_NONE_MATCH, "*").await;
    assert_eq!(again.status(), StatusCode::PRECONDITION_FAILED);
    let weak = format!("W/{}", tag(&created));
    let same = with(&host, Method::GET, path, IF_NONE_MATCH, &weak).await;
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(tag(&same), tag(&created));
    assert_eq!(text(same).await, "");
    let other = with(&host, Method::GET, path, IF_NONE_MATCH, "\"other\"").await;
    assert_eq!(text(other).await, "changed");
}

#[tokio::test]
async fn the_etag_changes_neither_with_a_move_nor_with_a_counter() {
    let (from, to) = (store(), store());
    let created = tag(&put(&from, "/sessions/a", "v").await);
    count(&from, "/sessions/a/counters/n", "").await;
    assert_eq!(tag(&call(&from, Method::GET, "/sessions/a").await), created);
    hand_over(&from, &to, Epoch { counter: 9, node: NodeId(9) }).await;
    assert_eq!(tag(&call(&to, Method::GET, "/sessions/a").await), created);
    let matched = with(&to, Method::PUT, "/sessions/a", IF_MATCH, &created).await;
    assert_eq!(matched.status(), 204);
    assert_ne!(tag(&matched), created);
}

#[tokio::test]
async fn a_value_over_the_limit_is_413_with_a_known_length_or_without() {
    let host = host(BuiltIn::new(BuiltInConfig { value_bytes_max: 10, ..Default::default() }));
    let refused = put(&host, "/sessions/a", "eleven byte").await;
    assert_eq!(problem(refused).await["status"], 413);
    let (sender, body) = Body::channel(4, None);
    for _ in 0..3 {
        sender.send("1234".into()).await.unwrap();
    }
    let refused = send(&host, build(Method::PUT, "/sessions/a", body)).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(put(&host, "/sessions/a", "ten  bytes").await.status(), 201);
}

#[tokio::test]
async fn a_mebibyte_fits() {
    let host = store();
    assert_eq!(put(&host, "/sessions/a", &"x".repeat(1 << 20)).await.status(), 201);
    assert_eq!(put(&host, "/sessions/a", &"x".repeat((1 << 20) + 1)).await.status(), 413);
}

#[tokio::test]
async fn a_body_that_is_cut_off_changes_nothing() {
    let host = store();
    put(&host, "/sessions/a", "old").await;
    let (sender, body) = Body::channel(4, Some(10));
    sender.send("half".into()).await.unwrap();
    drop(sender);
    assert_eq!(send(&host, build(Method::PUT, "/sessions/a", body)).await.status(), 400);
    assert_eq!(get(&host, "/sessions/a").await.1, "old");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_gives_the_session_back() {
    let host = store();
    let (_sender, body) = Body::channel(4, None);
    let response = send(&host, build(Method::PUT, "/sessions/a", body)).await;
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(put(&host, "/sessions/a", "v").await.status(), 201);
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_as_long_as_was_asked_for_without_access() {
    let host = store();
    put(&host, "/sessions/short?ttl=30m", "v").await;
    put(&host, "/sessions/long", "v").await;
    for _ in 0..3 {
        advance(Duration::from_secs(29 * 60)).await;
        assert_eq!(get(&host, "/sessions/short").await.0, 200);
    }
    advance(Duration::from_secs(31 * 60)).await;
    assert_eq!(get(&host, "/sessions/short").await.0, 404);
    advance(Duration::from_secs(21 * 3600)).await;
    assert_eq!(get(&host, "/sessions/long").await.0, 200);
    advance(Duration::from_secs(24 * 3600)).await;
    assert_eq!(get(&host, "/sessions/long").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_counter_keeps_the_time_to_live_and_a_put_without_one_resets_it() {
    let config = HostConfig { session_ttl: Duration::from_secs(1000), ..HostConfig::default() };
    let host = host_with(config, BuiltIn::default());
    put(&host, "/sessions/a?ttl=10s", "v").await;
    count(&host, "/sessions/a/counters/n", "").await;
    sleep(Duration::from_secs(11)).await;
    assert_eq!(get(&host, "/sessions/a").await.0, 404);
    put(&host, "/sessions/a?ttl=10s", "v").await;
    put(&host, "/sessions/a", "v").await;
    sleep(Duration::from_secs(999)).await;
    assert_eq!(get(&host, "/sessions/a").await.0, 200);
    count(&host, "/sessions/b/counters/n?ttl=10s", "").await;
    sleep(Duration::from_secs(11)).await;
    assert_eq!(get(&host, "/sessions/b/counters/n").await.0, 404);
}

#[tokio::test]
async fn a_bad_time_to_live_is_400_and_changes_nothing() {
    let host = store();
    let refused = put(&host, "/sessions/a?ttl=soon", "v").await;
    assert!(problem(refused).await["detail"].as_str().unwrap().contains("30m"));
    let (status, _) = count(&host, "/sessions/a/counters/n?ttl=0s", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(host.stats().sessions, 0);
}

#[tokio::test]
async fn counters_count() {
    let host = store();
    let path = "/sessions/a/counters/visits";
    assert_eq!(get(&host, path).await.0, 404);
    assert_eq!(count(&host, path, "").await, (StatusCode::OK, json!({"value": 1})));
    assert_eq!(count(&host, path, r#"{"by": 41}"#).await.1, json!({"value": 42}));
    assert_eq!(count(&host, path, r#" { "by" : -50 } "#).await.1, json!({"value": -8}));
    assert_eq!(get(&host, path).await, (StatusCode::OK, r#"{"value":-8}"#.into()));
    assert_eq!(count(&host, "/sessions/a/counters/other", "").await.1, json!({"value": 1}));
    assert_eq!(count(&host, "/sessions/b/counters/visits", "").await.1, json!({"value": 1}));
    // A session with counters alone has no value.
    assert_eq!(get(&host, "/sessions/a").await.0, 404);
    assert_eq!(call(&host, Method::DELETE, "/sessions/a").await.status(), 204);
    assert_eq!(get(&host, path).await.0, 404);
}

#[tokio::test]
async fn a_counter_takes_any_content_type() {
    let host = store();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/json"] {
        let mut request = build(Method::POST, "/sessions/a/counters/n", r#"{"by":1}"#);
        request.headers_mut().insert(CONTENT_TYPE, kind.parse().unwrap());
        assert_eq!(send(&host, request).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_bad_change_of_a_counter_is_400() {
    let host = store();
    for bad in [
        "1",
        "{}",
        r#"{"by":"1"}"#,
        r#"{"by":1.5}"#,
        r#"{"by":1,"x":2}"#,
        r#"{"by":null}"#,
        r#"{"by":9223372036854775808}"#,
        r#"{"by":1}x"#,
        "\u{0}",
    ] {
        let (status, document) = count(&host, "/sessions/a/counters/n", bad).await;
        assert_eq!((status, &document["status"]), (StatusCode::BAD_REQUEST, &json!(400)), "{bad}");
    }
    let (status, _) = count(&host, "/sessions/a/counters/n", &" ".repeat(5000)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(host.stats().sessions, 0);
}

#[tokio::test]
async fn a_counter_that_would_overflow_is_409_and_stays() {
    let host = store();
    let path = "/sessions/a/counters/n";
    count(&host, path, r#"{"by":9223372036854775807}"#).await;
    let (status, document) = count(&host, path, "").await;
    assert_eq!((status, &document["status"]), (StatusCode::CONFLICT, &json!(409)));
    assert_eq!(get(&host, path).await.1, r#"{"value":9223372036854775807}"#);
    count(&host, "/sessions/a/counters/m", r#"{"by":-9223372036854775808}"#).await;
    assert_eq!(count(&host, "/sessions/a/counters/m", r#"{"by":-1}"#).await.0, 409);
}

#[tokio::test]
async fn an_id_that_is_not_the_key_is_400() {
    let host = store();
    for path in ["/sessions/bob", "/sessions/bob/counters/n", "/sessions/bob/ws"] {
        let request = build(Method::GET, path, "");
        let (_, response) = host.serve(meta("alice"), request).await.unwrap();
        let document = problem(response).await;
        assert_eq!(document["status"], 400);
        assert_eq!(document["type"], "urn:stead:problem:key-mismatch");
    }
}

#[tokio::test]
async fn an_id_is_compared_after_its_percent_encoding_is_undone() {
    let host = store();
    let request = build(Method::PUT, "/sessions/a%20b%2Fc", "v");
    let (_, response) = host.serve(meta("a b/c"), request).await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn other_paths_are_404_and_other_methods_405() {
    let host = store();
    for path in ["/", "/sessions", "/sessions/a/b", "/sessions/a/counters", "/metrics"] {
        let response = host.serve(meta("a"), build(Method::GET, path, "")).await.unwrap().1;
        assert_eq!(problem(response).await["status"], 404, "{path}");
    }
    let wrong = call(&host, Method::POST, "/sessions/a").await;
    assert_eq!(wrong.headers()[ALLOW], "GET, HEAD, PUT, DELETE");
    assert_eq!(problem(wrong).await["status"], 405);
    assert_eq!(call(&host, Method::PUT, "/sessions/a/counters/n").await.status(), 405);
    assert_eq!(call(&host, Method::POST, "/sessions/a/ws").await.status(), 405);
}

#[tokio::test]
async fn memory_that_has_run_out_is_507_and_deletes_still_work() {
    let host = host_with(HostConfig { memory_max: 6000, ..Default::default() }, BuiltIn::default());
    assert_eq!(put(&host, "/sessions/a", &"x".repeat(4000)).await.status(), 201);
    let full = put(&host, "/sessions/b", &"x".repeat(4000)).await;
    assert_eq!(full.headers()[REFUSAL], "overloaded");
    assert_eq!(problem(full).await["status"], 507);
    assert_eq!(get(&host, "/sessions/a").await.0, 200);
    let (status, _) = count(&host, "/sessions/c/counters/n", "").await;
    assert_eq!(status, StatusCode::OK, "a counter is small");
    assert_eq!(call(&host, Method::DELETE, "/sessions/a").await.status(), 204);
    assert_eq!(put(&host, "/sessions/b", &"x".repeat(4000)).await.status(), 201);
    assert_eq!(host.shard_stats(SHARD).unwrap().sessions, 2);
}

#[tokio::test]
async fn a_websocket_without_its_handshake_is_426() {
    let host = store();
    let refused = call(&host, Method::GET, "/sessions/a/ws").await;
    assert_eq!(refused.headers()["upgrade"], "websocket");
    assert_eq!(problem(refused).await["status"], 426);
}

#[tokio::test]
async fn answers_have_a_length_where_there_is_content() {
    let host = store();
    put(&host, "/sessions/a", "12345").await;
    let length = async |method: Method, path: &str| {
        let (meta, _) = host.serve(meta("a"), build(method, path, "")).await.unwrap();
        meta.length
    };
    assert_eq!(length(Method::GET, "/sessions/a").await, Some(5));
    assert_eq!(length(Method::HEAD, "/sessions/a").await, None);
    assert_eq!(length(Method::PUT, "/sessions/a").await, None);
    assert_eq!(length(Method::DELETE, "/sessions/a").await, None);
    assert_eq!(length(Method::PUT, "/sessions/a").await, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_upload_holds_a_move_up_for_a_second_at_most() {
    let host = store();
    let (sender, body) = Body::channel(4, Some(100_000));
    let put = tokio::spawn({
        let host = host.clone();
        async move { send(&host, build(Method::PUT, "/sessions/a", body)).await }
    });
    sender.send(vec![0; 70_000].into()).await.unwrap();
    settle().await;
    let start = tokio::time::Instant::now();
    host.seal(SHARD).await;
    assert_eq!(start.elapsed().as_secs(), 1);
    let refused = put.await.unwrap();
    assert_eq!(refused.headers()[REFUSAL], "moving");
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_upload_that_ends_soon_after_the_seal_is_kept() {
    let (from, to) = (store(), store());
    let (sender, body) = Body::channel(4, Some(100_000));
    let put = tokio::spawn({
        let host = from.clone();
        async move { send(&host, build(Method::PUT, "/sessions/a", body)).await }
    });
    sender.send(vec![b'x'; 70_000].into()).await.unwrap();
    settle().await;
    let sealed = from.seal(SHARD);
    sender.send(vec![b'x'; 30_000].into()).await.unwrap();
    sender.finish().await.unwrap();
    sealed.await;
    assert_eq!(put.await.unwrap().status(), StatusCode::CREATED);
    hand_over(&from, &to, Epoch { counter: 2, node: NodeId(2) }).await;
    assert_eq!(get(&to, "/sessions/a").await.1.len(), 100_000);
}

#[tokio::test(start_paused = true)]
async fn a_small_body_that_is_slow_to_come_holds_nobody_up() {
    let host = store();
    let (sender, body) = Body::channel(4, Some(10));
    let put_slowly = tokio::spawn({
        let host = host.clone();
        async move { host.serve(meta("a"), build(Method::PUT, "/sessions/a", body)).await }
    });
    sender.send("12345".into()).await.unwrap();
    settle().await;
    assert_eq!(put(&host, "/sessions/a", "quick").await.status(), StatusCode::CREATED);
    assert_eq!(put_slowly.await.unwrap().unwrap_err(), Refusal::DeadlinePassed);
    assert_eq!(get(&host, "/sessions/a").await.1, "quick");
}
