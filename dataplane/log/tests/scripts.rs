//! What a log asks for, step by step.

use log::disk::VirtualDisk;
use log::{Boot, Event, Failure, Found, HEADER_BYTES, Log, Mark, Op, Refusal, Room, Settings, Tail};

const OLD: Boot = Boot([1; 16]);
const NEW: Boot = Boot([2; 16]);

fn settings(sync: bool) -> Settings {
    Settings {
        shard: 0,
        shards: 1,
        sync,
        segment_bytes: 8192,
        bytes_max: 0,
        write_bytes_max: 1 << 20,
        sync_interval_us: 1_000_000,
        boot: OLD,
        seed: 7,
        plant: None,
    }
}

/// Does all that the log wants at this time; yields the names of the operations.
fn work(log: &mut Log, disk: &mut VirtualDisk, now_us: u64) -> String {
    let mut names = Vec::new();
    while let Some(op) = log.next(now_us) {
        names.push(match op {
            Op::Create { .. } => "create",
            Op::Fill { .. } => "fill",
            Op::Publish { .. } => "publish",
            Op::Write { .. } => "write",
            Op::Sync { .. } => "sync",
            Op::Remove { .. } => "remove",
        });
        let result = disk.apply(&op);
        log.completed(result, now_us);
    }
    names.join(" ")
}

/// A log with one spare, at rest.
fn ready(sync: bool) -> (Log, VirtualDisk) {
    let (mut log, mut disk) = (Log::new(settings(sync), Tail::fresh(), 0), VirtualDisk::new());
    assert_eq!(work(&mut log, &mut disk, 0), "create fill publish");
    (log, disk)
}

fn fail(log: &mut Log, now_us: u64, failure: Failure) {
    assert!(log.next(now_us).is_some(), "there is an operation to fail");
    log.completed(Err(failure), now_us);
}

fn recover(disk: &VirtualDisk, boot: Boot) -> Result<(Tail, log::Report, Vec<Vec<u8>>), Refusal> {
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    let read = |file| Ok::<_, ()>(disk.read(file).unwrap_or_default().to_vec());
    let each = &mut |event: Event<'_>| match event {
        Event::Reset => bodies.clear(),
        Event::Entry(body) => bodies.push(body.to_vec()),
    };
    let (tail, report) = log::recover(&disk.found(), boot, read, each).expect("reading does not fail")?;
    Ok((tail, report, bodies))
}

#[test]
fn all_that_waits_goes_out_in_one_write_and_one_flush() {
    let (mut log, mut disk) = ready(true);
    for batch in 1..=3 {
        log.append(batch, vec![batch as u8; 10], Mark::None);
    }
    let write = log.next(0);
    assert!(matches!(write, Some(Op::Write { offset: 0, .. })), "{write:?}");
    assert_eq!(disk.apply(&write.expect("a write")), Ok(()));
    assert!(log.next(0).is_none(), "one operation at a time");
    log.append(4, vec![4], Mark::None);
    log.completed(Ok(()), 0);
    assert_eq!(log.status().durable, 0);
    let sync = log.next(0).expect("a flush");
    assert!(matches!(sync, Op::Sync { .. }), "{sync:?}");
    log.completed(Ok(()), 0);
    assert_eq!(log.status().durable, 3, "the fourth came after the write began");
    assert_eq!(work(&mut log, &mut disk, 0), "create write sync fill publish");
    assert_eq!((log.status().durable, log.stats().commit_batches_max), (4, 3));
}

#[test]
fn without_sync_written_is_durable_and_flushed_after_the_interval() {
    let (mut log, mut disk) = ready(false);
    log.append(1, vec![1], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 5), "write create fill publish");
    assert_eq!((log.status().durable, log.deadline_us()), (1, 1_000_005));
    assert_eq!(work(&mut log, &mut disk, 1_000_004), "");
    assert_eq!(work(&mut log, &mut disk, 1_000_005), "sync");
    assert_eq!(log.deadline_us(), u64::MAX);
    log.append(2, vec![1], Mark::None);
    log.close();
    assert_eq!(work(&mut log, &mut disk, 1_000_006), "write sync", "a clean stop flushes");
}

#[test]
fn a_segment_is_begun_only_when_all_before_it_is_flushed() {
    let (mut log, mut disk) = ready(false);
    log.append(1, vec![1; 5000], Mark::None);
    log.append(2, vec![1; 5000], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 0), "write create sync fill publish write create fill publish");
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own_size() {
    let (mut log, mut disk) = ready(true);
    log.append(1, vec![9; 600_000], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 0), "create fill fill fill publish write sync");
    assert_eq!(log.status().durable, 1);
    let (_, _, bodies) = recover(&disk, NEW).expect("sound");
    assert_eq!(bodies, [vec![9; 600_000]]);
}

