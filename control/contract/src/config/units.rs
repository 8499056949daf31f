//! Sizes, times and addresses as people write them.

use alloc::{format, string::String};
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a time is kept in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// Milliseconds.
    Ms,
    /// Seconds.
    S,
}

const SIZES: [(&str, u64); 4] = [("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10), ("B", 1)];
/// Longest first, and `ms` before `m`, because the first that fits is taken.
const TIMES_MS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1000)];

/// Bytes: `64KB`, `1MB`, `2GB` (powers of 1024), `10B` or `10`.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let factor = match unit {
        "" => 1,
        _ => SIZES.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name) || binary(unit, name))?.1,
    };
    // Too large for any field: the bounds say so.
    Some(number.saturating_mul(factor))
}

/// `MiB` is `MB`: both are powers of 1024 here.
fn binary(unit: &str, name: &str) -> bool {
    unit.len() == 3
        && name.len() == 2
        && unit[..1].eq_ignore_ascii_case(&name[..1])
        && unit[1..].eq_ignore_ascii_case("ib")
}

/// A time: `500ms`, `15s`, `1h30m`, `2d`; `0` needs no unit. Rounded up to the clock.
pub(super) fn duration(text: &str, clock: Clock) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total_ms) = (text, 0u64);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let (unit, factor) = TIMES_MS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        total_ms = total_ms.saturating_add(number.saturating_mul(*factor));
        rest = rest[unit.len()..].trim_start();
    }
    Some(match clock {
        Clock::Ms => total_ms,
        Clock::S => total_ms.div_ceil(1000),
    })
}

/// An address with port; a port alone, or `:port`, means loopback. No name is looked up, but `localhost` is known.
pub(super) fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let port = text.strip_prefix("localhost:").or_else(|| text.strip_prefix(':')).unwrap_or(text);
    // `u16` would also parse `+1883`.
    if !port.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?))
}

/// The largest unit that leaves no rest.
pub(super) fn show_size(bytes: u64) -> String {
    let (name, factor) =
        SIZES.into_iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)).unwrap_or(("B", 1));
    format!("{}{name}", bytes / factor)
}

/// The largest unit that leaves no rest.
pub(super) fn show_duration(time: u64, clock: Clock) -> String {
    let ms = match clock {
        Clock::Ms => u128::from(time),
        Clock::S => u128::from(time) * 1000,
    };
    let fits = |name: &str, factor: u64| ms > 0 && ms.is_multiple_of(u128::from(factor)) && name != "w";
    let best = TIMES_MS.into_iter().filter(|(name, factor)| fits(name, *factor)).max_by_key(|(_, factor)| *factor);
    let (name, factor) = best.unwrap_or(("s", 1000));
    format!("{}{name}", ms / u128::from(factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("10", 10),
            ("10B", 10),
            ("64KB", 65_536),
            ("64kb", 65_536),
            ("1 MB", 1 << 20),
            ("1MiB", 1 << 20),
            ("2GB", 2 << 30),
            ("99999999999GB", u64::MAX),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for bad in ["", "MB", "1XB", "-1", "1.5MB", "1MB2", "99999999999999999999999", "1ib", "1Bib", "1éé"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_have_units_and_may_be_sums() {
        for (text, ms) in
            [("0", 0), ("15s", 15_000), ("500ms", 500), ("1h30m", 5_400_000), ("2d", 172_800_000), ("1w", 604_800_000)]
        {
            assert_eq!(duration(text, Clock::Ms), Some(ms), "{text}");
        }
        assert_eq!(duration("1500ms", Clock::S), Some(2), "rounded up");
        for bad in ["", "15", "s", "15 parsecs", "1h30", "-1s", "1.5s", "é"] {
            assert_eq!(duration(bad, Clock::Ms), None, "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [0, 1, 1023, 1024, 1 << 20, (1 << 20) + 1, 3 << 30, u64::MAX] {
            assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
        for time in [0, 1, 999, 1000, 60_000, 90_000, 3_600_000, 86_400_000, 604_800_000] {
            assert_eq!(duration(&show_duration(time, Clock::Ms), Clock::Ms), Some(time));
            assert_eq!(duration(&show_duration(time, Clock::S), Clock::S), Some(time));
        }
        assert_eq!(show_duration(7200, Clock::S), "2h");
        assert_eq!(show_size(1 << 20), "1MB");
    }

    #[test]
    fn a_bare_port_means_loopback() {
        for (text, address_text) in [
            ("1883", "127.0.0.1:1883"),
            (":1883", "127.0.0.1:1883"),
            ("localhost:0", "127.0.0.1:0"),
            ("0.0.0.0:1883", "0.0.0.0:1883"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(address(text).map(|address| address.to_string()).as_deref(), Some(address_text));
        }
        for bad in ["", "65536", "+1", "example.org:1", "1.2.3:4", "::1:1883x", "127.0.0.1"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
