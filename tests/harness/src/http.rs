//! One HTTP request to a node and what Prometheus text says. Called by tests that need a counter.
//!
//! Always true: every request has a connection of its own and a bound, so a stopped control process is an
//! error value here and never a test that hangs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body as text.
    pub body: String,
}

/// `GET path`; the error says what failed.
pub fn get(address: SocketAddr, path: &str, bound: Duration) -> Result<Answer, String> {
    request(address, ("GET", path), "", "", bound)
}

/// A request with a value of `Authorization` and a body of JSON, each of which may be empty; the error says what failed.
pub fn request(
    address: SocketAddr,
    (method, path): (&str, &str),
    authorization: &str,
    body: &str,
    bound: Duration,
) -> Result<Answer, String> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, bound)?;
        stream.set_read_timeout(Some(bound))?;
        stream.set_write_timeout(Some(bound))?;
        // Version 1.0: the answer ends with the connection and comes in one piece, never in chunks.
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n");
        if !authorization.is_empty() {
            head += &format!("Authorization: {authorization}\r\n");
        }
        if !body.is_empty() {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        write!(stream, "{head}\r\n{body}")?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = ask().map_err(|error| format!("{method} http://{address}{path}: {error}"))?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("{method} http://{address}{path}: no end of the headers in {text:?}"))?;
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| format!("{method} http://{address}{path}: no status in {head:?}"))?;
    Ok(Answer { status, body: body.to_owned() })
}

/// The sum of every sample of a metric, over all labels. `name` is the name without the product's prefix
/// and without `_total`; `None` when the text has no such metric.
pub fn sum(text: &str, name: &str) -> Option<f64> {
    let mut found = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let metric = series.split('{').next().unwrap_or(series);
        let bare = metric.strip_prefix("ringmq_").unwrap_or(metric);
        let bare = bare.strip_suffix("_total").unwrap_or(bare);
        if bare == name {
            found = Some(found.unwrap_or(0.0) + value.parse::<f64>().unwrap_or(f64::NAN));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_added_over_labels() {
        let text = "# HELP ringmq_link_sent_total x\n\
                    ringmq_link_sent_total{shard=\"0\"} 3\n\
                    ringmq_link_sent_total{shard=\"1\"} 4\n\
                    ringmq_link_sent_bytes 100\n";
        assert_eq!(sum(text, "link_sent"), Some(7.0));
        assert_eq!(sum(text, "link"), None);
    }
}
