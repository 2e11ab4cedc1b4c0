use proptest::prelude::*;

use super::*;

fn meta() -> RequestMeta {
    RequestMeta {
        shard: ShardId(77),
        epoch: Some(Epoch { counter: 3, node: NodeId(4) }),
        key: SessionKey::new("alice").unwrap(),
        id: RequestId { boot: BootId(5), counter: 6 },
        attempt: 1,
        first_sent_ms: 1_700_000_000_000,
        deadline_ms: 30_000,
        client: "192.0.2.7".parse().unwrap(),
        upgrade: false,
    }
}

fn request() -> request::Parts {
    let request = http::Request::post("/sessions/alice/counters/visits?by=1")
        .header("host", "localhost:8080")
        .header("x-odd", "1")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    request.body(()).unwrap().into_parts().0
}

fn response_meta() -> ResponseMeta {
    let epoch = Epoch { counter: 3, node: NodeId(4) };
    ResponseMeta { shard: ShardId(77), epoch, length: Some(12), pressure: 9 }
}

fn same_request(a: &request::Parts, b: &request::Parts) {
    assert_eq!((&a.method, &a.uri, a.version), (&b.method, &b.uri, b.version));
    assert_eq!(a.headers, b.headers);
}

#[test]
fn a_request_comes_back_as_it_went() {
    let upgrade = RequestMeta { upgrade: true, epoch: None, ..meta() };
    let v6 = RequestMeta { client: "2001:db8::1".parse().unwrap(), ..meta() };
    for meta in [meta(), upgrade, v6] {
        let bytes = encode_request(&meta, &request()).unwrap();
        let (meta_back, parts) = decode_request(bytes).unwrap();
        assert_eq!(meta_back, meta);
        same_request(&parts, &request());
    }
}

#[test]
fn odd_methods_targets_and_versions_come_back() {
    for (method, uri, version) in [
        ("PROPFIND", "*", Version::HTTP_10),
        ("OPTIONS", "http://example.com/x?y", Version::HTTP_2),
        ("CONNECT", "example.com:443", Version::HTTP_11),
        ("GET", "/?%00", Version::HTTP_3),
    ] {
        let mut parts = request();
        parts.method = method.parse().unwrap();
        parts.uri = uri.parse().unwrap();
        parts.version = version;
        let bytes = encode_request(&meta(), &parts).unwrap();
        same_request(&decode_request(bytes).unwrap().1, &parts);
    }
}

#[test]
fn an_answer_comes_back_as_it_went() {
    let parts = http::Response::builder()
        .status(299)
        .header("etag", "\"7\"")
        .header("set-cookie", "a")
        .header("set-cookie", "b");
    let parts = parts.body(()).unwrap().into_parts().0;
    for length in [None, Some(u64::MAX)] {
        let meta = ResponseMeta { length, ..response_meta() };
        let bytes = encode_response(&meta, &parts).unwrap();
        let bytes_again = bytes.clone();
        let (meta_back, parts_back) = decode_response(bytes).unwrap();
        assert_eq!(meta_back, meta);
        assert_eq!((parts_back.status, &parts_back.headers), (parts.status, &parts.headers));
        let used = request().headers;
        let parts_again = ResponseHead::decode(bytes_again).unwrap().into_parts(used).unwrap();
        assert_eq!(parts_again.headers, parts.headers, "nothing is left of what was in the map");
    }
    let trailers = decode_trailers(encode_trailers(&parts.headers).unwrap()).unwrap();
    assert_eq!(trailers, parts.headers);
}

#[test]
fn refusals_come_back() {
    let claim = crate::refusal::Claim { epoch: Epoch { counter: 1, node: NodeId(2) } };
    for refusal in [
        Refusal::NotOwner { claim: Some(claim) },
        Refusal::Moving,
        Refusal::Overloaded { retry_after_ms: 250 },
        Refusal::DeadlinePassed,
    ] {
        assert_eq!(decode_refusal(&encode_refusal(&refusal)), Ok(refusal));
    }
}

#[test]
fn heads_look_the_same_for_ever() {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut parts = request();
    parts.headers.remove("cookie");
    let golden = [
        "01010000004d",                         // layout, bits, shard
        "00000000000000030000000000000004",     // epoch
        "000000000000000500000000000000060001", // request, attempt
        "0000018bcfe5680000007530c0000207",     // first sent, deadline, client
        "0005616c696365020b",                   // key, method, version
        "00242f73657373696f6e732f616c6963652f636f756e746572732f7669736974733f62793d31",
        "000201000e6c6f63616c686f73743a38303830", // host
        "000005782d6f6464000131",                 // x-odd
    ];
    assert_eq!(hex(&encode_request(&meta(), &parts).unwrap()), golden.concat());

    let parts = http::Response::builder().header("etag", "x").body(()).unwrap().into_parts().0;
    let golden = [
        "01080000004d",
        "00000000000000030000000000000004",
        "09000000000000000c00c80b",
        "00010d000178",
    ];
    assert_eq!(hex(&encode_response(&response_meta(), &parts).unwrap()), golden.concat());
    assert_eq!(hex(&encode_refusal(&Refusal::Moving)), "0101");
}

#[test]
fn what_is_too_large_is_not_encoded() {
    let mut parts = request();
    parts.headers.insert("cookie", HeaderValue::from_bytes(&[b'a'; 65_000]).unwrap());
    assert!(encode_request(&meta(), &parts).is_ok());
    parts.headers.insert("etag", HeaderValue::from_bytes(&[b'a'; 1000]).unwrap());
    assert_eq!(encode_request(&meta(), &parts), Err(HeadTooLarge::Bytes));
    let mut parts = request();
    for _ in 0..HEADERS_MAX {
        parts.headers.append("via", HeaderValue::from_static("1"));
    }
    assert_eq!(encode_request(&meta(), &parts), Err(HeadTooLarge::Headers));
}

#[test]
fn every_prefix_of_a_head_is_an_error() {
    let whole = encode_request(&meta(), &request()).unwrap();
    for len in 0..whole.len() {
        assert!(decode_request(whole.slice(..len)).is_err(), "{len}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_a_head_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(first) = bytes.first_mut() {
            *first = LAYOUT;
        }
        let bytes = Bytes::from(bytes);
        let _ = decode_request(bytes.clone());
        let _ = decode_response(bytes.clone());
        let _ = decode_refusal(&bytes);
        let _ = decode_trailers(bytes);
    }

    #[test]
    fn a_damaged_head_is_a_head_or_an_error(at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = encode_request(&meta(), &request()).unwrap().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok((meta, parts)) = decode_request(Bytes::from(bytes)) {
            prop_assert!(encode_request(&meta, &parts).is_ok());
        }
    }
}
