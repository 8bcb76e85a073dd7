//! Round trips of every command and answer, and the refusals.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

fn arb_id() -> impl Strategy<Value = MemoryId> {
    "[a-zA-Z{}:é]{1,20}".prop_map(|text| MemoryId::new(text).unwrap())
}

fn arb_relation() -> impl Strategy<Value = Relation> {
    "[a-z_]{1,12}".prop_map(|text| Relation::new(&text).unwrap())
}

fn arb_unit() -> impl Strategy<Value = Unit> {
    (0..=Unit::ONE.bits()).prop_map(|bits| Unit::from_bits(bits).unwrap())
}

fn arb_dot() -> impl Strategy<Value = OverlayDot> {
    (0u8..4, 1u64..40).prop_map(|(actor, n)| OverlayDot {
        actor: ActorId([actor; 16]),
        n,
    })
}

fn arb_context() -> impl Strategy<Value = EdgeContext> {
    (any::<u64>(), vec(arb_dot(), 0..4), vec(arb_dot(), 0..6)).prop_map(
        |(sequence, floors, above)| {
            let floors = floors.into_iter().map(|dot| (dot.actor, dot.n));
            EdgeContext {
                sequence: Sequence(sequence),
                overlay: OverlayContext::from_parts(floors, above),
            }
        },
    )
}

fn arb_expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        Just(Expected::Anything),
        Just(Expected::Absent),
        any::<u64>().prop_map(|version| Expected::Version(Sequence(version))),
    ]
}

fn arb_property() -> impl Strategy<Value = PropertyValue> {
    prop_oneof![
        ".{0,12}".prop_map(PropertyValue::Text),
        (-1e300..1e300).prop_map(PropertyValue::Number),
        any::<bool>().prop_map(PropertyValue::Boolean),
        vec(".{0,6}", 0..4).prop_map(PropertyValue::List),
    ]
}

fn arb_out_edge() -> impl Strategy<Value = OutEdge> {
    (arb_id(), arb_relation(), arb_unit(), arb_unit()).prop_map(
        |(to, relation, weight, confidence)| OutEdge {
            to,
            relation,
            weight,
            confidence,
        },
    )
}

fn arb_remember() -> impl Strategy<Value = Remember> {
    let embedding = vec(-1e30f32..1e30, 1..9).prop_map(|c| Embedding::from_log(c).unwrap());
    (
        (arb_id(), ".{0,20}", option::of(embedding), ".{0,6}"),
        btree_set(".{1,5}", 0..4),
        btree_map(".{0,5}", arb_property(), 0..4),
        (arb_unit(), vec(arb_out_edge(), 0..4), arb_expected()),
    )
        .prop_map(
            |(head, labels, properties, (confidence, edges, expected))| {
                let (id, content, embedding, embedding_model) = head;
                Remember {
                    id,
                    content,
                    embedding,
                    embedding_model,
                    labels,
                    properties,
                    confidence,
                    edges,
                    expected,
                }
            },
        )
}

fn arb_op() -> impl Strategy<Value = Op> {
    let forget = (arb_id(), arb_expected(), arb_context(), any::<bool>()).prop_map(
        |(id, expected, context, purge)| {
            Op::Forget(Forget {
                id,
                expected,
                context,
                purge,
            })
        },
    );
    let associate = (arb_id(), arb_out_edge()).prop_map(|(from, edge)| {
        let OutEdge {
            to,
            relation,
            weight,
            confidence,
        } = edge;
        Op::Associate(Associate {
            from,
            to,
            relation,
            weight,
            confidence,
        })
    });
    let dissociate = (arb_id(), arb_id(), arb_relation(), arb_context()).prop_map(
        |(from, to, relation, context)| {
            Op::Dissociate(Dissociate {
                from,
                to,
                relation,
                context,
            })
        },
    );
    prop_oneof![
        arb_remember().prop_map(Op::Remember),
        forget,
        associate,
        dissociate
    ]
}

fn arb_write() -> impl Strategy<Value = Write> {
    (
        any::<[u8; 16]>(),
        any::<u64>(),
        any::<bool>(),
        any::<u64>(),
        btree_map(0u32..99, arb_op(), 0..5),
    )
        .prop_map(|(client, counter, retried, stamp, ops)| Write {
            client: ClientId(client),
            counter,
            retried,
            stamp: Hlc(stamp),
            ops: ops.into_iter().collect(),
        })
}

