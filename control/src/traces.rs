//! The traces of this node: the list, which goes into the View and survives a restart, and their files, which the data plane
//! appends to. Always true: there are at most [`TRACES_MAX`]; each has a file from when it is made until it is removed.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use contract::trace::{DIRECTORY, LIFE_MS, Payload, Phase, Subject, TRACES_MAX, Trace};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::warn;

use crate::replace_file;

const LIST_FILE: &str = "traces.json";
/// Bytes of a file that are read at once.
pub(crate) const READ_BYTES_MAX: u64 = 1 << 20;

/// All traces.
pub(crate) struct Traces {
    data_dir: PathBuf,
    list: Mutex<Vec<Trace>>,
    changed: Notify,
}

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There is none of that name.
    Unknown,
    /// There is one of that name.
    Exists,
    /// It cannot be one, or the disk refuses; the sentence is for the operator.
    Bad(String),
}

impl Refused {
    pub(crate) fn why(&self) -> String {
        match self {
            Refused::Unknown => "there is no trace of that name".to_owned(),
            Refused::Exists => "there is a trace of that name; remove it first".to_owned(),
            Refused::Bad(why) => why.clone(),
        }
    }
}

/// A trace as it is asked for, with EMQX's field names; whom it is about stands in `value` or in the field that `type` names.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Wanted {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    value: Option<String>,
    clientid: Option<String>,
    topic: Option<String>,
    ip_address: Option<String>,
    start_at: Option<Moment>,
    end_at: Option<Moment>,
    /// A time with its unit, in place of `end_at`.
    duration: Option<String>,
    payload_encode: Payload,
}

/// RFC 3339, or seconds since 1970.
#[derive(Deserialize)]
#[serde(untagged)]
enum Moment {
    Seconds(u64),
    Text(String),
}

impl Moment {
    fn ms(&self) -> Result<u64, String> {
        match self {
            Moment::Seconds(seconds) => Ok(seconds.saturating_mul(1000)),
            Moment::Text(text) => {
                let moment = humantime::parse_rfc3339_weak(text).map_err(|why| format!("{text:?}: {why}"))?;
                Ok(ms(moment.duration_since(UNIX_EPOCH).unwrap_or_default()))
            }
        }
    }
}

impl Wanted {
    /// One that begins now; the subject is kind and value.
    pub(crate) fn new(
        name: String,
        (kind, value): (String, String),
        duration: Option<String>,
        payload: Payload,
    ) -> Wanted {
        Wanted { name, kind, value: Some(value), duration, payload_encode: payload, ..Wanted::default() }
    }

    fn trace(self, now_ms: u64) -> Result<Trace, String> {
        let named = match self.kind.as_str() {
            "clientid" => self.clientid,
            "topic" => self.topic,
            _ => self.ip_address,
        };
        let value = self.value.or(named).unwrap_or_default();
        let subject = Subject::of(&self.kind, &value);
        let subject = subject.ok_or_else(|| format!("type: clientid, topic or ip_address; got {:?}", self.kind))?;
        let start_ms = self.start_at.map_or(Ok(now_ms), |at| at.ms()).map_err(|why| format!("start_at: {why}"))?;
        let end_ms = match (self.end_at, self.duration) {
            (Some(at), _) => at.ms().map_err(|why| format!("end_at: {why}"))?,
            (None, None) => start_ms.saturating_add(LIFE_MS),
            (None, Some(text)) => {
                let life = humantime::parse_duration(&text).map_err(|why| format!("duration: {text:?}: {why}"))?;
                start_ms.saturating_add(ms(life))
            }
        };
        let trace = Trace { name: self.name, subject, start_ms, end_ms, payload: self.payload_encode };
        trace.check()?;
        Ok(trace)
    }
}