#[test]
fn a_failed_flush_detaches_until_a_probe_works_and_a_new_epoch_is_complete() {
    let (mut log, mut disk) = ready(true);
    log.append(1, b"old".to_vec(), Mark::None);
    work(&mut log, &mut disk, 0);
    log.append(2, b"lost".to_vec(), Mark::None);
    let write = log.next(0).expect("a write");
    assert_eq!(disk.apply(&write), Ok(()));
    log.completed(Ok(()), 0);
    fail(&mut log, 0, Failure::Other);
    assert_eq!((log.status().room, log.status().detachments), (Room::Detached, 1));
    assert!(log.next(0).is_none());
    assert_eq!(log.deadline_us(), 100_000);
    fail(&mut log, 100_000, Failure::Other);
    assert_eq!(log.deadline_us(), 300_000, "the pause doubles");
    assert_eq!(work(&mut log, &mut disk, 300_000), "remove create fill publish");
    assert_eq!(log.status().room, Room::Ready);

    log.append(3, b"dropped".to_vec(), Mark::None);
    log.append(4, b"all, one".to_vec(), Mark::Resync);
    work(&mut log, &mut disk, 300_000);
    assert_eq!((log.status().durable, log.status().room), (1, Room::Detached));
    let (_, report, bodies) = recover(&disk, OLD).expect("the old epoch counts");
    assert_eq!((report.incomplete_epochs, bodies), (1, vec![b"old".to_vec(), b"lost".to_vec()]));

    log.append(5, b"all, two".to_vec(), Mark::Ends);
    work(&mut log, &mut disk, 300_000);
    assert_eq!((log.status().durable, log.status().room), (5, Room::Plenty));
    let (_, report, bodies) = recover(&disk, OLD).expect("the new epoch counts");
    assert_eq!(report.epoch, 2);
    assert_eq!(bodies, [b"all, one".to_vec(), b"all, two".to_vec(), Vec::new()]);
}

#[test]
fn a_full_disk_is_tight_while_there_is_room_left_and_tried_again_every_second() {
    let (mut log, mut disk) = ready(true);
    disk.capacity = Some(8192);
    log.append(1, vec![1; 4000], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 0), "write sync create fill remove");
    assert_eq!((log.status().room, log.status().durable), (Room::Tight, 1));
    assert!(log.next(999_999).is_none());
    assert_eq!(log.deadline_us(), 1_000_000);
    log.append(2, vec![1; 3000], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 999_999), "write sync", "what is small still fits");
    disk.capacity = None;
    assert_eq!(work(&mut log, &mut disk, 1_000_000), "create fill publish");
    assert_eq!(log.status().room, Room::Plenty);
}

#[test]
fn a_checkpoint_frees_the_segments_before_it_for_use_again() {
    let (mut log, mut disk) = ready(true);
    for batch in 1..=6 {
        log.append(batch, vec![1; 5000], Mark::None);
        work(&mut log, &mut disk, 0);
    }
    assert_eq!(log.status().segments, 6);
    log.append(7, b"all, one".to_vec(), Mark::Begins);
    log.append(8, b"all, two".to_vec(), Mark::Ends);
    work(&mut log, &mut disk, 0);
    assert_eq!((log.status().segments, log.stats().checkpoints), (1, 1));
    let created = log.stats().files_created;
    for batch in 9..=13 {
        log.append(batch, vec![1; 5000], Mark::None);
        work(&mut log, &mut disk, 0);
    }
    assert_eq!(log.stats().files_created, created);
    let (tail, _, bodies) = recover(&disk, NEW).expect("sound");
    assert_eq!(tail.next_sequence, 15, "13 batches and the entry that proves the checkpoint");
    assert!(bodies.contains(&b"all, two".to_vec()));
}

#[test]
fn a_restart_flushes_what_it_found_before_anyone_relies_on_it() {
    let (mut log, mut disk) = ready(false);
    log.append(1, b"written".to_vec(), Mark::None);
    work(&mut log, &mut disk, 0);
    disk.kill();
    let (tail, _, bodies) = recover(&disk, OLD).expect("sound");
    assert_eq!(bodies, [b"written".to_vec()]);
    let mut log = Log::new(settings(false), tail, 0);
    assert!(!log.status().recovered);
    assert!(work(&mut log, &mut disk, 0).starts_with("sync"));
    assert!(log.status().recovered);
    disk.power_loss(3);
    assert_eq!(recover(&disk, NEW).expect("sound").2, bodies);
}

#[test]
fn a_process_that_dies_again_and_again_takes_no_further_segment() {
    let (mut log, mut disk) = ready(true);
    log.append(1, vec![0], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 0), "write sync create fill publish");
    for life in 1..=20 {
        disk.kill();
        let (tail, _, bodies) = recover(&disk, OLD).expect("nothing is damaged");
        assert_eq!(bodies.len(), life);
        let mut log = Log::new(settings(true), tail, 0);
        log.append(1, vec![life as u8], Mark::None);
        assert_eq!(work(&mut log, &mut disk, 0), "sync write sync");
    }
    let (tail, ..) = recover(&disk, NEW).expect("nothing is damaged");
    assert_eq!(tail.resume, None, "the power may have taken a part of what was not flushed");
}

