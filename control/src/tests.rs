//! Control between its neighbours: a data plane that the tests play, HTTP clients and `ctl`.

use std::{fs, path::Path, sync::Arc, time::Duration};

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
    sync::watch,
    task,
    time::timeout,
};

use crate::{CONTROL_SOCKET, DATAPLANE_SOCKET, ctl, dataplane::Dataplane, http, state::Shared, view_of};

/// Whatever is waited for comes at once, or never.
const SOON: Duration = Duration::from_secs(10);

/// A control process without signals, and the directory that it shares with the data plane of the test.
struct World {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    view: watch::Sender<Arc<View>>,
    /// Holds the receiver that keeps the View alive when no data plane task runs.
    _seen: watch::Receiver<Arc<View>>,
}

impl World {
    fn new() -> World {
        let config = Config::default();
        let number = ViewNumber { incarnation: 10, number: 1 };
        let (view, seen) = watch::channel(Arc::new(view_of(&config, number)));
        let shared = Shared::new(&config, "127.0.0.1:1".parse().unwrap(), seen.clone());
        World { dir: tempfile::tempdir().unwrap(), shared, view, _seen: seen }
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

    fn change(&self, inflight_max: u16) {
        let number = self.view.borrow().number;
        let mut config = Config::default();
        config.mqtt.inflight_max = inflight_max;
        self.view.send_replace(Arc::new(view_of(&config, ViewNumber { number: number.number + 1, ..number })));
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
    assert_eq!(pages, [contract::view::PageKind::Limits], "what is held is not sent again");
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
    let address = world.http().await;
    for (request, status, code) in [
        ("GET /nope", "404", "NOT_FOUND"),
        ("GET /api/v5/nodes/other@host", "404", "NOT_FOUND"),
        ("GET /api/v5/nodes/%ff", "404", "NOT_FOUND"),
        ("POST /status", "405", "METHOD_NOT_ALLOWED"),
        ("DELETE /api/v5/nodes", "405", "METHOD_NOT_ALLOWED"),
    ] {
        let answer = get(address, &format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
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

async fn ask(data_dir: &Path) -> Result<contract::ctl::Status, String> {
    let data_dir = data_dir.to_owned();
    task::spawn_blocking(move || ctl::status(&data_dir)).await.unwrap()
}
