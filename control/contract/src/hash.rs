//! The stable hash that decides placement: the same on every node, CPU, build and version.
//! What it places (home shards, partitions, streams) is part of the wire format; tables in memory use ahash instead.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::ids::ShardId;

/// Fixed slices of the space of topics, client ids and shared groups. Part of the wire format.
pub const PARTITIONS: u16 = 1024;

const _: () = assert!(PARTITIONS.is_power_of_two(), "a partition is the low bits of a hash");

/// XXH3-64 with seed 0.
#[inline]
pub fn stable(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The partition that a client id's session and directory entry belong to.
#[inline]
pub fn partition_of_client(client_id: &str) -> u16 {
    partition(stable(client_id.as_bytes()))
}

/// The partition that a topic's retained value belongs to.
#[inline]
pub fn partition_of_topic(topic: &str) -> u16 {
    partition(stable(topic.as_bytes()))
}

/// The partition that decides whose turn it is in a shared group: the hash of `group/filter`.
/// A group has no `/`, so no two pairs have the same text.
#[inline]
pub fn partition_of_group(group: &str, filter: &str) -> u16 {
    let mut hash = Xxh3::new();
    hash.update(group.as_bytes());
    hash.update(b"/");
    hash.update(filter.as_bytes());
    partition(hash.digest())
}

/// The shard of a node with `shards` shards that decides for `partition`.
#[inline]
pub fn owner_shard(partition: u16, shards: u16) -> ShardId {
    ShardId(partition % shards.max(1))
}

#[inline]
fn partition(hash: u64) -> u16 {
    (hash % u64::from(PARTITIONS)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    #[test]
    fn the_hash_is_xxh3_64_with_seed_0() {
        for (text, hash) in VECTORS {
            assert_eq!(stable(text.as_bytes()), *hash, "{text:?}");
        }
    }

    #[test]
    fn partitions_are_the_low_ten_bits() {
        for (text, hash) in VECTORS {
            assert_eq!(u64::from(partition_of_client(text)), hash & 1023, "{text:?}");
            assert_eq!(partition_of_topic(text), partition_of_client(text));
        }
    }

    #[test]
    fn a_group_is_hashed_as_group_slash_filter() {
        for (group, filter) in [("g", "a/+"), ("workers", "#"), ("é", "sensors/+/temperature/with/a/longer/path/#")] {
            assert_eq!(partition_of_group(group, filter), partition_of_topic(&format!("{group}/{filter}")));
        }
        assert_eq!(partition_of_group("g", "a/+"), 486);
    }

    #[test]
    fn every_shard_owns_its_fair_share_of_partitions() {
        for shards in [1u16, 2, 3, 7, 64] {
            let mut owned = vec![0u32; usize::from(shards)];
            for partition in 0..PARTITIONS {
                owned[owner_shard(partition, shards).index()] += 1;
            }
            let (least, most) = (owned.iter().min().unwrap(), owned.iter().max().unwrap());
            assert!(most - least <= 1, "{shards} shards own {least} to {most} partitions");
        }
        assert_eq!(owner_shard(5, 0), ShardId(0));
        assert_eq!(owner_shard(partition_of_client("client-0"), 3), ShardId(0));
        assert_eq!(owner_shard(partition_of_client("client-1"), 3), ShardId(2));
    }

    /// Made with another implementation: the reference one in C. The lengths cross each of its code paths.
    const VECTORS: &[(&str, u64)] = &[
        ("", 0x2d06_8005_38d3_94c2),
        ("a", 0xe6c6_32b6_1e96_4e1f),
        ("abc", 0x78af_5f94_892f_3950),
        ("$SYS", 0x5978_f041_bd2f_2ef9),
        ("ringmq", 0x081b_2219_f77d_1239),
        ("client-0", 0x33b4_e191_2be6_4d62),
        ("client-1", 0x0b97_0b85_a12b_176e),
        ("sensors/1/temperature", 0x420e_8a86_7b97_a30d),
        ("eu-west/plant/7/line/3/motor/temperature", 0x936f_1804_292d_a3e7),
        ("€/漢字", 0x697b_ec45_877e_8800),
        (X300.split_at(200).0, 0x50ef_124f_b1e4_de53),
        (X300, 0xa5d1_b460_7dc8_3554),
    ];

    const X300: &str = match core::str::from_utf8(&[b'x'; 300]) {
        Ok(text) => text,
        Err(_) => "",
    };
}