fn arb_delta() -> impl Strategy<Value = OverlayDelta> {
    let change = prop_oneof![
        (arb_unit(), arb_unit())
            .prop_map(|(weight, confidence)| EdgeChange::Contribute { weight, confidence }),
        arb_context().prop_map(|context| EdgeChange::Remove { context }),
    ];
    let request =
        (any::<[u8; 16]>(), any::<u64>(), any::<u32>()).prop_map(|(client, counter, index)| {
            RequestId {
                client: ClientId(client),
                counter,
                index,
            }
        });
    (
        arb_dot(),
        request,
        arb_id(),
        arb_id(),
        arb_relation(),
        (any::<u64>(), any::<bool>()),
        change,
    )
        .prop_map(
            |(dot, request, from, to, relation, (stamp, retried), change)| OverlayDelta {
                dot,
                request,
                from,
                to,
                relation,
                stamp: Hlc(stamp),
                retried,
                change,
            },
        )
}

fn arb_key() -> impl Strategy<Value = EdgeKey> {
    (any::<[u8; 16]>(), any::<[u8; 16]>(), arb_relation()).prop_map(|(from, to, relation)| {
        EdgeKey {
            from: MemoryHash(from),
            to: MemoryHash(to),
            relation,
        }
    })
}

fn arb_config() -> impl Strategy<Value = SpaceConfig> {
    let metric = prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::L2)];
    let decay = prop_oneof![
        Just(Decay::None),
        any::<u64>().prop_map(|half_life_millis| Decay::Exponential { half_life_millis }),
        (any::<u64>(), any::<u32>()).prop_map(|(scale_millis, exponent_thousandths)| {
            Decay::PowerLaw {
                scale_millis,
                exponent_thousandths,
            }
        }),
    ];
    let quantization = prop_oneof![
        Just(Quantization::None),
        Just(Quantization::Int8),
        Just(Quantization::Int8OnDisk),
    ];
    let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>());
    let index = (numbers, quantization).prop_map(
        |((algorithm, m, ef_construction, level_seed), quantization)| IndexParameters {
            algorithm,
            m,
            ef_construction,
            level_seed,
            quantization,
        },
    );
    (
        any::<u64>(),
        ".{0,9}",
        any::<u32>(),
        metric,
        index,
        ".{0,6}",
        decay,
    )
        .prop_map(
            |(space, name, dimension, metric, index, embedding_model, decay)| SpaceConfig {
                space: SpaceId(space),
                name,
                dimension,
                metric,
                index,
                embedding_model,
                decay,
            },
        )
}

fn arb_command() -> impl Strategy<Value = PartitionCommand> {
    let create =
        (arb_config(), 0u16..HASH_SLOTS, 1u16..=HASH_SLOTS).prop_map(|(config, start, n)| {
            let slots = SlotRange {
                start,
                end: (start + n).min(HASH_SLOTS),
            };
            PartitionCommand::Create { config, slots }
        });
    prop_oneof![
        1 => create,
        4 => arb_write().prop_map(PartitionCommand::Write),
        1 => vec(arb_delta(), 0..4).prop_map(|deltas| PartitionCommand::Adopt { deltas }),
        1 => (arb_context(), vec(arb_key(), 0..4))
            .prop_map(|(frontier, edges)| PartitionCommand::Fold { frontier, edges }),
        1 => any::<u64>().prop_map(|mark| PartitionCommand::Mark { mark: MarkId(mark) }),
        1 => Just(PartitionCommand::Renew),
        1 => Just(PartitionCommand::Drop),
    ]
}

fn arb_outcome() -> impl Strategy<Value = OpOutcome> {
    let rejection = prop_oneof![
        (".{0,6}", ".{0,6}")
            .prop_map(|(expected, found)| Rejection::VersionMismatch { expected, found }),
        Just(Rejection::RequestTooOld),
        Just(Rejection::NotInPartition),
        (any::<u32>(), any::<u32>())
            .prop_map(|(expected, actual)| Rejection::WrongDimension { expected, actual }),
        Just(Rejection::HashCollision),
    ];
    prop_oneof![
        (any::<u64>(), any::<bool>()).prop_map(|(version, created)| OpOutcome::Remembered {
            version: Sequence(version),
            created
        }),
        any::<bool>().prop_map(|existed| OpOutcome::Forgotten { existed }),
        Just(OpOutcome::EdgeChanged),
        rejection.prop_map(OpOutcome::Rejected),
    ]
}

