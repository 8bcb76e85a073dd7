use proptest::prelude::*;

use super::*;
use crate::types::MemoryId;

fn hash(n: u8) -> MemoryHash {
    MemoryHash([n; 16])
}

fn relation(name: &str) -> Relation {
    Relation::new(name).expect("a valid relation")
}

/// Golden bytes: a change here would lose every stored record.
#[test]
fn key_bytes_are_frozen() {
    let p = PartitionId(0x0102);
    let p_bytes = [0, 0, 0, 0, 0, 0, 1, 2];
    let with = |head: &[u8], tail: &[u8]| [head, &p_bytes, tail].concat();
    assert_eq!(state(p), with(&[2], &[0]));
    assert_eq!(generation(p, 3), with(&[2], &[1, 0, 0, 0, 0, 0, 0, 0, 3]));
    assert_eq!(death(p, 4), with(&[2], &[2, 0, 0, 0, 0, 0, 0, 0, 4]));
    assert_eq!(
        client(p, ClientId([7; 16])),
        with(&[2], &[[3].as_slice(), &[7; 16]].concat())
    );
    let counter = [0, 0, 0, 0, 0, 0, 0, 9];
    assert_eq!(
        request(p, ClientId([7; 16]), 9),
        with(&[2], &[[4].as_slice(), &[7; 16], &counter].concat())
    );
    assert_eq!(
        mark(p, MarkId(9)),
        with(&[2], &[[5].as_slice(), &counter].concat())
    );
    assert_eq!(adopted(p), with(&[2], &[6]));
    assert_eq!(installing(p), with(&[2], &[7]));
    assert_eq!(memory(p, hash(5)), with(&[], &[5; 16]));
    assert_eq!(vector(p, 9), with(&[], &counter));
    let key = EdgeKey {
        from: hash(1),
        to: hash(2),
        relation: relation("is"),
    };
    assert_eq!(
        edge(p, &key),
        with(
            &[],
            &[[0].as_slice(), &[1; 16], &[2; 16], b"is".as_slice()].concat()
        )
    );
    assert_eq!(
        reverse_edge(p, &key),
        with(
            &[],
            &[[1].as_slice(), &[2; 16], &[1; 16], b"is".as_slice()].concat()
        )
    );
    let dot = OverlayDot {
        actor: ActorId([8; 16]),
        n: 9,
    };
    assert_eq!(
        overlay(p, dot),
        with(&[], &[[2].as_slice(), &[8; 16], &counter].concat())
    );
    assert_eq!(
        source_removals(p, hash(1)),
        with(&[], &[[3].as_slice(), &[1; 16]].concat())
    );
}

#[test]
fn ranges_hold_their_partition_only() {
    let [mine, other] = [PartitionId(u64::MAX), PartitionId(u64::MAX - 1)];
    let range = partition_metadata(mine);
    assert!(range.contains(&state(mine)) && range.contains(&mark(mine, MarkId(u64::MAX))));
    assert!(!range.contains(&state(other)));
    let records = partition_records(mine);
    assert!(records.contains(&vector(mine, u64::MAX)) && !records.contains(&vector(other, 0)));
    assert!(!overlays(mine).contains(&source_removals(mine, hash(0))));
}

#[test]
fn a_range_continues_behind_a_key() {
    let p = PartitionId(1);
    let range = out_edges(p, hash(1)).after(&edge(
        p,
        &EdgeKey {
            from: hash(1),
            to: hash(2),
            relation: relation("a"),
        },
    ));
    let at = |name: &str| {
        edge(
            p,
            &EdgeKey {
                from: hash(1),
                to: hash(2),
                relation: relation(name),
            },
        )
    };
    assert!(!range.contains(&at("a")) && range.contains(&at("aa")) && range.contains(&at("b")));
}

#[test]
fn foreign_bytes_are_no_record() {
    assert_eq!(decode::<u64>(&[]), Err(BadRecord::Empty));
    assert_eq!(decode::<u64>(&[2, 0]), Err(BadRecord::Version { found: 2 }));
    assert!(matches!(
        decode::<u64>(&[1]),
        Err(BadRecord::Malformed { .. })
    ));
    assert!(matches!(
        decode::<u64>(&[1, 0, 0]),
        Err(BadRecord::Malformed { .. })
    ));
}

proptest! {
    #[test]
    fn keys_parse_back(p: u64, a: [u8; 16], b: [u8; 16], n: u64, name in ".{1,30}") {
        let partition = PartitionId(p);
        let Some(relation) = Relation::new(&name) else { return Ok(()) };
        let key = EdgeKey { from: MemoryHash(a), to: MemoryHash(b), relation };
        prop_assert_eq!(parse_edge(&edge(partition, &key)), Some(key.clone()));
        prop_assert_eq!(parse_reverse_edge(&reverse_edge(partition, &key)), Some(key.clone()));
        prop_assert_eq!(parse_edge(&reverse_edge(partition, &key)), None);
        prop_assert_eq!(parse_number(&vector(partition, n)), Some(n));
        prop_assert_eq!(parse_hash(&memory(partition, MemoryHash(a))), Some(MemoryHash(a)));
        prop_assert_eq!(parse_client(&client(partition, ClientId(b))), Some(ClientId(b)));
        prop_assert_eq!(parse_request(&request(partition, ClientId(b), 7)), Some(ClientId(b)));
        let dot = OverlayDot { actor: ActorId(a), n };
        prop_assert_eq!(parse_overlay(&overlay(partition, dot)), Some(dot));
        prop_assert_eq!(parse_partition(&state(partition)), Some(partition));
        prop_assert_eq!(parse_partition(&memory(partition, MemoryHash(a))).is_some(), p >> 56 == 2);
    }

    #[test]
    fn values_decode_back(id in ".{1,40}", n: u64) {
        let Ok(id) = MemoryId::new(id) else { return Ok(()) };
        let record = (id, n);
        prop_assert_eq!(decode::<(MemoryId, u64)>(&encode(&record)), Ok(record));
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes: Vec<u8>) {
        let _ = decode::<crate::types::Memory>(&bytes);
        let _ = (parse_edge(&bytes), parse_overlay(&bytes), parse_partition(&bytes));
    }
}
