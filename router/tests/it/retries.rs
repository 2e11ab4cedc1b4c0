//! Refusals, moves, deaths: what the client sees of them, which is nothing where possible.

use std::time::Duration;

use stead_shared::refusal::Refusal;

use crate::world::{Asked, Client, World, soon};

const GET: &str = "GET /s/k HTTP/1.1\nHost: a\n\n";
const POST: &str = "POST /s/k HTTP/1.1\nHost: a\nContent-Length: 4\n\nbody";

async fn check_failure(client: &mut Client, status: u16, header: (&str, &str)) {
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header(header.0)), (status, Some(header.1)));
    let other = if header.0 == "stead-refusal" { "stead-outcome" } else { "stead-refusal" };
    assert_eq!(got.header(other), None);
    let document = got.document();
    assert_eq!(document[header.0.trim_start_matches("stead-")], header.1);
    assert_eq!(document["status"], status);
    // Whole seconds, never too early.
    let after = document.get("retry_after_ms").map(|ms| ms.as_u64().unwrap().div_ceil(1000));
    assert_eq!(got.header("retry-after").map(str::to_owned), after.map(|s| s.to_string()));
    assert!(after.is_some() || header.1 != "moving");
}

#[tokio::test]
async fn a_hint_to_a_higher_epoch_is_followed_with_the_whole_body() {
    let mut world = World::new();
    let size = 1 << 20;
    let mut client =
        world.client_with(&format!("PUT /s/k HTTP/1.1\nHost: a\nContent-Length: {size}\n\n")).await;
    let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
    let script = async {
        let first = world.owners[0].asked().await;
        let id = first.meta.id;
        first.refuse(&Refusal::NotOwner { claim: world.owners[1].claim(2) });
        let mut second = world.owners[1].asked().await;
        assert_eq!((second.meta.id, second.meta.attempt), (id, 1), "nobody can have run it");
        assert_eq!(second.meta.epoch, Some(world.owners[1].epoch(2)));
        second.send.accepted();
        let got = second.body().await;
        second.answer("stored").await;
        got
    };
    let (got, ()) = tokio::join!(script, client.send(&body));
    assert!(got == body, "every byte, in order");
    assert_eq!(client.got().await.text(), "stored");

    client.send(GET.replace('\n', "\r\n")).await;
    let next = world.owners[1].asked().await;
    assert_eq!(next.meta.attempt, 1, "what was learned is used before gossip tells it");
    next.answer("x").await;
    client.got().await;
    assert!(world.owners[0].is_left_alone());
}

#[tokio::test]
async fn a_hint_to_a_lower_epoch_is_not_followed() {
    let mut world = World::with("path:2", |c| c.park.no_owner_max = Duration::from_millis(50));
    world.claim(0, 5);
    let mut client = world.client_with(GET).await;
    let asked = world.owners[0].asked().await;
    asked.refuse(&Refusal::NotOwner { claim: world.owners[1].claim(4) });
    check_failure(&mut client, 503, ("stead-refusal", "not-owner")).await;
    assert!(world.owners[1].is_left_alone());
}

#[tokio::test]
async fn requests_of_a_moving_shard_wait_and_arrive_in_order() {
    let mut world = World::new();
    let mut clients = Vec::new();
    for n in 0..5 {
        let request = format!("GET /s/k?{n} HTTP/1.1\nHost: a\n\n");
        clients.push(world.client_with(&request).await);
        if n == 0 {
            world.owners[0].asked().await.refuse(&Refusal::Moving);
        }
        world.parked(n + 1).await;
    }
    assert!(world.owners[0].is_left_alone(), "who comes later waits without asking");
    world.claim(1, 2);
    let mut asked = Vec::new();
    for n in 0..5 {
        asked.push(world.owners[1].asked().await);
        assert_eq!(asked[n].parts.uri.query(), Some(n.to_string().as_str()));
        assert_eq!(asked[n].meta.attempt, 1, "nobody can have run it");
    }
    for (asked, client) in asked.into_iter().zip(&mut clients) {
        asked.answer("moved").await;
        assert_eq!(client.got().await.text(), "moved");
    }
}

#[tokio::test]
async fn a_move_that_was_called_off_ends_the_waiting_too() {
    let mut world = World::new();
    let mut client = world.client_with(POST).await;
    let mut asked = world.owners[0].asked().await;
    assert_eq!(asked.body().await, b"body");
    asked.refuse(&Refusal::Moving);
    world.claim(0, 2);
    let mut asked = world.owners[0].asked().await;
    assert_eq!(asked.body().await, b"body");
    asked.answer("back").await;
    assert_eq!(client.got().await.text(), "back");
}

