//! Who may not connect: kept by control in `bans.json` in the data directory, handed to the data plane in the View, which holds
//! with or without control. Changed over HTTP and `control.sock`, and by what the data plane reports. Always true: what was
//! answered is on the disk and in the View; there are no more bans than fit into one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use contract::{
    bans::{BANS_MAX, Ban, BanKind, FLAPPING_DETECTOR, NAMES_BYTES_MAX},
    view::{Page, PageKind, View, ViewNumber},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::replace_file;

/// Where they stand, in the data directory.
pub(crate) const BANS_FILE: &str = "bans.json";
/// Who has banned somebody over `control.sock`.
pub(crate) const BY_CTL: &str = "ctl";
/// Who has banned somebody over HTTP and does not say.
const BY_API: &str = "mgmt_api";
/// Why a ban is not added.
pub(crate) const EXISTS: &str = "there is such a ban already";
/// A file that is longer is none of ours.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// Longest reason, and longest name of whoever gave it.
const TEXT_BYTES_MAX: usize = 256;
/// What EMQX calls a ban without an end.
const FOR_EVER: &str = "infinity";

/// A ban, and what there is to say about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    ban: Ban,
    by: String,
    reason: String,
    at_ms: u64,
}

/// A ban as EMQX's API takes it.
#[derive(Deserialize)]
pub(crate) struct NewBan {
    r#as: String,
    who: String,
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    at: Option<Value>,
    #[serde(default)]
    until: Option<Value>,
}

impl NewBan {
    /// The ban that is meant, or why there is none.
    pub(crate) fn entry(self) -> Result<Entry, String> {
        let at_ms = self.at.as_ref().map_or(Ok(now_ms()), moment_of)?;
        let until_ms = self.until.as_ref().map_or(Ok(u64::MAX), moment_of)?;
        let (by, reason) = (self.by.unwrap_or_else(|| BY_API.to_owned()), self.reason.unwrap_or_default());
        Entry { ban: Ban::parse(&self.r#as, &self.who, until_ms)?, by, reason, at_ms }.checked()
    }
}

impl Entry {
    /// A ban from now on; `for_ms`: how long it lasts, if not for ever.
    pub(crate) fn new(kind: &str, who: &str, by: &str, reason: &str, for_ms: Option<u64>) -> Result<Entry, String> {
        let at_ms = now_ms();
        let until_ms = for_ms.map_or(u64::MAX, |for_ms| at_ms.saturating_add(for_ms));
        let ban = Ban::parse(kind, who, until_ms)?;
        Entry { ban, by: by.to_owned(), reason: reason.to_owned(), at_ms }.checked()
    }

    fn checked(self) -> Result<Entry, String> {
        if self.by.len() > TEXT_BYTES_MAX || self.reason.len() > TEXT_BYTES_MAX {
            return Err(format!("by and reason have at most {TEXT_BYTES_MAX} bytes"));
        }
        match self.ban.until_ms <= now_ms() {
            true => Err("until is over already".to_owned()),
            false => Ok(self),
        }
    }

    /// With EMQX's field names.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "as": self.ban.kind.as_str(),
            "who": self.ban.who,
            "by": self.by,
            "reason": self.reason,
            "at": date_of(self.at_ms),
            "until": date_of(self.ban.until_ms),
        })
    }

    /// For people.
    pub(crate) fn to_line(&self) -> String {
        let Entry { ban, by, reason, .. } = self;
        format!("{} {:?} until {} by {by:?}: {reason}", ban.kind.as_str(), ban.who, date_of(ban.until_ms))
    }
}

/// The bans of this node.
pub(crate) struct Bans {
    path: PathBuf,
    entries: Mutex<Vec<Entry>>,
    /// What the data plane had banned and an operator has lifted: a Report that was on its way may name it again.
    lifted: Mutex<Vec<Ban>>,
    view: watch::Sender<Arc<View>>,
}

/// Reads what is kept in `data_dir`. A file that cannot be read is an error: without it the banned would be let in.
pub(crate) fn read(data_dir: &Path) -> io::Result<Vec<Entry>> {
    let path = data_dir.join(BANS_FILE);
    match fs::metadata(&path) {
        Ok(found) if found.len() > FILE_BYTES_MAX => Err(io::Error::other("it is too long")),
        Ok(_) => serde_json::from_slice(&fs::read(&path)?).map_err(io::Error::other),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(cause),
    }
}

/// What a View says about them.
pub(crate) fn page(entries: &[Entry]) -> Page {
    Page::Bans(entries.iter().map(|entry| entry.ban.clone()).collect())
}

