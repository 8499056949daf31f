//! Control between its neighbours: a data plane that the tests play, HTTP clients and `ctl`.

use std::{fs, path::Path, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use contract::{
    config::Config,
    ctl::Ask,
    report::{LogReport, LogState, Order, Report, ShardReport, Told},
    view::{Page, View, ViewNumber},
    wire::{self, Frames},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
    task,
    time::timeout,
};
use tower_service::Service;

use crate::{
    CONTROL_SOCKET, DATAPLANE_SOCKET,
    bans::Bans,
    ctl,
    dataplane::Dataplane,
    doors::Doors,
    gate, http,
    state::{Reloading, Shared},
    traces::Traces,
    view_of,
};

/// Whatever is waited for comes at once, or never.
const SOON: Duration = Duration::from_secs(10);

/// A control process without signals, and the directory that it shares with the data plane of the test.
struct World {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    view: watch::Sender<Arc<View>>,
    /// What the test answers in place of the loop that reads the configuration.
    reloads_asked: mpsc::Receiver<Reloading>,
    /// Holds the receiver that keeps the View alive when no data plane task runs.
    _seen: watch::Receiver<Arc<View>>,
}

impl World {
    fn new() -> World {
        let config = Config::default();
        let number = ViewNumber { incarnation: 10, number: 1 };
        let bans = Page::Bans(Vec::new());
        let (view, seen) = watch::channel(Arc::new(view_of(&config, bans, Vec::new(), number)));
        let dir = tempfile::tempdir().unwrap();
        let doors = Doors::open(dir.path()).unwrap();
        let (reloads, reloads_asked) = mpsc::channel(1);
        let books = (doors, Bans::new(dir.path(), Vec::new(), view.clone()), Traces::open(dir.path()));
        let shared = Shared::new(&config, "127.0.0.1:1".parse().unwrap(), seen.clone(), books, reloads);
        World { dir, shared, view, reloads_asked, _seen: seen }
    }

    /// Control begins to dial the data plane, which listens first.
    fn data_plane(&self) -> UnixListener {
        let socket = self.dir.path().join(DATAPLANE_SOCKET);
        let listener = UnixListener::bind(&socket).unwrap();
        let dataplane = Dataplane { socket, view: self.view.subscribe(), shared: self.shared.clone() };
        tokio::spawn(dataplane.run(self.view.clone(), self.dir.path().to_owned()));
        listener
    }

    async fn http(&self) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http::serve(listener, self.shared.clone()));
        address
    }

    /// `Authorization` of a new API key.
    fn key(&self) -> String {
        let minted = self.shared.doors.add_key("test").unwrap();
        basic(&minted.key, &minted.secret)
    }

    /// What a request from somewhere is answered with.
    async fn answer(&self, peer: &str, (method, path): (&str, &str), authorization: &str) -> StatusCode {
        let mut request = Request::builder().method(method).uri(path);
        if !authorization.is_empty() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.extension(gate::Peer(peer.parse().unwrap())).body(Body::empty()).unwrap();
        http::router(self.shared.clone()).call(request).await.unwrap().status()
    }

    fn change(&self, inflight_max: u16) {
        let number = self.view.borrow().number;
        let mut config = Config::default();
        config.mqtt.inflight_max = inflight_max;
        self.view.send_replace(Arc::new(view_of(
            &config,
            Page::Bans(Vec::new()),
            Vec::new(),
            ViewNumber { number: number.number + 1, ..number },
        )));
    }
}

/// The data plane's end of the socket.
struct Peer {
    stream: UnixStream,
    frames: Frames,
}