#[tokio::test]
async fn a_shard_that_answers_again_is_noticed_without_any_news() {
    let mut world = World::new();
    let mut clients = vec![world.client_with(GET).await];
    world.owners[0].asked().await.refuse(&Refusal::Moving);
    for n in 1..4 {
        world.parked(n).await;
        clients.push(world.client_with(GET).await);
    }
    world.parked(4).await;
    let first = world.owners[0].asked().await;
    assert!(world.owners[0].is_left_alone(), "one looks, the others wait for what it finds");
    first.answer("again").await;
    for _ in 1..4 {
        world.owners[0].asked().await.answer("again").await;
    }
    for client in &mut clients {
        assert_eq!(client.got().await.text(), "again");
    }
}

#[tokio::test]
async fn more_than_may_wait_are_turned_away() {
    let mut world = World::with("path:2", |config| config.park.shard_requests_max = 2);
    let mut clients = vec![world.client_with(POST).await];
    world.owners[0].asked().await.refuse(&Refusal::Moving);
    world.parked(1).await;
    clients.push(world.client_with(POST).await);
    world.parked(2).await;
    let mut third = world.client_with(GET).await;
    check_failure(&mut third, 503, ("stead-refusal", "moving")).await;
    world.claim(1, 2);
    for client in &mut clients {
        let mut asked = world.owners[1].asked().await;
        assert_eq!(asked.body().await, b"body");
        asked.answer("ok").await;
        assert_eq!(client.got().await.text(), "ok");
    }
}

#[tokio::test]
async fn waiting_for_a_move_ends_with_a_refusal() {
    let mut world = World::with("path:2", |c| c.park.moving_max = Duration::from_millis(50));
    let mut client = world.client_with(GET).await;
    world.owners[0].asked().await.refuse(&Refusal::Moving);
    check_failure(&mut client, 503, ("stead-refusal", "moving")).await;
}

#[tokio::test]
async fn a_dead_owner_is_accused_and_its_requests_wait_for_the_next_one() {
    let mut world = World::new();
    let mut before = world.client_with(GET).await;
    world.owners[0].asked().await.answer("x").await;
    before.got().await;
    world.owners[0].die().await;
    let mut client = world.client_with(POST).await;
    let accused = soon(world.accused.recv()).await;
    assert_eq!(accused, Some(world.owners[0].id.node));
    world.claim(1, 2);
    let mut asked = world.owners[1].asked().await;
    assert_eq!(asked.body().await, b"body");
    asked.answer("alive").await;
    assert_eq!(client.got().await.text(), "alive");
}

#[tokio::test]
async fn without_a_living_owner_a_request_waits_for_one() {
    let mut world = World::with("path:2", |c| c.park.no_owner_max = Duration::from_millis(50));
    world.owners[0].die().await;
    let mut client = world.client_with(GET).await;
    check_failure(&mut client, 503, ("stead-refusal", "not-owner")).await;
}

#[tokio::test]
async fn a_write_whose_owner_breaks_is_sent_again_as_the_same_request() {
    let mut world = World::new();
    let mut client = world.client_with(POST).await;
    let mut asked = world.owners[0].asked().await;
    let (id, first_sent_ms) = (asked.meta.id, asked.meta.first_sent_ms);
    assert_eq!(asked.body().await, b"body");
    drop(asked);
    let mut asked = world.owners[0].asked().await;
    assert_eq!((asked.meta.id, asked.meta.attempt), (id, 2));
    assert_eq!(asked.meta.first_sent_ms, first_sent_ms);
    assert_eq!(asked.body().await, b"body");
    asked.answer("applied").await;
    assert_eq!(client.got().await.text(), "applied");
}

#[tokio::test]
async fn a_write_whose_owner_dies_is_sent_to_the_next_one() {
    let mut world = World::new();
    let mut client = world.client_with(POST).await;
    let mut asked = world.owners[0].asked().await;
    let id = asked.meta.id;
    assert_eq!(asked.body().await, b"body");
    world.owners[0].die().await;
    world.parked(1).await;
    world.claim(1, 2);
    let mut asked = world.owners[1].asked().await;
    assert_eq!((asked.meta.id, asked.meta.attempt), (id, 2));
    assert_eq!(asked.body().await, b"body");
    asked.answer("applied").await;
    assert_eq!(client.got().await.text(), "applied");
}