impl Bans {
    /// The bans that were read; changes go into `view`.
    pub(crate) fn new(data_dir: &Path, entries: Vec<Entry>, view: watch::Sender<Arc<View>>) -> Bans {
        let path = data_dir.join(BANS_FILE);
        Bans { path, entries: Mutex::new(entries), lifted: Mutex::default(), view }
    }

    /// Those that have not ended, the newest first.
    pub(crate) fn list(&self) -> Vec<Entry> {
        let now_ms = now_ms();
        self.entries().iter().rev().filter(|entry| entry.ban.until_ms > now_ms).cloned().collect()
    }

    /// Adds one.
    pub(crate) fn add(&self, entry: Entry) -> Result<Entry, String> {
        self.change(|entries| {
            if entries.iter().any(|known| is_about(known, &entry.ban)) {
                return Err(EXISTS.to_owned());
            }
            info!(kind = entry.ban.kind.as_str(), who = entry.ban.who, by = entry.by, "banned");
            entries.push(entry.clone());
            Ok(())
        })?;
        Ok(entry)
    }

    /// Lifts one.
    pub(crate) fn remove(&self, kind: &str, who: &str) -> Result<(), String> {
        let ban = Ban::parse(kind, who, u64::MAX)?;
        self.change(|entries| {
            let place = entries.iter().position(|known| is_about(known, &ban)).ok_or("there is no such ban")?;
            self.lift([entries.remove(place)]);
            Ok(())
        })?;
        info!(kind = ban.kind.as_str(), who = ban.who, "a ban was lifted");
        Ok(())
    }

    /// Lifts all.
    pub(crate) fn clear(&self) -> Result<(), String> {
        self.change(|entries| {
            self.lift(entries.drain(..));
            Ok(())
        })
    }

    fn lift(&self, entries: impl IntoIterator<Item = Entry>) {
        let now_ms = now_ms();
        let mut lifted = self.lifted();
        lifted.retain(|ban| ban.until_ms > now_ms);
        let found = entries.into_iter().filter(|entry| entry.by == FLAPPING_DETECTOR);
        lifted.extend(found.map(|entry| entry.ban).take(BANS_MAX));
        let surplus = lifted.len().saturating_sub(BANS_MAX);
        lifted.drain(..surplus);
    }

    /// The data plane has banned client ids by itself: from now on they are bans like others, which may be lifted.
    pub(crate) fn adopt(&self, found: &[Ban]) {
        let fresh = |entries: &[Entry]| -> Vec<Ban> {
            let lifted = self.lifted();
            let is_known = |ban: &Ban| entries.iter().any(|known| is_about(known, ban)) || lifted.contains(ban);
            found.iter().filter(|ban| ban.kind == BanKind::ClientId && !is_known(ban)).cloned().collect()
        };
        if found.is_empty() || fresh(&self.entries()).is_empty() {
            return;
        }
        let at_ms = now_ms();
        let adopted = self.change(|entries| {
            for ban in fresh(entries) {
                warn!(client = ban.who, "banned: it connects and disconnects all the time");
                let reason = "flapping is detected".to_owned();
                entries.push(Entry { ban, by: FLAPPING_DETECTOR.to_owned(), reason, at_ms });
            }
            Ok(())
        });
        if let Err(why) = adopted {
            error!("client ids that the data plane has banned are not kept: {why}");
        }
    }

    /// Changes the bans: on the disk first, then in the View. Those that have ended go.
    fn change(&self, change: impl FnOnce(&mut Vec<Entry>) -> Result<(), String>) -> Result<(), String> {
        let mut entries = self.entries();
        let now_ms = now_ms();
        let mut fresh: Vec<Entry> = entries.iter().filter(|entry| entry.ban.until_ms > now_ms).cloned().collect();
        change(&mut fresh)?;
        let names_bytes: usize = fresh.iter().map(|entry| entry.ban.who.len()).sum();
        if fresh.len() > BANS_MAX || names_bytes > NAMES_BYTES_MAX {
            return Err(format!("a node has at most {BANS_MAX} bans, with names of {NAMES_BYTES_MAX} bytes in all"));
        }
        let text = serde_json::to_string(&fresh).map_err(|cause| cause.to_string())?;
        let path = self.path.display();
        replace_file(&self.path, &text, 0o600).map_err(|cause| format!("cannot write {path}: {cause}"))?;
        let page = page(&fresh);
        *entries = fresh;
        // Under the lock, so that an older change never comes after a newer one.
        self.view.send_modify(|view| {
            let number = ViewNumber { number: view.number.number + 1, ..view.number };
            let others = view.pages.iter().filter(|page| page.kind() != PageKind::Bans).cloned();
            *view = Arc::new(View::complete(number, others.chain([page]).collect()));
        });
        Ok(())
    }

