//! What the link's codec costs: heads of requests and answers, frames, credit.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use stead_shared::id::{BootId, Epoch, NodeId, RequestId, SessionKey, ShardId};
use stead_shared::wire::http::{
    RequestMeta, ResponseMeta, decode_request, decode_response, encode_request, encode_response,
};
use stead_shared::wire::link::{
    Assembler, FrameType, Parsed, RecvWindow, SendWindow, flag, parse, put_frame, put_message,
};

fn request() -> (RequestMeta, http::request::Parts) {
    let request = http::Request::get("/sessions/alice/counters/visits")
        .header("host", "localhost:8080")
        .header("user-agent", "curl/8.5.0")
        .header("accept", "*/*")
        .header("accept-encoding", "gzip, deflate")
        .header("cookie", "session=4f3c2b1a; theme=dark")
        .header("x-forwarded-for", "192.0.2.7")
        .header("x-forwarded-proto", "http")
        .header("via", "1.1 stead");
    let meta = RequestMeta {
        shard: ShardId(12_345),
        epoch: Some(Epoch { counter: 7, node: NodeId(99) }),
        key: SessionKey::new("alice").expect("a short key"),
        id: RequestId { boot: BootId(1_700_000_000_000_000), counter: 42 },
        attempt: 1,
        first_sent_ms: 1_700_000_000_000,
        deadline_ms: 30_000,
        client: [192, 0, 2, 7].into(),
        upgrade: false,
    };
    (meta, request.body(()).expect("a plain request").into_parts().0)
}

fn response() -> (ResponseMeta, http::response::Parts) {
    let response = http::Response::builder()
        .header("content-type", "application/json")
        .header("etag", "\"7-99-12\"")
        .header("stead-node", "n1")
        .header("stead-shard", "12345")
        .header("stead-epoch", "7.0000000000000063");
    let epoch = Epoch { counter: 7, node: NodeId(99) };
    let meta = ResponseMeta { shard: ShardId(12_345), epoch, length: Some(100), pressure: 0 };
    (meta, response.body(()).expect("a plain answer").into_parts().0)
}

fn heads(c: &mut Criterion) {
    let mut group = c.benchmark_group("head");
    let (meta, parts) = request();
    let bytes = encode_request(&meta, &parts).expect("small");
    group.bench_function("encode_request", |b| {
        b.iter(|| encode_request(black_box(&meta), black_box(&parts)));
    });
    group.bench_function("decode_request", |b| {
        b.iter(|| decode_request(Bytes::copy_from_slice(black_box(&bytes))));
    });
    let (meta, parts) = response();
    let bytes = encode_response(&meta, &parts).expect("small");
    group.bench_function("encode_response", |b| {
        b.iter(|| encode_response(black_box(&meta), black_box(&parts)));
    });
    group.bench_function("decode_response", |b| {
        b.iter(|| decode_response(Bytes::copy_from_slice(black_box(&bytes))));
    });
    group.finish();
}

/// Parses everything in `bytes`.
fn read_all(mut bytes: &[u8], assembler: &mut Assembler) -> usize {
    let mut messages = 0;
    while let Ok(Parsed::Frame { header, payload, taken }) = parse(bytes) {
        messages += usize::from(matches!(assembler.take(header, payload), Ok(Some(_))));
        bytes = bytes.get(taken..).unwrap_or_default();
    }
    messages
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    let (meta, parts) = request();
    let head = encode_request(&meta, &parts).expect("small");
    let mut out = Vec::with_capacity(1 << 16);
    group.bench_function("put_head", |b| {
        b.iter(|| {
            out.clear();
            put_message(&mut out, FrameType::Open, flag::FIN, 1, &[], black_box(&head))
        });
    });
    let piece = vec![7; 16_000];
    for (name, flags) in [("put_16k", 0), ("put_16k_with_checksum", flag::CHECKSUM)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                put_frame(&mut out, FrameType::Data, flags, 1, black_box(&piece));
            });
        });
    }
    let mut many = Vec::new();
    for stream in 0..100 {
        put_frame(&mut many, FrameType::Open, flag::FIN, stream, &head);
    }
    let mut assembler = Assembler::default();
    group.bench_function("read_100_heads", |b| {
        b.iter(|| read_all(black_box(&many), &mut assembler));
    });
    group.finish();
}

fn flow(c: &mut Criterion) {
    c.bench_function("credit_round", |b| {
        let (mut send, mut recv) = (SendWindow::new(1 << 18), RecvWindow::new(1 << 18));
        b.iter(|| {
            send.spend(black_box(16_000));
            let _ = recv.receive(16_000);
            recv.consume(16_000);
            if let Some(credit) = recv.give_back() {
                let _ = send.grant(credit);
            }
        });
    });
}

fn quick() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30)
}

criterion_group! { name = benches; config = quick(); targets = heads, frames, flow }
criterion_main!(benches);
