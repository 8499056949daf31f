//! The connection to the data plane: Views go there, Reports come back. It is dialled for ever, with back-off;
//! whatever happens on it, the data plane serves on.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use contract::{
    report::{Order, Report, Told},
    view::{View, ViewNumber},
    wire::{self, Frames},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{incarnation, state::Shared};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A data plane that does not take an order for so long is dialled anew.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// Without a Report for so long, one is asked for.
const ASK_AFTER: Duration = Duration::from_secs(2);
/// Without a Report for so long, the connection is given up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(15);
const READ_BYTES: usize = 64 << 10;

/// The data plane of this node, as control reaches it.
pub(crate) struct Dataplane {
    pub(crate) socket: PathBuf,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) shared: Arc<Shared>,
}

impl Dataplane {
    /// Keeps a connection for ever. `renumber` and `data_dir` serve when the data plane holds a View from the future.
    pub(crate) async fn run(mut self, renumber: watch::Sender<Arc<View>>, data_dir: PathBuf) {
        let mut backoff = BACKOFF_MIN;
        loop {
            match UnixStream::connect(&self.socket).await {
                Err(cause) => debug!("the data plane does not answer at {}: {cause}", self.socket.display()),
                Ok(stream) => {
                    info!("connected with the data plane");
                    let mut session = Session::new(stream);
                    let ended = session.run(&mut self, &renumber, &data_dir).await;
                    self.shared.connected(false);
                    if session.reports > 0 {
                        backoff = BACKOFF_MIN;
                    }
                    warn!("the connection with the data plane ended: {ended}");
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

/// One connection.
struct Session {
    stream: UnixStream,
    frames: Frames,
    bytes: Vec<u8>,
    out: Vec<u8>,
    /// Reports that came on it.
    reports: u64,
    /// When the last one came, or the connection began.
    heard: Instant,
    /// A Report was asked for since.
    asked: bool,
    /// What was sent last on it.
    sent: ViewNumber,
}

impl Session {
    fn new(stream: UnixStream) -> Session {
        Session {
            stream,
            frames: Frames::default(),
            bytes: vec![0; READ_BYTES],
            out: Vec::new(),
            reports: 0,
            heard: Instant::now(),
            asked: false,
            sent: ViewNumber::default(),
        }
    }

    /// Runs until it fails, and says how.
    async fn run(
        &mut self,
        dataplane: &mut Dataplane,
        renumber: &watch::Sender<Arc<View>>,
        data_dir: &Path,
    ) -> io::Error {
        loop {
            if let Err(ended) = self.step(dataplane, renumber, data_dir).await {
                return ended;
            }
        }
    }

    async fn step(
        &mut self,
        dataplane: &mut Dataplane,
        renumber: &watch::Sender<Arc<View>>,
        data_dir: &Path,
    ) -> io::Result<()> {
        // The first View of a connection is complete: we do not know yet what the other side holds.
        let view = dataplane.view.borrow_and_update().clone();
        if view.number > self.sent {
            self.send_view(View::clone(&view)).await?;
        }
        let patience = if self.asked { GIVE_UP_AFTER } else { ASK_AFTER };
        let read = tokio::select! {
            changed = dataplane.view.changed() => return changed.map_err(|_| io::Error::other("control stops")),
            read = timeout_at(self.heard + patience, self.stream.read(&mut self.bytes)) => read,
        };
        let read = match read {
            Ok(read) => read?,
            Err(_) if self.asked => return Err(io::Error::new(io::ErrorKind::TimedOut, "no report in time")),
            Err(_) => {
                self.asked = true;
                return self.send(&Order::Report).await;
            }
        };
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.frames.push(&self.bytes[..read]);
        while let Some(Told::Report(report)) = self.frames.take().map_err(io::Error::other)? {
            self.reported(report, dataplane, renumber, data_dir).await?;
        }
        Ok(())
    }

    async fn reported(
        &mut self,
        report: Report,
        dataplane: &mut Dataplane,
        renumber: &watch::Sender<Arc<View>>,
        data_dir: &Path,
    ) -> io::Result<()> {
        self.reports += 1;
        self.heard = Instant::now();
        self.asked = false;
        let held = report.view;
        let missing = report.pages.clone();
        dataplane.shared.reported(report);
        dataplane.shared.connected(true);
        let current = dataplane.view.borrow().clone();
        if held.incarnation > current.number.incarnation {
            // Our data directory was wiped and the clock set back: without a higher number we would stay unheard.
            let number = ViewNumber { incarnation: held.incarnation + 1, number: 1 };
            warn!(incarnation = number.incarnation, "the data plane holds a later view; numbering goes on from there");
            incarnation::keep(data_dir, number.incarnation);
            renumber.send_modify(|view| *view = Arc::new(View { number, ..View::clone(view) }));
            return Ok(());
        }
        // It did not take what we sent, because a page was missing or it restarted from an older one.
        if held < self.sent && self.reports.is_multiple_of(RESEND_EVERY) {
            self.send_view(current.since(&missing)).await?;
        }
        Ok(())
    }

    async fn send_view(&mut self, view: View) -> io::Result<()> {
        self.sent = view.number;
        self.send(&Order::View(view)).await
    }

    async fn send(&mut self, order: &Order) -> io::Result<()> {
        self.out.clear();
        wire::encode(order, &mut self.out).map_err(io::Error::other)?;
        timeout(WRITE_PATIENCE, self.stream.write_all(&self.out)).await?
    }
}

/// A Report that was on its way while we sent a View still names the older one, so not each of them is answered.
const RESEND_EVERY: u64 = 3;