#[tokio::test]
async fn a_large_write_whose_owner_breaks_may_have_been_executed() {
    let mut world = World::new();
    let size = 1 << 20;
    let head = format!("POST /s/k HTTP/1.1\nHost: a\nContent-Length: {size}\n\n");
    let mut client = world.client_with(&head).await;
    let script = async {
        let mut asked = world.owners[0].asked().await;
        asked.send.accepted();
        assert_eq!(asked.body().await.len(), size);
    };
    tokio::join!(script, client.send(vec![b'x'; size]));
    check_failure(&mut client, 502, ("stead-outcome", "unknown")).await;
    client.send(GET.replace('\n', "\r\n")).await;
    world.owners[0].asked().await.answer("kept").await;
    assert_eq!(client.got().await.text(), "kept", "the connection can be used again");
}

#[tokio::test]
async fn a_read_whose_owner_breaks_is_sent_again_as_the_same_request() {
    let mut world = World::new();
    let mut client = world.client_with(GET).await;
    let asked = world.owners[0].asked().await;
    let id = asked.meta.id;
    drop(asked);
    let asked = world.owners[0].asked().await;
    assert_eq!((asked.meta.id, asked.meta.attempt), (id, 2));
    asked.answer("second").await;
    assert_eq!(client.got().await.text(), "second");
}

#[tokio::test]
async fn retries_end_when_the_budget_is_used_up() {
    let mut world = World::new();
    let mut client = world.client_with(GET).await;
    let mut attempts = 0;
    let got = tokio::select! {
        got = client.got() => got,
        () = async { loop {
            drop(world.owners[0].asked().await);
            attempts += 1;
        } } => unreachable!(),
    };
    assert_eq!((got.status.as_u16(), got.header("stead-outcome")), (502, Some("unknown")));
    assert_eq!(attempts, 11, "one and the ten that a new process has saved up");
}

#[tokio::test]
async fn an_answer_of_a_past_epoch_is_not_believed() {
    let mut world = World::new();
    world.claim(0, 5);
    let old = world.owners[0].epoch(4);
    let mut client = world.client_with(GET).await;
    world.owners[0].asked().await.answer_at(old, "stale").await;
    world.owners[0].asked().await.answer("fresh").await;
    assert_eq!(client.got().await.text(), "fresh");
    client.send(POST.replace('\n', "\r\n")).await;
    world.owners[0].asked().await.answer_at(old, "stale").await;
    let asked = world.owners[0].asked().await;
    assert_eq!(asked.meta.attempt, 2, "it may have been executed");
    asked.answer("applied").await;
    assert_eq!(client.got().await.text(), "applied");
}

#[tokio::test]
async fn an_answer_given_before_a_move_is_believed_after_it() {
    let mut world = World::new();
    let mut client = world.client_with(POST).await;
    let asked = world.owners[0].asked().await;
    world.claim(1, 2);
    asked.answer("in time").await;
    assert_eq!(client.got().await.text(), "in time");
}

#[tokio::test]
async fn overload_is_passed_on_and_not_retried() {
    let mut world = World::new();
    let mut client = world.client_with(GET).await;
    let refusal = Refusal::Overloaded { retry_after_ms: 2500 };
    world.owners[0].asked().await.refuse(&refusal);
    let got = client.got().await;
    assert_eq!((got.status.as_u16(), got.header("retry-after")), (503, Some("3")));
    assert_eq!(got.document()["retry_after_ms"], 2500);
    assert!(world.owners[0].is_left_alone() && world.owners[1].is_left_alone());
}

#[tokio::test]
async fn other_refusals_are_passed_on_by_name() {
    for (refusal, name) in [
        (Refusal::Degraded, "degraded"),
        (Refusal::Quarantined, "quarantined"),
        (Refusal::DeadlinePassed, "overloaded"),
    ] {
        let mut world = World::new();
        let mut client = world.client_with(POST).await;
        world.owners[0].asked().await.refuse(&refusal);
        check_failure(&mut client, 503, ("stead-refusal", name)).await;
    }
}

#[tokio::test]
async fn no_answer_in_time_may_have_been_executed() {
    let timeout = Duration::from_millis(50);
    let mut world = World::with("path:2", |config| config.limits.request_timeout = timeout);
    let mut client = world.client_with(POST).await;
    let asked: Asked = world.owners[0].asked().await;
    assert!(asked.meta.deadline_ms <= 50);
    check_failure(&mut client, 504, ("stead-outcome", "unknown")).await;
    soon(asked.send.cancelled()).await;
}

#[tokio::test]
async fn an_owner_out_of_reach_is_tried_only_now_and_then() {
    let mut world = World::with("path:2", |c| c.park.no_owner_max = Duration::from_millis(600));
    world.owners[0].die().await;
    let mut client = world.client_with(GET).await;
    check_failure(&mut client, 503, ("stead-refusal", "not-owner")).await;
    let mut accusations = 0;
    while world.accused.try_recv().is_ok() {
        accusations += 1;
    }
    assert_eq!(accusations, 3, "at once, after 250 and after 500 ms");
}