    fn lifted(&self) -> MutexGuard<'_, Vec<Ban>> {
        self.lifted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_about(entry: &Entry, ban: &Ban) -> bool {
    entry.ban.kind == ban.kind && entry.ban.who == ban.who
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// A moment as the API writes it, or the word for none.
fn date_of(at_ms: u64) -> String {
    let date = OffsetDateTime::from(SystemTime::UNIX_EPOCH).checked_add(time::Duration::milliseconds(at_ms as i64));
    let date = date.filter(|_| at_ms <= i64::MAX as u64).and_then(|date| date.format(&Rfc3339).ok());
    date.unwrap_or_else(|| FOR_EVER.to_owned())
}

/// What [`date_of`] writes, any other RFC 3339 date, or seconds since 1970.
fn moment_of(said: &Value) -> Result<u64, String> {
    let wrong =
        || "a time is like \"2026-01-31T12:00:00Z\", a number of seconds since 1970, or \"infinity\"".to_owned();
    match said {
        Value::String(text) if text == FOR_EVER => Ok(u64::MAX),
        Value::String(text) => {
            let date = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
            u64::try_from(date.unix_timestamp_nanos() / 1_000_000).map_err(|_| wrong())
        }
        Value::Number(number) => {
            let at = Duration::from_secs(number.as_u64().ok_or_else(wrong)?);
            u64::try_from(at.as_millis()).map_err(|_| wrong())
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bans(dir: &Path) -> (Bans, watch::Receiver<Arc<View>>) {
        let (view, seen) = watch::channel(Arc::new(View::default()));
        (Bans::new(dir, read(dir).unwrap(), view), seen)
    }

    fn entry(kind: &str, who: &str, for_ms: Option<u64>) -> Entry {
        Entry::new(kind, who, BY_CTL, "why", for_ms).unwrap()
    }

    #[test]
    fn bans_are_there_after_a_restart_and_in_each_view() {
        let dir = tempfile::tempdir().unwrap();
        let (first, seen) = bans(dir.path());
        first.add(entry("clientid", "a/b", None)).unwrap();
        first.add(entry("peerhost", "10.1.2.3/8", Some(60_000))).unwrap();
        assert_eq!(first.add(entry("clientid", "a/b", None)), Err(EXISTS.to_owned()));
        let who: Vec<String> = seen.borrow().bans().unwrap().iter().map(|ban| ban.who.clone()).collect();
        assert_eq!((who, seen.borrow().number.number), (vec!["a/b".to_owned(), "10.0.0.0/8".to_owned()], 2));
        let (again, seen) = bans(dir.path());
        assert_eq!(again.list(), first.list());
        again.remove("peerhost", "10.9.9.9/8").unwrap();
        assert!(again.remove("peerhost", "10.0.0.0/8").is_err());
        again.clear().unwrap();
        assert!(again.list().is_empty() && seen.borrow().bans() == Some(&[]));
    }

    #[test]
    fn what_has_ended_is_not_shown_and_goes_with_the_next_change() {
        let dir = tempfile::tempdir().unwrap();
        let (bans, _seen) = bans(dir.path());
        let ended = Entry { ban: Ban::parse("clientid", "old", 1).unwrap(), ..entry("clientid", "x", None) };
        bans.entries().push(ended);
        assert!(bans.list().is_empty());
        bans.add(entry("clientid", "old", None)).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_the_data_plane_has_banned_is_adopted_once_and_can_be_lifted() {
        let dir = tempfile::tempdir().unwrap();
        let (bans, seen) = bans(dir.path());
        let found = [Ban::parse("clientid", "flaps", now_ms() + 60_000).unwrap()];
        bans.adopt(&found);
        bans.adopt(&found);
        assert_eq!((bans.list()[0].by.as_str(), seen.borrow().number.number), (FLAPPING_DETECTOR, 1));
        bans.remove("clientid", "flaps").unwrap();
        // A Report that was on its way.
        bans.adopt(&found);
        assert_eq!(seen.borrow().bans(), Some(&[][..]));
    }

    #[test]
    fn times_are_dates_or_seconds_or_for_ever() {
        let at_ms = 1_769_860_800_000;
        assert_eq!(date_of(at_ms), "2026-01-31T12:00:00Z");
        for said in [json!("2026-01-31T12:00:00Z"), json!("2026-01-31T13:00:00+01:00"), json!(1_769_860_800)] {
            assert_eq!(moment_of(&said), Ok(at_ms), "{said}");
        }
        assert_eq!((moment_of(&json!("infinity")), date_of(u64::MAX)), (Ok(u64::MAX), FOR_EVER.to_owned()));
        for wrong in [json!("tomorrow"), json!(-1), json!(true), json!("1969-01-01T00:00:00Z")] {
            assert!(moment_of(&wrong).is_err(), "{wrong}");
        }
    }
}