impl Traces {
    /// Those that were there before a restart. A list that cannot be read is an empty one.
    pub(crate) fn open(data_dir: &Path) -> Traces {
        let path = data_dir.join(LIST_FILE);
        let list = match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str::<Vec<Trace>>(&text).map_err(|why| why.to_string()),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(cause) => Err(cause.to_string()),
        };
        let mut list = list.unwrap_or_else(|why| {
            warn!("the list of traces {} cannot be read, and begins anew: {why}", path.display());
            Vec::new()
        });
        list.retain(|trace| trace.check().is_ok());
        list.truncate(TRACES_MAX);
        Traces { data_dir: data_dir.to_owned(), list: Mutex::new(list), changed: Notify::new() }
    }

    /// All of them, in the order in which they were made.
    pub(crate) fn all(&self) -> Vec<Trace> {
        self.list().clone()
    }

    /// Waits until [`Traces::all`] says something else.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes a trace, and its file.
    pub(crate) fn add(&self, wanted: Wanted) -> Result<Trace, Refused> {
        let trace = wanted.trace(now_ms()).map_err(Refused::Bad)?;
        let mut list = self.list();
        if list.iter().any(|known| known.name == trace.name) {
            return Err(Refused::Exists);
        }
        if list.len() >= TRACES_MAX {
            return Err(Refused::Bad(format!("there are {TRACES_MAX} traces; remove one first")));
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(self.data_dir.join(DIRECTORY));
        let file = || fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(self.path(&trace));
        made.and_then(|()| file()).map_err(|cause| Refused::Bad(format!("its file cannot be made: {cause}")))?;
        list.push(trace.clone());
        self.keep(&list)?;
        Ok(trace)
    }

    /// Ends a trace; its file stays.
    pub(crate) fn stop(&self, name: &str) -> Result<(), Refused> {
        let mut list = self.list();
        let trace = list.iter_mut().find(|trace| trace.name == name).ok_or(Refused::Unknown)?;
        let now_ms = now_ms();
        trace.start_ms = trace.start_ms.min(now_ms - 1);
        trace.end_ms = trace.end_ms.min(now_ms);
        self.keep(&list)
    }

    /// Removes a trace and its file.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Refused> {
        let mut list = self.list();
        let place = list.iter().position(|trace| trace.name == name).ok_or(Refused::Unknown)?;
        let trace = list.remove(place);
        // A file that is left is written over by the next trace of that name.
        let _ = fs::remove_file(self.path(&trace));
        self.keep(&list)
    }

    /// A part of a trace's file, as text, and where the next part begins.
    pub(crate) fn read(&self, name: &str, position: u64, bytes_max: u64) -> Result<(String, u64), Refused> {
        let path = self.path(self.list().iter().find(|trace| trace.name == name).ok_or(Refused::Unknown)?);
        let read = || -> io::Result<Vec<u8>> {
            let mut file = fs::File::open(&path)?;
            file.seek(SeekFrom::Start(position))?;
            let mut bytes = Vec::new();
            file.take(bytes_max).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|cause| Refused::Bad(format!("its file cannot be read: {cause}")))?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), position + bytes.len() as u64))
    }

    /// Bytes of its file.
    pub(crate) fn size(&self, trace: &Trace) -> u64 {
        fs::metadata(self.path(trace)).map_or(0, |metadata| metadata.len())
    }

    /// A trace with EMQX's field names.
    pub(crate) fn describe(&self, trace: &Trace, node: &str) -> Value {
        let (kind, value) = trace.subject.words();
        json!({
            "name": trace.name,
            "type": kind,
            kind: value,
            "start_at": text(trace.start_ms),
            "end_at": text(trace.end_ms),
            "status": trace.phase(now_ms()).word(),
            "payload_encode": trace.payload,
            "log_size": { node: self.size(trace) },
        })
    }

    /// A line about a trace, for people.
    pub(crate) fn line(&self, trace: &Trace) -> String {
        let (kind, value) = trace.subject.words();
        let phase = trace.phase(now_ms());
        let edge = if phase == Phase::Waiting { trace.start_ms } else { trace.end_ms };
        let word = if phase == Phase::Waiting { "from" } else { "until" };
        format!("{} {} {kind} {value:?} {word} {}, {} bytes", trace.name, phase.word(), text(edge), self.size(trace))
    }

    fn path(&self, trace: &Trace) -> PathBuf {
        self.data_dir.join(DIRECTORY).join(trace.file())
    }

    fn keep(&self, list: &[Trace]) -> Result<(), Refused> {
        self.changed.notify_one();
        let text = serde_json::to_string(list).map_err(|why| Refused::Bad(why.to_string()))?;
        let kept = replace_file(&self.data_dir.join(LIST_FILE), &text, 0o600);
        kept.map_err(|cause| Refused::Bad(format!("it holds until a restart only: {LIST_FILE}: {cause}")))
    }

    fn list(&self) -> MutexGuard<'_, Vec<Trace>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> u64 {
    ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339, which knows no year beyond 9999.
