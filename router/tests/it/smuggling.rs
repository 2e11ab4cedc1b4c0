//! Requests that two parsers could read as two different things: refused, and the connection
//! closed, before anybody else sees them.

use crate::world::World;

const OK: &str = "GET /s/k HTTP/1.1\r\nHost: a\r\n\r\n";

/// Each request is answered with `status`, the connection is closed, no owner is asked.
async fn check_refused(status: u16, requests: &[&str]) {
    let mut world = World::new();
    for request in requests {
        let mut client = world.client().await;
        client.send(format!("{request}{OK}")).await;
        let got = client.got().await;
        assert_eq!(got.status.as_u16(), status, "{request:?}");
        assert!(client.is_closed().await, "{request:?}");
        assert!(world.owners[0].is_left_alone(), "{request:?}");
    }
}

fn with(headers: &str) -> String {
    format!("POST /s/k HTTP/1.1\r\nHost: a\r\n{headers}\r\n\r\n0\r\n\r\n")
}

async fn check_headers_refused(status: u16, headers: &[&str]) {
    let requests: Vec<String> = headers.iter().map(|headers| with(headers)).collect();
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    check_refused(status, &requests).await;
}

// S01
#[tokio::test]
async fn content_length_beside_transfer_encoding_is_refused() {
    check_headers_refused(
        400,
        &[
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "transfer-encoding:chunked\r\ncontent-length:0",
        ],
    )
    .await;
}

// S02
#[tokio::test]
async fn a_transfer_encoding_that_is_not_exactly_chunked_is_refused() {
    check_headers_refused(
        400,
        &[
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \x0bchunked",
            "Transfer-Encoding: deflate, chunked",
            "Transfer-Encoding: gzip",
            "Transfer-Encoding : chunked",
        ],
    )
    .await;
}

// S03
#[tokio::test]
async fn a_content_length_that_is_not_one_plain_number_is_refused() {
    check_headers_refused(
        400,
        &[
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: +5",
            "Content-Length: 0x5",
            "Content-Length: 5 5",
            "Content-Length: 5, 5",
            "Content-Length: ",
            "Content-Length: -1",
            "Content-Length: 12345678901234567890",
        ],
    )
    .await;
}

// S04
#[tokio::test]
async fn chunks_from_an_http_1_0_client_are_refused() {
    check_refused(400, &["POST /s/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
        .await;
}

// S05
#[tokio::test]
async fn lines_that_parsers_disagree_on_are_refused() {
    check_refused(
        400,
        &[
            "GET /s/k HTTP/1.1\nHost: a\n\n",
            "GET /s/k HTTP/1.1\r\nHost: a\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a\r\n\n",
            "GET /s/k HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a\r\n X: b\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        ],
    )
    .await;
}

// S06
#[tokio::test]
async fn a_malformed_chunk_never_ends_a_body() {
    for chunk in ["0x1\r\na\r\n", "1_0\r\n", "+1\r\na\r\n", "1;\r\na\r\n", "1\na\n", "1\r\nab\r\n"]
    {
        let world = World::new();
        let mut client = world.client().await;
        client
            .send(format!(
                "POST /s/k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n{OK}"
            ))
            .await;
        let got = client.got().await;
        assert_eq!(got.status, 400, "{chunk:?}");
        assert!(client.is_closed().await, "{chunk:?}");
    }
}

// S14
#[tokio::test]
async fn targets_of_other_forms_are_refused() {
    check_refused(
        400,
        &[
            "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://b/s/k HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/s/k HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET s/k HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
    )
    .await;
}

// S15
#[tokio::test]
async fn a_fragment_in_the_target_is_refused() {
    check_refused(400, &["GET /s/k#/../admin HTTP/1.1\r\nHost: a\r\n\r\n"]).await;
}

// S16
#[tokio::test]
async fn a_host_that_is_not_one_name_is_refused() {
    check_refused(
        400,
        &[
            "GET /s/k HTTP/1.1\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: \r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: u@a\r\n\r\n",
            "GET /s/k HTTP/1.1\r\nHost: a/b\r\n\r\n",
        ],
    )
    .await;
}

// S10
#[tokio::test]
async fn expectations_that_nobody_can_meet_are_refused() {
    for expect in ["x", "100-continue, x", "100-continue\r\nExpect: 100-continue"] {
        check_headers_refused(417, &[&format!("Content-Length: 5\r\nExpect: {expect}")]).await;
    }
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let filler = format!("X: {}\r\n", "y".repeat(1000)).repeat(40);
    check_headers_refused(431, &[filler.trim_end()]).await;
}

#[tokio::test]
async fn what_came_before_a_violation_is_answered() {
    let mut world = World::new();
    let mut client = world.client().await;
    client.send(format!("{OK}GET /s/k HTTP/1.1\nHost: a\n\n")).await;
    world.owners[0].asked().await.answer("good").await;
    assert_eq!(client.got().await.text(), "good");
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header("stead-refusal")), (400, Some("malformed")));
    assert!(client.is_closed().await);
}
