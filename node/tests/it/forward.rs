//! Requests at a node that does not own their session.

use crate::cluster::{http, pair, session_of};

#[tokio::test]
async fn a_request_reaches_the_owner_whichever_node_is_asked() {
    let (a, b) = pair().await;
    for (asked, owner) in [(&a, &b), (&b, &a), (&a, &a)] {
        let (asked, owner) = (&asked.handle, &owner.handle);
        let session = session_of(owner);
        let path = format!("/sessions/{session}/counters/{}", asked.name());
        for n in 1..=3 {
            let answer = http(asked, "POST", &path, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body, format!("{{\"value\":{n}}}"));
            assert_eq!(answer.header("stead-node"), Some(owner.name()));
        }
    }
    assert_eq!(a.leave().await.shards_left, 0);
    assert_eq!(b.leave().await.shards_left, 64, "nobody is left to take them");
}
