//! Bits turned and files cut in what a run left behind: harmless, repaired with a count, or refused; never silent.

use std::collections::BTreeSet;

use log::disk::VirtualDisk;
use log::{Boot, Event, Refusal};

use crate::model::{Replay, recover};
use crate::world::World;

/// Damages tried on what one run left.
const DAMAGES: u64 = 12;

pub fn damage(world: &mut World) -> Result<(), String> {
    // After a stop and a boot, or on the same boot: what is known to be flushed differs.
    let boot = if world.chance.once_in(2) { world.boot } else { Boot([252; 16]) };
    let (sound, whole) = recover(&world.disk, boot);
    let (_, sound) = sound.map_err(|refusal| format!("refused without damage: {refusal}"))?;
    for _ in 0..DAMAGES {
        let mut disk = world.disk.clone();
        let found = disk.found();
        let victim = &found[world.chance.below(found.len() as u64) as usize];
        let cut = world.chance.once_in(4);
        let offset = match world.chance.below(3) {
            0 => world.chance.below(220.min(victim.bytes)),
            1 => world.chance.below(1500.min(victim.bytes)),
            _ => world.chance.below(victim.bytes),
        };
        if cut {
            disk.truncate(victim.file, offset as usize);
        } else {
            disk.flip(victim.file, offset as usize, world.chance.next() as u8);
        }
        let what = format!("{:08}.log {} at {offset}", victim.file, if cut { "cut" } else { "turned" });
        let (outcome, replay) = recover(&disk, boot);
        match outcome {
            Ok((_, report)) => {
                replay.judge(&world.history).map_err(|why| format!("{what}: {why}"))?;
                let counted = report.torn_bytes > sound.torn_bytes
                    || report.torn_entries_discarded > sound.torn_entries_discarded
                    || report.incomplete_epochs > sound.incomplete_epochs;
                if replay.last() < whole.last() {
                    if !counted {
                        return Err(format!("{what}: lost without a word, {} of {}", replay.last(), whole.last()));
                    }
                    if known(world, boot) && replay.last() < world.last_commit {
                        return Err(format!("{what}: more lost than the last write, {}", replay.last()));
                    }
                }
                world.coverage.saw("damage harmless", u64::from(replay.last() == whole.last()));
                world.coverage.saw("damage repaired", u64::from(replay.last() < whole.last()));
                world.coverage.saw("damage ignored before the checkpoint", report.damaged_ignored);
                world.coverage.saw("headers repaired", report.headers_repaired);
            }
            Err(refusal) => {
                world.coverage.saw("damage refused", 1);
                match refusal {
                    Refusal::Damaged { file, offset: at } => {
                        if file != victim.file || at > offset {
                            return Err(format!("{what}: refused elsewhere: {refusal}"));
                        }
                    }
                    other => return Err(format!("{what}: refused as {other}")),
                }
            }
        }
        salvaged(world, boot, &disk, &whole, cut, &what)?;
    }
    Ok(())
}

/// False if what was written since the last flush, which may be much in the mode `os`, may be torn for all we know.
fn known(world: &World, boot: Boot) -> bool {
    world.settings.sync || boot == world.boot
}

/// Whatever was damaged, every other entry is saved: of the sound ones, at most the damaged one is missing. Where nothing
/// is missing, what the last checkpoint replaced is left out, and the rest is a whole state.
fn salvaged(
    world: &World,
    boot: Boot,
    disk: &VirtualDisk,
    whole: &Replay,
    cut: bool,
    what: &str,
) -> Result<(), String> {
    let mut saved = Replay::default();
    let read = |file| Ok::<_, ()>(disk.read(file).expect("a file that was found").to_vec());
    let each = &mut |body: &[u8]| saved.event(Event::Entry(body));
    let counts = log::salvage(&disk.found(), boot, read, each).expect("reading does not fail");
    // What was never known to be flushed is not told from what a crash left behind.
    if cut || !known(world, boot) {
        return Ok(());
    }
    if counts.gaps == 0 {
        saved.judge(&world.history).map_err(|why| format!("{what}: saved without a gap, but {why}"))?;
        return match whole.last() - saved.last() {
            0 | 1 => Ok(()),
            lost => Err(format!("{what}: {lost} entries were not saved: {counts:?}")),
        };
    }
    let saved: BTreeSet<(u64, u64)> = saved.batches.into_iter().collect();
    match whole.batches.iter().filter(|batch| !saved.contains(batch)).count() {
        0 | 1 => Ok(()),
        lost => Err(format!("{what}: {lost} entries were not saved: {counts:?}")),
    }
}
