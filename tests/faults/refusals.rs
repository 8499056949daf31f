//! Starts that must fail, each with a line that says what is taken or missing.

use crate::setup;
use harness::raw::Raw;
use harness::wire::{Connect, V5};
use harness::{SHORT, program, skip};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

#[test]
fn a_second_start_on_the_same_mqtt_port_names_the_address() {
    let first = setup().shards(2).start();
    let ended = setup().shards(2).mqtt(first.mqtt()).refused(SHORT);
    assert_ne!(ended.code, Some(0));
    assert!(ended.said.contains(&first.mqtt().to_string()), "{}", ended.said);
    Raw::connect(first.mqtt(), &Connect::new(V5, "")).ping();
}

#[test]
fn a_second_start_on_the_same_http_port_names_the_address() {
    let first = setup().start();
    let ended = setup().http(first.http()).refused(SHORT);
    assert_ne!(ended.code, Some(0));
    assert!(ended.said.contains(&first.http().to_string()), "{}", ended.said);
    first.get("/status").expect("HTTP of the first node still answers");
}

#[test]
fn a_second_start_in_the_same_directory_names_the_directory() {
    let first = setup().start();
    let ended = setup().data_directory(first.data()).refused(SHORT);
    assert_ne!(ended.code, Some(0));
    let directory = first.data().display().to_string();
    assert!(ended.said.contains(&directory), "{}", ended.said);
    assert!(first.ready_now().is_some(), "the first node's ready.json is left alone");
    Raw::connect(first.mqtt(), &Connect::new(V5, "")).ping();
}

#[test]
fn a_port_that_another_program_holds_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let address = taken.local_addr().expect("it is bound");
    let ended = setup().mqtt(address).refused(SHORT);
    assert_ne!(ended.code, Some(0));
    assert!(ended.said.contains(&address.to_string()), "{}", ended.said);
}

/// Compiles the little program that denies io_uring to what it starts; `None` where that cannot be.
fn deny_io_uring() -> Option<(tempfile::TempDir, PathBuf)> {
    let compiler = program::find("cc")?;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = directory.path().join("deny.c");
    std::fs::write(&source, include_str!("deny_io_uring.c")).expect("the directory is writable");
    let executable = directory.path().join("deny");
    let built = Command::new(compiler)
        .args(["-O1", "-o"])
        .args([&executable, &source])
        .output()
        .is_ok_and(|output| output.status.success());
    // Where even this process may not set a filter, there is nothing to test with.
    let usable = built && Command::new(&executable).args(["38", "true"]).status().is_ok_and(|status| status.success());
    usable.then_some((directory, executable))
}

#[test]
fn without_io_uring_the_node_says_what_is_missing_and_exits_with_78() {
    let Some((_directory, deny)) = deny_io_uring() else {
        skip::skip("a seccomp filter cannot be built or set here");
        return;
    };
    // EPERM is what containers answer, ENOSYS what an old kernel does.
    for (errno, words) in [("1", &["seccomp", "sysctl"][..]), ("38", &["kernel", "seccomp"])] {
        let wrapper = [deny.display().to_string(), errno.to_owned()];
        let ended = setup().under(wrapper).refused(SHORT);
        assert_eq!(ended.code, Some(78), "errno {errno}: {}", ended.said);
        assert!(ended.said.contains("io_uring"), "errno {errno}: {}", ended.said);
        assert!(words.iter().any(|word| ended.said.contains(word)), "errno {errno}, one of {words:?}: {}", ended.said);
        assert!(!ended.said.contains("panicked"), "{}", ended.said);
    }
}