#[test]
fn the_beginning_of_an_entry_is_wiped_and_flushed_before_another_is_written_over_it() {
    let (mut log, mut disk) = ready(true);
    log.append(1, vec![1], Mark::None);
    work(&mut log, &mut disk, 0);
    log.append(2, vec![2; 1000], Mark::None);
    disk.tear(&log.next(0).expect("a write"), 2);
    disk.kill();
    let (tail, report, bodies) = recover(&disk, OLD).expect("a torn tail is no damage");
    assert!(report.torn_bytes > 40 && bodies.len() == 1, "{report:?}");
    let mut log = Log::new(settings(true), tail, 0);
    log.append(1, vec![3], Mark::None);
    assert_eq!(work(&mut log, &mut disk, 0), "fill sync write sync");
    let (_, _, bodies) = recover(&disk, OLD).expect("nothing is damaged");
    assert_eq!(bodies, [vec![1], vec![3]]);
}

#[test]
fn a_new_log_that_failed_before_its_first_flush_and_lost_power_is_a_new_log() {
    let (mut log, mut disk) = ready(true);
    log.append(1, b"never flushed".to_vec(), Mark::None);
    assert!(matches!(log.next(0), Some(Op::Write { .. })));
    log.completed(Err(Failure::Other), 0);
    work(&mut log, &mut disk, 100_000);
    log.append(2, b"half".to_vec(), Mark::Resync);
    work(&mut log, &mut disk, 100_000);
    disk.power_loss(1);
    let (tail, report, bodies) = recover(&disk, NEW).expect("nothing is missing");
    assert_eq!((tail.next_sequence, report.incomplete_epochs, bodies), (1, 1, Vec::<Vec<u8>>::new()));
}

#[test]
fn what_was_found_and_could_not_be_flushed_is_not_relied_upon_before_a_new_epoch_replaced_it() {
    let (mut log, mut disk) = ready(false);
    log.append(1, b"written".to_vec(), Mark::None);
    work(&mut log, &mut disk, 0);
    let (tail, _, _) = recover(&disk, OLD).expect("sound");
    let mut log = Log::new(settings(true), tail, 0);
    fail(&mut log, 0, Failure::Other);
    work(&mut log, &mut disk, 100_000);
    assert_eq!((log.status().room, log.status().recovered), (Room::Ready, false));
    log.append(1, b"all, one".to_vec(), Mark::Resync);
    log.append(2, b"all, two".to_vec(), Mark::Ends);
    work(&mut log, &mut disk, 100_000);
    assert_eq!((log.status().durable, log.status().recovered), (2, true));
}

/// Three entries, each flushed.
fn three() -> VirtualDisk {
    let (mut log, mut disk) = ready(true);
    for batch in 1..=3 {
        log.append(batch, vec![batch as u8; 16], Mark::None);
        work(&mut log, &mut disk, 0);
    }
    disk
}

#[test]
fn damage_in_the_middle_is_refused_with_its_place_and_the_rest_can_be_saved() {
    let mut disk = three();
    disk.flip(1, HEADER_BYTES + 56 + 45, 3);
    let refusal = recover(&disk, NEW).expect_err("entry 2 is damaged");
    assert_eq!(refusal.to_string(), "00000001.log is damaged at byte 248");
    let mut saved = Vec::new();
    let read = |file| Ok::<_, ()>(disk.read(file).unwrap_or_default().to_vec());
    let salvaged = log::salvage(&disk.found(), NEW, read, &mut |body| saved.push(body[0]));
    let salvaged = salvaged.expect("reading does not fail");
    assert_eq!((saved, salvaged.gaps, salvaged.entries_lost), (vec![1, 3], 1, 1));
}

#[test]
fn damage_at_the_end_is_a_torn_tail_and_counted() {
    let mut disk = three();
    disk.flip(1, HEADER_BYTES + 2 * 56 + 45, 3);
    let (tail, report, bodies) = recover(&disk, OLD).expect("a torn tail");
    assert_eq!((tail.next_sequence, report.torn_bytes, bodies.len()), (3, 56, 2));
    assert_eq!(report.to_string(), "2 entries, 112 bytes in 1 segments of epoch 1, 56 bytes of a torn tail cut off");
}

#[test]
fn files_that_are_cut_copied_newer_or_gone_are_refused_by_name() {
    let mut disk = three();
    disk.truncate(1, 300);
    assert_eq!(recover(&disk, NEW).expect_err("cut"), Refusal::Damaged { file: 1, offset: 300 });
    disk.truncate(1, 20);
    assert_eq!(recover(&disk, NEW).expect_err("cut"), Refusal::Damaged { file: 1, offset: 20 });

    let found = three().found();
    let copy = Found { file: 9, ..found[0].clone() };
    let twice = log::plan(&[found[0].clone(), copy]).expect_err("a copy");
    assert_eq!(twice.to_string(), "00000001.log and 00000009.log are the same segment: one of them is a copy");

    let (mut log, mut disk) = ready(true);
    for batch in 1..=3 {
        log.append(batch, vec![1; 5000], Mark::None);
        work(&mut log, &mut disk, 0);
    }
    disk.delete(1);
    let gone = recover(&disk, NEW).expect_err("the first segment is gone");
    assert_eq!(gone, Refusal::Missing { file: 2, index: 2, begin: 1, first: 2 });
}
