//! Leaving out a test that this machine cannot run. Called at the top of such tests.
//!
//! Always true: a skip is visible even when the test runner swallows output, and impossible when `CI=true`.

use std::io::Write;

/// Says on the real standard error why a test is left out; panics when `CI=true`.
///
/// The test runner captures `eprintln!` of passing tests, so the line is written around it: a machine that
/// silently tests half is worse than one that fails.
#[track_caller]
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} would be skipped, and CI=true forbids that: {why}");
    let line = format!("skipped {test}: {why}\n");
    // A closed standard error must not turn a skip into a failure.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Returns from the test unless every named program is on the `PATH`.
#[macro_export]
macro_rules! needs {
    ($($program:literal),+ $(,)?) => {
        $(
            if $crate::program::find($program).is_none() {
                $crate::skip::skip(concat!("`", $program, "` is not installed"));
                return;
            }
        )+
    };
}

/// Returns from the test when a foreign broker stands in the place of the node.
#[macro_export]
macro_rules! needs_own_broker {
    () => {
        if $crate::foreign::executable().is_some() {
            $crate::skip::note(concat!("a foreign broker has nothing of this (", module_path!(), ")"));
            return;
        }
    };
}

/// Says that a test does not apply to the foreign broker; never a failure, because that run only checks
/// the tests.
pub fn note(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = std::io::stderr().write_all(format!("left out {test}: {why}\n").as_bytes());
}