impl Peer {
    async fn accept(listener: &UnixListener) -> Peer {
        let (stream, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        Peer { stream, frames: Frames::default() }
    }

    async fn order(&mut self) -> Order {
        let mut bytes = [0; 4096];
        loop {
            if let Some(order) = self.frames.take().unwrap() {
                return order;
            }
            let read = timeout(SOON, self.stream.read(&mut bytes)).await.unwrap().unwrap();
            assert!(read > 0, "control closed the connection");
            self.frames.push(&bytes[..read]);
        }
    }

    async fn view(&mut self) -> View {
        loop {
            if let Order::View(view) = self.order().await {
                return view;
            }
        }
    }

    async fn report(&mut self, held: &View) {
        let report = Report {
            pid: 7,
            view: held.number,
            pages: held.digests.clone(),
            shards: vec![ShardReport { connections: 3, ..ShardReport::default() }],
            ..Report::default()
        };
        let mut bytes = Vec::new();
        wire::encode(&Told::Report(report), &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("it never came true: {what}"));
}

async fn get(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

async fn page(address: std::net::SocketAddr, path: &str) -> String {
    get(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
}

#[tokio::test]
async fn the_first_view_is_complete_and_later_ones_follow_changes() {
    let world = World::new();
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    let mut held = peer.view().await;
    assert_eq!(held, **world.view.borrow());
    peer.report(&held).await;
    world.change(77);
    assert_eq!(held.take(peer.view().await), contract::view::Taken::Newer);
    assert_eq!(held.limits().map(|page| page.mqtt.inflight_max), Some(77));
}

#[tokio::test]
async fn a_data_plane_that_lost_its_view_gets_it_again() {
    let world = World::new();
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    let sent = peer.view().await;
    for _ in 0..3 {
        peer.report(&View::default()).await;
    }
    assert_eq!(peer.view().await, sent);
    let links_only = View::complete(ViewNumber { incarnation: 9, number: 1 }, vec![Page::Links(Vec::new())]);
    for _ in 0..3 {
        peer.report(&links_only).await;
    }
    let pages: Vec<_> = peer.view().await.pages.iter().map(Page::kind).collect();
    use contract::view::PageKind;
    assert_eq!(pages, [PageKind::Limits, PageKind::Bans, PageKind::Watched], "what is held is not sent again");
}

#[tokio::test]
async fn a_view_from_the_future_moves_our_numbering_on() {
    let world = World::new();
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    peer.view().await;
    peer.report(&View { number: ViewNumber { incarnation: 500, number: 9 }, ..View::default() }).await;
    assert_eq!(peer.view().await.number, ViewNumber { incarnation: 501, number: 1 });
    let kept = fs::read_to_string(world.dir.path().join("control.incarnation")).unwrap();
    assert_eq!(kept.trim(), "501", "the next start goes on from there");
}

#[tokio::test]
async fn a_data_plane_that_went_away_is_dialled_until_it_is_back() {
    let world = World::new();
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    let view = peer.view().await;
    peer.report(&view).await;
    until("the report is seen", || world.shared.seen().up).await;
    drop((peer, listener));
    until("the end is seen", || !world.shared.seen().up).await;
    assert!(world.shared.seen().report.is_some(), "the last report is kept");
    fs::remove_file(world.dir.path().join(DATAPLANE_SOCKET)).unwrap();
    let listener = UnixListener::bind(world.dir.path().join(DATAPLANE_SOCKET)).unwrap();
    let mut peer = Peer::accept(&listener).await;
    assert_eq!(peer.view().await, view, "a new connection begins with the complete view");
}

#[tokio::test]
async fn garbage_from_the_data_plane_ends_the_connection_and_not_control() {
    let world = World::new();
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    peer.view().await;
    peer.stream.write_all(&[0xff; 64]).await.unwrap();
    let mut peer = Peer::accept(&listener).await;
    peer.view().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_data_plane_is_asked_and_then_dialled_anew() {
    let world = World::new();
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    assert!(matches!(peer.order().await, Order::View(_)));
    assert_eq!(peer.order().await, Order::Report);
    let (_again, _) = timeout(Duration::from_secs(60), listener.accept()).await.unwrap().unwrap();
}

#[tokio::test]
async fn status_says_503_until_the_data_plane_reports() {
    let world = World::new();
    let address = world.http().await;
    let before = page(address, "/status").await;
    assert!(before.starts_with("HTTP/1.1 503") && before.contains("retry-after: 15"), "{before}");
    let listener = world.data_plane();
    let mut peer = Peer::accept(&listener).await;
    let view = peer.view().await;
    peer.report(&view).await;
    until("the report is seen", || world.shared.seen().up).await;
    let after = page(address, "/status").await;
    assert!(after.starts_with("HTTP/1.1 200"), "{after}");
    assert!(after.ends_with("Node ringmq@127.0.0.1 is started\nringmq is running"), "{after}");
    let json = page(address, "/status?format=json").await;
    assert!(
        json.contains("\"node_name\":\"ringmq@127.0.0.1\"") && json.contains("\"app_status\":\"running\""),
        "{json}"
    );
    let nodes = page(address, "/api/v5/nodes").await;
    assert!(nodes.contains("\"node_status\":\"running\"") && nodes.contains("\"live_connections\":3"), "{nodes}");
    assert!(page(address, "/api/v5/nodes/ringmq@127.0.0.1").await.contains("\"connections\":3"));
    assert!(page(address, "/metrics").await.contains("\nemqx_connections_count 3\n"));
}

#[tokio::test]
async fn a_log_that_takes_nothing_is_an_alarm_and_the_node_still_serves() {
    let world = World::new();
    let address = world.http().await;
    let reported = |state| {
        let log = Some(LogReport { state, ..LogReport::default() });
        let shards = vec![ShardReport::default(), ShardReport { log, ..ShardReport::default() }];
        world.shared.connected(true);
        world.shared.reported(Report { shards, ..Report::default() });
    };
    for (state, word, alarm) in
        [(LogState::Tight, "tight", "log_full"), (LogState::Detached, "detached", "log_detached")]
    {
        reported(state);
        let status = page(address, "/status").await;
        assert!(status.starts_with("HTTP/1.1 200") && status.ends_with(&format!("\nlog is {word}")), "{status}");
        assert!(page(address, "/status?format=json").await.contains(&format!("\"log\":\"{word}\"")));
        let alarms = page(address, "/api/v5/alarms").await;
        assert!(alarms.contains(&format!("\"name\":\"{alarm}\"")) && alarms.contains("\"shards\":[1]"), "{alarms}");
        let since = world.shared.alarmed_since(alarm);
        reported(state);
        assert!(since.is_some() && world.shared.alarmed_since(alarm) == since, "it lasts");
        assert!(ctl::render(&world.shared.status()).contains(&format!("{alarm} on shard 1")));
    }
    reported(LogState::Ok);
    assert!(page(address, "/status").await.ends_with("ringmq is running"));
    assert!(page(address, "/api/v5/alarms").await.contains("\"data\":[]"));
    assert_eq!(world.shared.alarmed_since("log_detached"), None);
}

#[tokio::test]
async fn errors_of_http_have_a_code_and_a_message() {
    let world = World::new();
    let key = world.key();
    let address = world.http().await;
    for (request, status, code) in [
        ("GET /nope", "404", "NOT_FOUND"),
        ("GET /api/v5/nodes/other@host", "404", "NOT_FOUND"),
        ("GET /api/v5/nodes/%ff", "404", "NOT_FOUND"),
        ("POST /status", "405", "METHOD_NOT_ALLOWED"),
        ("DELETE /api/v5/nodes", "405", "METHOD_NOT_ALLOWED"),
    ] {
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nConnection: close\r\n\r\n");
        let answer = get(address, &head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(
            answer.contains(&format!("\"code\":\"{code}\"")) && answer.contains("\"message\":"),
            "{request}: {answer}"
        );
    }
}

#[tokio::test]
async fn heads_without_end_and_garbage_are_refused() {
    let world = World::new();
    let address = world.http().await;
    let long = format!("GET /status HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    // Refused while we still write, so either our write fails or an answer comes; never a page.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
    assert!(!answer.starts_with(b"HTTP/1.1 5") && !answer.starts_with(b"HTTP/1.1 2"), "{}", answer.escape_ascii());
    assert!(get(address, "\u{0}\u{1}\u{2}\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(page(address, "/status").await.starts_with("HTTP/1.1 503"), "others are served on");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_head_is_closed() {
    let world = World::new();
    let address = world.http().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /status HT").await.unwrap();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await.expect("it is closed in time").unwrap();
}

#[tokio::test]
async fn ctl_asks_over_a_socket_that_only_the_owner_may_use() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let path = world.dir.path().join(CONTROL_SOCKET);
    tokio::spawn(ctl::serve(ctl::listen(&path).unwrap(), world.shared.clone()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    world.shared.reported(Report { pid: 7, shards: vec![ShardReport::default(); 2], ..Report::default() });
    world.shared.connected(true);
    let status = ask(world.dir.path()).await.unwrap();
    assert_eq!((status.node.as_str(), status.dataplane_up), ("ringmq@127.0.0.1", true));
    let text = ctl::render(&status);
    assert!(
        text.starts_with("Node ringmq@127.0.0.1 is started\n") && text.contains("pid 7") && text.contains("2 shards")
    );
    assert!(text.contains("(behind)"), "this data plane holds no view: {text}");
    assert!(serde_json::to_value(&status).unwrap()["report"]["shards"].is_array());
}

#[tokio::test]
async fn hostile_bytes_on_the_control_socket_get_no_answer_and_do_no_harm() {
    let world = World::new();
    let path = world.dir.path().join(CONTROL_SOCKET);
    tokio::spawn(ctl::serve(ctl::listen(&path).unwrap(), world.shared.clone()));
    let mut two = Vec::new();
    wire::encode(&Ask::Status, &mut two).unwrap();
    two[4] = 9;
    for hostile in [&[0xff; 16][..], &[0; 16], &[0, 0, 1, 0, 1], &two] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(hostile).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection is closed");
        assert!(answer.is_empty(), "{hostile:?}");
    }
    assert!(ask(world.dir.path()).await.is_ok());
}

#[tokio::test]
async fn ctl_says_when_nobody_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let why = ask(dir.path()).await.unwrap_err();
    assert!(why.contains("no control process runs in") && why.contains("is the node started?"), "{why}");
}

fn basic(name: &str, secret: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")))
}

const HERE: &str = "127.0.0.1:5000";
const ELSEWHERE: &str = "192.0.2.1:5000";

#[tokio::test]
async fn reading_is_open_to_loopback_alone_and_status_to_all() {
    let world = World::new();
    let key = world.key();
    for path in ["/metrics", "/api/v5/nodes", "/api/v5/alarms"] {
        assert_eq!(world.answer(HERE, ("GET", path), "").await, StatusCode::OK, "{path}");
        assert_eq!(world.answer(ELSEWHERE, ("GET", path), "").await, StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(world.answer(ELSEWHERE, ("GET", path), &key).await, StatusCode::OK, "{path}");
    }
    assert_eq!(world.answer(ELSEWHERE, ("GET", "/status"), "").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.answer("[::1]:1", ("GET", "/metrics"), "").await, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_changed_without_a_key_also_on_loopback() {
    let world = World::new();
    let minted = world.shared.doors.add_key("one").unwrap();
    world.shared.doors.add_admin("ann", "correct horse").unwrap();
    let change = ("DELETE", "/api/v5/api_key/one");
    let wrong = [
        String::new(),
        "Basic".into(),
        "Basic %%%".into(),
        "Bearer x".into(),
        "Digest x".into(),
        basic(&minted.key, "wrong"),
        basic("one", &minted.secret),
        basic("ann", "wrong horse"),
        basic("bob", "correct horse"),
    ];
    for authorization in &wrong {
        assert_eq!(world.answer(HERE, change, authorization).await, StatusCode::UNAUTHORIZED, "{authorization}");
    }
    let key = basic(&minted.key, &minted.secret);
    assert_eq!(world.answer(HERE, change, &key).await, StatusCode::UNAUTHORIZED, "no key is about keys");
    assert_eq!(world.answer(HERE, ("GET", "/api/v5/api_key"), "").await, StatusCode::UNAUTHORIZED);
    assert_eq!(world.shared.http_refusals(), wrong.len() as u64 + 2);
    assert_eq!(world.shared.doors.keys().len(), 1);
    assert_eq!(world.answer(HERE, change, &basic("ann", "correct horse")).await, StatusCode::NO_CONTENT);
    assert!(world.shared.doors.keys().is_empty());
}

#[tokio::test]
async fn an_administrator_logs_in_and_works_with_the_token() {
    let world = World::new();
    world.shared.doors.add_admin("ann", "correct horse").unwrap();
    let address = world.http().await;
    let post = |path: &str, authorization: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json =
        |answer: &str| -> serde_json::Value { serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap() };
    let login = |password: &str| post("/api/v5/login", "", &format!(r#"{{"username":"ann","password":"{password}"}}"#));
    assert!(get(address, &login("wrong horse")).await.contains("BAD_USERNAME_OR_PWD"));
    assert!(get(address, &post("/api/v5/login", "", "{")).await.contains("\"code\":\"BAD_REQUEST\""));
    let answer = get(address, &login("correct horse")).await;
    let token = format!("Bearer {}", json(&answer)["token"].as_str().unwrap());
    let made = json(&get(address, &post("/api/v5/api_key", &token, r#"{"name":"grafana"}"#)).await);
    let key = basic(made["api_key"].as_str().unwrap(), made["api_secret"].as_str().unwrap());
    assert_eq!(world.answer(ELSEWHERE, ("GET", "/metrics"), &key).await, StatusCode::OK);
    for body in ["", "{", r#"{"name":""}"#, r#"{"name":"grafana"}"#] {
        let answer = get(address, &post("/api/v5/api_key", &token, body)).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("\"code\":\"BAD_REQUEST\""), "{body}: {answer}");
    }
}

#[tokio::test]
async fn a_reload_over_http_says_what_came_of_it() {
    let mut world = World::new();
    let (key, address) = (world.key(), world.http().await);
    let request = format!(
        "POST /api/v5/reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {key}\r\nContent-Length: 0\r\n\r\n"
    );
    for (said, status) in [(Ok("done".to_owned()), "200"), (Err("line 3: no such key".to_owned()), "400")] {
        let asked = tokio::spawn({
            let request = request.clone();
            async move { get(address, &request).await }
        });
        let asker = timeout(SOON, world.reloads_asked.recv()).await.unwrap().unwrap();
        asker.send(said.clone()).unwrap();
        let answer = asked.await.unwrap();
        let (Ok(text) | Err(text)) = said;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(&text), "{answer}");
    }
}

#[tokio::test]
async fn ctl_makes_and_removes_administrators_and_keys() {
    let world = World::new();
    let path = world.dir.path().join(CONTROL_SOCKET);
    tokio::spawn(ctl::serve(ctl::listen(&path).unwrap(), world.shared.clone()));
    let order = |ask: Ask| {
        let data_dir = world.dir.path().to_owned();
        async move { task::spawn_blocking(move || ctl::order(&data_dir, &ask)).await.unwrap() }
    };
    let ann = Ask::AdminAdd { name: "ann".into(), password: "correct horse".into() };
    assert_eq!(order(ann).await, Ok(vec![]));
    assert_eq!(order(Ask::Admins).await, Ok(vec!["ann".to_owned()]));
    let said = order(Ask::KeyAdd("grafana".into())).await.unwrap();
    let word = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
    assert!(world.shared.doors.knows_key(&word(&said[0]), &word(&said[1])), "{said:?}");
    assert_eq!(order(Ask::Keys).await, Ok(vec![format!("{} grafana", word(&said[0]))]));
    assert_eq!(order(Ask::KeyRemove("grafana".into())).await, Ok(vec![]));
    assert_eq!(order(Ask::AdminRemove("ann".into())).await, Ok(vec![]));
    assert!(order(Ask::AdminRemove("ann".into())).await.is_err_and(|why| why.contains("no administrator")));
}

async fn ask(data_dir: &Path) -> Result<contract::ctl::Status, String> {
    let data_dir = data_dir.to_owned();
    task::spawn_blocking(move || ctl::status(&data_dir)).await.unwrap()
}