fn text(ms: u64) -> String {
    let moment = UNIX_EPOCH + Duration::from_millis(ms.min(253_402_300_799_000));
    humantime::format_rfc3339_seconds(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: &str) -> Wanted {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_trace_is_made_listed_stopped_and_removed_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let traces = Traces::open(dir.path());
        let json = r#"{"name":"t","type":"clientid","clientid":"c","duration":"2m","payload_encode":"hex"}"#;
        let trace = traces.add(wanted(json)).unwrap();
        assert_eq!((trace.end_ms - trace.start_ms, trace.payload), (120_000, Payload::Hex));
        assert!(matches!(traces.add(wanted(json)), Err(Refused::Exists)));
        fs::write(dir.path().join("trace/t.log"), "one\ntwo\n").unwrap();
        assert_eq!(traces.read("t", 4, 100).unwrap(), ("two\n".to_owned(), 8));
        let again = Traces::open(dir.path());
        assert_eq!(again.all(), std::slice::from_ref(&trace));
        assert_eq!(again.describe(&trace, "n")["status"], "running");
        again.stop("t").unwrap();
        assert_eq!(again.describe(&again.all()[0], "n")["status"], "stopped");
        again.remove("t").unwrap();
        assert!(matches!(again.remove("t"), Err(Refused::Unknown)));
        assert!(again.all().is_empty() && !dir.path().join("trace/t.log").exists());
    }

    #[test]
    fn moments_are_seconds_or_text_and_what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let traces = Traces::open(dir.path());
        let made = traces.add(wanted(
            r#"{"name":"a","type":"ip_address","value":"::1","start_at":1000000000,"end_at":"2001-09-09T02:00:00Z"}"#,
        ));
        let trace = made.unwrap();
        assert_eq!((trace.start_ms, trace.end_ms), (1_000_000_000_000, 1_000_000_800_000));
        for (json, field) in [
            (r#"{"name":"b","type":"nobody","value":"c"}"#, "type"),
            (r#"{"name":"b","type":"topic"}"#, "topic"),
            (r#"{"name":"b/c","type":"topic","topic":"t"}"#, "name"),
            (r#"{"name":"b","type":"topic","topic":"t","end_at":"soon"}"#, "end_at"),
            (r#"{"name":"b","type":"topic","topic":"t","duration":"soon"}"#, "duration"),
            (r#"{"name":"b","type":"topic","topic":"t","start_at":18446744073709551615}"#, "start_at"),
        ] {
            let why = traces.add(wanted(json)).unwrap_err().why();
            assert!(why.starts_with(field), "{json}: {why}");
        }
    }

    #[test]
    fn there_are_only_so_many() {
        let dir = tempfile::tempdir().unwrap();
        let traces = Traces::open(dir.path());
        let named = |name: usize| wanted(&format!(r#"{{"name":"t{name}","type":"topic","topic":"t"}}"#));
        (0..TRACES_MAX).for_each(|name| drop(traces.add(named(name)).unwrap()));
        assert!(matches!(traces.add(named(TRACES_MAX)), Err(Refused::Bad(_))));
    }
}
