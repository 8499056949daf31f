//! Client ids by the shard that they live on. Called by every test that crosses shards.
//!
//! Always true: this is the published rule, computed here from the hash function alone, so a node that
//! deals client ids in another way is found by the counters of its hand-overs.

use xxhash_rust::xxh3::xxh3_64;

/// Number of partitions that client ids, topics and groups hash to.
const PARTITIONS: u64 = 1024;

/// The home shard of a client id: its partition, dealt over the shards.
pub fn home_shard(client_id: &str, shards: u16) -> u16 {
    let partition = xxh3_64(client_id.as_bytes()) % PARTITIONS;
    u16::try_from(partition % u64::from(shards)).expect("a shard index is below a u16")
}

/// A client id that begins with `name` and lives on `shard` of a node with `shards` shards.
pub fn client_on(shard: u16, shards: u16, name: &str) -> String {
    assert!(shard < shards, "shard {shard} of {shards} does not exist");
    (0..)
        .map(|attempt| format!("{name}-{attempt}"))
        .find(|id| home_shard(id, shards) == shard)
        .expect("every shard owns partitions")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_found_for_every_shard() {
        for shards in 1..=5 {
            for shard in 0..shards {
                let id = client_on(shard, shards, "sub");
                assert_eq!(home_shard(&id, shards), shard);
            }
        }
    }

    #[test]
    fn the_hash_is_xxh3_with_seed_zero() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
    }
}