proptest! {
    #[test]
    fn commands_survive_the_log(partition in any::<u64>(), command in arb_command()) {
        let bytes = encode_group_command(PartitionId(partition), &command);
        let decoded = decode_group_command(&bytes);
        prop_assert_eq!(decoded, Ok((PartitionId(partition), command)));
    }

    #[test]
    fn answers_survive_the_wire(
        sequence in any::<u64>(),
        outcomes in vec((any::<u32>(), arb_outcome()), 0..6),
    ) {
        let applied = Applied { sequence: Sequence(sequence), outcomes };
        prop_assert_eq!(decode_applied(&encode_applied(&applied)), Ok(applied));
    }

    /// Whatever the disk returns, decoding ends in a value or a typed error.
    #[test]
    fn damaged_entries_never_panic(
        command in arb_command(),
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut bytes = encode_group_command(PartitionId(1), &command).to_vec();
        let at = position.index(bytes.len());
        bytes[at] ^= 1 << bit;
        drop(decode_group_command(&bytes));
    }
}

fn entry_of(command: wire::partition_command::Command) -> Vec<u8> {
    let command = Some(wire::PartitionCommand {
        command: Some(command),
    });
    wire::GroupCommand {
        partition: 1,
        command,
    }
    .encode_to_vec()
}

fn write_of(op: wire::op::Op) -> Vec<u8> {
    entry_of(wire::partition_command::Command::Write(wire::Write {
        client: vec![0; 16].into(),
        ops: vec![wire::Op {
            index: 0,
            op: Some(op),
        }],
        ..Default::default()
    }))
}

fn associate(weight: u64, from: &str, relation: &str) -> wire::op::Op {
    wire::op::Op::Associate(wire::Associate {
        from: from.into(),
        to: "b".into(),
        relation: relation.into(),
        weight,
        confidence: 0,
    })
}

#[test]
fn what_is_not_known_is_not_understood() {
    // Field 99 of the command, of the entry, and of an operation.
    let unknown = [0x9a, 0x06, 0x01, 0x00];
    assert_eq!(
        decode_group_command(&unknown),
        Err(DecodeError::UnknownFields { unknown: 4 }),
        "an unknown field of the entry"
    );
    let command = [&[0x08, 0x01, 0x12, 0x04][..], &unknown[..]].concat();
    assert_eq!(
        decode_group_command(&command),
        Err(DecodeError::UnknownFields { unknown: 4 }),
        "an unknown command"
    );
    let none = wire::GroupCommand {
        partition: 1,
        command: Some(wire::PartitionCommand::default()),
    };
    assert_eq!(
        decode_group_command(&none.encode_to_vec()),
        Err(DecodeError::NotUnderstood("a command"))
    );
    let empty_op = entry_of(wire::partition_command::Command::Write(wire::Write {
        client: vec![0; 16].into(),
        ops: vec![wire::Op::default()],
        ..Default::default()
    }));
    assert_eq!(
        decode_group_command(&empty_op),
        Err(DecodeError::NotUnderstood("an operation"))
    );
}

#[test]
fn parts_out_of_range_are_refused() {
    let one = Unit::ONE.bits();
    let cases = [
        (
            write_of(associate(one + 1, "a", "r")),
            "weight is 4294967297",
        ),
        (
            write_of(associate(one, "", "r")),
            "from: a memory id must not be empty",
        ),
        (write_of(associate(one, "a", "")), "is no relation"),
        (
            write_of(wire::op::Op::Remember(wire::Remember {
                id: "a".into(),
                embedding: vec![0; 7].into(),
                ..Default::default()
            })),
            "embedding has 7 bytes",
        ),
        (
            write_of(wire::op::Op::Remember(wire::Remember {
                id: "a".into(),
                embedding: f32::NAN.to_le_bytes().to_vec().into(),
                ..Default::default()
            })),
            "component 0",
        ),
        (
            write_of(wire::op::Op::Forget(wire::Forget {
                id: "a".into(),
                ..Default::default()
            })),
            "context is missing",
        ),
        (
            entry_of(wire::partition_command::Command::Write(wire::Write {
                client: vec![0; 15].into(),
                ..Default::default()
            })),
            "client has 15 bytes",
        ),
    ];
    for (bytes, reason) in cases {
        let error = decode_group_command(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} should say {reason:?}");
    }
}

#[test]
fn slot_ranges_must_lie_in_the_slot_space() {
    assert!(slot_range(0, u32::from(HASH_SLOTS)).is_ok());
    assert!(slot_range(5, 5).is_err());
    assert!(slot_range(0, u32::from(HASH_SLOTS) + 1).is_err());
    assert!(slot_range(1 << 16, 1 << 17).is_err());
}

#[test]
fn operations_come_in_order_of_their_index() {
    let op = |index| wire::Op {
        index,
        op: Some(associate(0, "a", "r")),
    };
    let entry = entry_of(wire::partition_command::Command::Write(wire::Write {
        client: vec![0; 16].into(),
        ops: vec![op(1), op(1)],
        ..Default::default()
    }));
    assert!(decode_group_command(&entry).is_err());
}
